"""`jaxprune list`: what tasks, presets, functions, operands, operators and recipes there are."""

from __future__ import annotations

import argparse
import json
import textwrap
from collections.abc import Callable
from typing import TYPE_CHECKING

from jaxprune.commands.common import say
from jaxprune.language.axes import type_name
from jaxprune.language.library import own_seeds, sources
from jaxprune.language.operators import OPERATORS
from jaxprune.language.vocabulary import OPERANDS
from jaxprune.text import closest, columns

if TYPE_CHECKING:
    from collections.abc import Mapping


Row = dict[str, object]


def list_tasks() -> list[Row]:
    """One row per named task."""
    from jaxprune.tasks.named_tasks import TASKS

    return [{"name": name, "about": (make.__doc__ or "").strip()} for name, make in TASKS.items()]


def list_presets() -> list[Row]:
    """One row per preset."""
    from jaxprune.search.settings import PRESETS

    return [
        {"name": preset.name, "tasks": ", ".join(preset.tasks), "about": preset.about}
        for preset in PRESETS.values()
    ]


def list_metrics() -> list[Row]:
    """One row per named function: the zoo, formulas and others, then our own seeds."""
    from jaxprune.scoring.metrics import metrics

    rows: list[Row] = [
        {
            "name": name,
            "complexity": None if metric.expression is None else metric.expression.complexity,
            "formula": metric.formula,
            "about": metric.about,
            "source": metric.source,
        }
        for name, metric in metrics.items()
    ]
    return rows + [
        {"name": name, "complexity": f.complexity, "formula": str(f), "about": "", "source": sources[name]}
        for name, f in own_seeds.items()
        if name not in metrics
    ]


def list_operands() -> list[Row]:
    """One row per operand."""
    return [
        {
            "name": operand.name,
            "type": type_name(operand.type),
            "by class": "yes" if operand.per_class else "",
            "paper": "yes" if operand.paper else "",
            "about": operand.description,
        }
        for operand in OPERANDS.values()
    ]


def list_operators() -> list[Row]:
    """One row per operator and signature."""
    return [
        {
            "name": name,
            "signature": " | ".join(str(signature) for signature in operator.signatures),
            "complexity": operator.complexity,
        }
        for name, operator in OPERATORS.items()
    ]


def list_recipes() -> list[Row]:
    """One row per training recipe."""
    from jaxprune.training.recipes import RECIPES

    names = ("optimizer", "learning_rate", "epochs", "batch_size", "weight_decay", "schedule", "augment")
    return [
        {"name": recipe.name, **{name.replace("_", " "): getattr(recipe, name) for name in names}}
        for recipe in RECIPES.values()
    ]


LISTS: Mapping[str, Callable[[], list[Row]]] = {
    "tasks": list_tasks,
    "presets": list_presets,
    "metrics": list_metrics,
    "operands": list_operands,
    "operators": list_operators,
    "recipes": list_recipes,
}
"""What can be listed."""


def add_list(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `jaxprune list`."""
    parser.add_argument("what", nargs="*", metavar="WHAT", help=f"any of {', '.join(LISTS)} (default: all)")
    parser.add_argument("--json", action="store_true", help="as JSON")


def run_list(arguments: argparse.Namespace) -> int:
    """Prints the lists."""
    unknown = [name for name in arguments.what if name not in LISTS]
    if unknown:
        raise ValueError(
            f"list needs any of {', '.join(LISTS)}, got {unknown[0]!r}.{closest(unknown[0], LISTS)}"
        )
    found = {name: LISTS[name]() for name in arguments.what or LISTS}
    if arguments.json:
        say(json.dumps(found, indent=2))
        return 0
    for number, (name, rows) in enumerate(found.items()):
        if number:
            say()
        say(f"{name}:")
        if name == "metrics":  # formulas are long: the source goes to a line of its own
            width = max(len(str(row["name"])) for row in rows)
            for row in rows:
                cost = "no formula" if row["complexity"] is None else f"complexity {row['complexity']}"
                say(f"  {row['name']!s:{width}}  {row['formula']}")
                if row["about"]:
                    say(_indented(str(row["about"]), width + 6))
                say(_indented(f"{cost}; {row['source']}", width + 6))
        else:
            say(columns([list(rows[0]), *(list(row.values()) for row in rows)], indent=2))
    return 0


def _indented(text: str, indent: int) -> str:
    return textwrap.fill(text, 116, initial_indent=" " * indent, subsequent_indent=" " * indent)

"""`jaxprune list`: shows what tasks, presets, functions, operands, operators and recipes there are."""

from __future__ import annotations

import argparse
import json
import textwrap
from collections.abc import Callable, Mapping

from jaxprune.commands.output import say
from jaxprune.text import closest, columns

Rows = list[dict[str, object]]


def add_list(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `jaxprune list`."""
    parser.add_argument("what", nargs="*", metavar="WHAT", help=f"any of {', '.join(LISTS)} (default: all)")
    parser.add_argument("--json", action="store_true", help="as JSON")


def run_list(arguments: argparse.Namespace) -> int:
    """Prints the lists.

    Raises:
      ValueError: for an unknown list.
    """
    unknown = [name for name in arguments.what if name not in LISTS]
    if unknown:
        raise ValueError(
            f"list needs any of {', '.join(LISTS)}, got {unknown[0]!r}.{closest(unknown[0], LISTS)}"
        )
    lists = {name: LISTS[name]() for name in arguments.what or LISTS}
    if arguments.json:
        say(json.dumps(lists, indent=2))
        return 0
    for number, (name, rows) in enumerate(lists.items()):
        say(f"\n{name}:" if number else f"{name}:")
        if name == "metrics":
            _print_metrics(rows)
        else:
            say(columns([list(rows[0]), *(list(row.values()) for row in rows)], indent=2))
    return 0


def list_tasks() -> Rows:
    """Returns one row per named task."""
    from jaxprune.tasks.named_tasks import TASKS

    return [{"name": name, "about": (make.__doc__ or "").strip()} for name, make in TASKS.items()]


def list_presets() -> Rows:
    """Returns one row per preset."""
    from jaxprune.search.settings import PRESETS

    return [
        {"name": preset.name, "tasks": ", ".join(preset.tasks), "about": preset.about}
        for preset in PRESETS.values()
    ]


def list_metrics() -> Rows:
    """Returns one row per named function: every metric, then those of our own seeds that are not metrics."""
    from jaxprune.language.library import own_seeds, sources
    from jaxprune.scoring.metrics import metrics

    rows: Rows = [
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


def list_operands() -> Rows:
    """Returns one row per operand."""
    from jaxprune.language.axes import type_name
    from jaxprune.language.vocabulary import OPERANDS

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


def list_operators() -> Rows:
    """Returns one row per operator and signature."""
    from jaxprune.language.operators import OPERATORS

    return [
        {
            "name": name,
            "signature": " | ".join(str(signature) for signature in operator.signatures),
            "complexity": operator.complexity,
        }
        for name, operator in OPERATORS.items()
    ]


def list_recipes() -> Rows:
    """Returns one row per training recipe."""
    from jaxprune.training.recipes import RECIPES

    names = ("optimizer", "learning_rate", "epochs", "batch_size", "weight_decay", "schedule", "augment")
    return [
        {"name": recipe.name, **{name.replace("_", " "): getattr(recipe, name) for name in names}}
        for recipe in RECIPES.values()
    ]


LISTS: Mapping[str, Callable[[], Rows]] = {
    "tasks": list_tasks,
    "presets": list_presets,
    "metrics": list_metrics,
    "operands": list_operands,
    "operators": list_operators,
    "recipes": list_recipes,
}
"""Name of a list -> the function that makes its rows."""


def _print_metrics(rows: Rows) -> None:
    """Prints functions with their sources on lines of their own, because formulas are long."""
    width = max(len(str(row["name"])) for row in rows)
    indent = " " * (width + 6)
    for row in rows:
        cost = "no formula" if row["complexity"] is None else f"complexity {row['complexity']}"
        say(f"  {row['name']!s:{width}}  {row['formula']}")
        for text in (row["about"], f"{cost}; {row['source']}"):
            if text:
                lines = textwrap.wrap(str(text), 116 - len(indent), break_on_hyphens=False)
                say(textwrap.indent("\n".join(lines), indent))

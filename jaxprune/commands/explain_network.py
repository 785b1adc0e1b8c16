"""`jaxprune explain --network NAME`: the groups of a network, what is frozen and why. No weights are made."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from jaxprune.commands.common import flag, note, say, write_file
from jaxprune.text import closest

if TYPE_CHECKING:
    import jax
    from rich.console import Console

    from jaxprune.structure.groups import Structure
    from jaxprune.structure.overview import Overview

OWN = ("input", "why", "every")
"""Options that go without a formula alone."""

OF_FORMULAS = ("code", "tree", "only", "weights", "num_images")
"""Options that go with a formula alone."""

DTYPES = ("float32", "float16", "bfloat16", "int32", "uint8")
PLAIN_WIDTH = 150
"""Columns of a table that is not written to a terminal."""

MOST_NAMES = 4


def add_structure_options(parser: argparse.ArgumentParser) -> None:
    """Adds what says how a network is looked at when there is no formula."""
    group = parser.add_argument_group("the groups of a network, without a formula")
    group.add_argument(
        "--input",
        metavar="SHAPE[:DTYPE]",
        help=f"what the network takes, batch first, such as 1x32x32x3 or 1x128:int32; dtypes: {', '.join(DTYPES)} "
        "(default: the images of --data, or what the network itself says)",
    )
    group.add_argument(
        "--why", metavar="PATH", help="tell for each axis of this array or layer its group, or why it stays"
    )
    group.add_argument(
        "--every", action="store_true", help="every group and layer, also where blocks are alike"
    )


def check_no_structure_options(arguments: argparse.Namespace) -> None:
    """Refuses options that have no meaning for a formula.

    Raises:
      ValueError: if one is given.
    """
    given = [flag(name) for name in OWN if getattr(arguments, name)]
    if given:
        raise ValueError(f"{given[0]} shows the groups of a network, got a formula as well. Leave it out.")


def run_structure(arguments: argparse.Namespace) -> int:
    """Prints the groups of a network; 1 if there are none."""
    from jaxprune.structure.overview import axes_of, overview_of

    name, structure = _structure_of(arguments)
    if arguments.figure is not None:
        from jaxprune.figures.network_diagram import groups_figure
        from jaxprune.figures.style import save_figure

        figure = groups_figure(structure, name, is_folded=not arguments.every)
        write_file(arguments.figure, lambda path: save_figure(figure, path))
    if arguments.why is not None:
        _check_path(structure, arguments.why)
        for line in axes_of(structure, arguments.why):
            say(_shown(line))
        return 0
    overview = overview_of(structure, is_folded=not arguments.every)
    if arguments.json:
        facts = {"network": name, **_facts(structure, overview)}
        say(json.dumps(facts, indent=2))
    else:
        _print(overview, name)
    return 0 if structure.groups else 1


def _facts(structure: Structure, overview: Overview) -> dict[str, object]:
    """Everything there is to know of the groups, as plain data."""
    numbers = {key: value for key, value in vars(overview).items() if isinstance(value, int)}
    groups = {
        name: {
            "channels": group.size,
            "producers": group.producers,
            "consumers": group.consumers,
            "members": [str(member) for member in group.members],
            "inner": list(group.inner),
            "constraints": group.constraints,
        }
        for name, group in structure.groups.items()
    }
    return {
        "input": [1, *structure.example.shape[1:]],
        **numbers,
        "groups": groups,
        "frozen": dict(structure.frozen),
        "attributes": dict(structure.attributes),
    }


def _structure_of(arguments: argparse.Namespace) -> tuple[str, Structure]:
    """The network's name, with its images, and its structure.

    Raises:
      ValueError: for options that make no sense, a network that is not there, or an input that it does not take.
    """
    from jaxprune.nets.factories import find_network, look_in_working_directory
    from jaxprune.structure.tracing import trace_structure

    if arguments.network is None:
        raise ValueError(
            "explain needs a formula, or a network to take apart, got neither. "
            'Say explain "sum(abs(WI))", or explain --network lenet5.'
        )
    given = [flag(each) for each in OF_FORMULAS if getattr(arguments, each)]
    given += [flag(each) for each in ("task", "base") if getattr(arguments, each) is not None]
    if given:
        raise ValueError(
            f"{given[0]} needs a formula, got none. The groups of --network need no such option."
        )
    if ":" in arguments.network:
        look_in_working_directory()
    example, num_classes = _example(arguments)
    sizes = {"image_shape": example.shape[1:]} if example is not None else {}
    model = find_network(arguments.network, num_classes=num_classes, has_weights=False, **sizes)
    example = example or _own_example(arguments.network, model)
    return f"{arguments.network} on {_shape(example)}", trace_structure(model, example)


def _example(arguments: argparse.Namespace) -> tuple[jax.ShapeDtypeStruct | None, int]:
    """Shape and dtype of the input and the number of classes, as far as the command line says."""
    import jax
    import numpy as np

    if arguments.input is not None and arguments.data is not None:
        raise ValueError("the input needs to be said once, got --input and --data. Leave one out.")
    if arguments.input is not None:
        return parse_input(arguments.input), 10
    if arguments.data is not None:
        from jaxprune.datasets.example_files import load_examples

        images, labels = load_examples(arguments.data)
        return jax.ShapeDtypeStruct((1, *images.shape[1:]), images.dtype), len(np.unique(labels))
    return None, 10


def parse_input(text: str) -> jax.ShapeDtypeStruct:
    """Shape and dtype from text.

    Raises:
      ValueError: for text that says something else.

    Example:
      >>> parse_input("1x32x32x3").shape, str(parse_input("2x128:int32").dtype)
      ((1, 32, 32, 3), 'int32')
    """
    import jax

    shape, _, dtype = text.partition(":")
    sizes = shape.split("x")
    if not all(size.isdigit() and int(size) > 0 for size in sizes) or len(sizes) < 2:
        raise ValueError(
            f"--input needs sizes joined by x, batch first, as in 1x32x32x3 or 1x128:int32, got {text!r}."
        )
    if dtype and dtype not in DTYPES:
        raise ValueError(
            f"--input needs one of the dtypes {', '.join(DTYPES)}, got {dtype!r}.{closest(dtype, DTYPES)}"
        )
    return jax.ShapeDtypeStruct(tuple(map(int, sizes)), dtype or "float32")


def _own_example(name: str, model: object) -> jax.ShapeDtypeStruct:
    import jax

    shape = getattr(model, "image_shape", None)
    if not isinstance(shape, tuple):
        raise ValueError(
            f"--network {name} needs to be told what it takes, got neither --input nor --data. "
            "Say --input 1x32x32x3 for images, or --input 1x128:int32 for tokens."
        )
    return jax.ShapeDtypeStruct((1, *shape), "float32")


def _shape(example: jax.ShapeDtypeStruct) -> str:
    sizes = "x".join(map(str, example.shape))
    return sizes if str(example.dtype) == "float32" else f"{sizes}:{example.dtype}"


def _check_path(structure: Structure, path: str) -> None:
    from jaxprune.structure.model_state import dotted

    arrays = [dotted(known) for known in structure.layouts]
    layers = [name.rpartition(".")[0] for name in arrays]
    prefixes = {prefix for name in layers for prefix in _prefixes(name)}
    if path not in {*arrays, *prefixes}:
        raise ValueError(
            f"--why needs the path of an array or layer, such as {arrays[0]}, got {path!r}."
            f"{closest(path, [*arrays, *sorted(prefixes)])}"
        )


def _prefixes(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:end]) for end in range(1, len(parts) + 1) if name]


def _print(overview: Overview, name: str) -> None:
    from rich.console import Console

    from jaxprune.structure.overview import shortened

    console = Console(file=sys.stdout, highlight=False, markup=False)
    if not console.is_terminal:
        console = Console(file=sys.stdout, highlight=False, markup=False, width=PLAIN_WIDTH)
    console.print(
        f"{name}: {overview.parameters:,} parameters, {overview.macs:,} multiply-adds for one example"
    )
    if overview.rows:
        _print_groups(console, overview)
    if overview.attributes:
        console.print(
            "\nNumbers in your own classes that must follow, by slim(..., attributes={path: value}):"
        )
        for group, paths in overview.attributes.items():
            console.print(f"  {', '.join(paths)}: the channels kept of {group}", soft_wrap=True)
    if overview.frozen:
        console.print("\nNever cut:")
    for row in overview.frozen:
        number = f"{row.count} {'axis' if row.count == 1 else 'axes'}"
        console.print(f"  {_shown(row.reason)}", soft_wrap=True)
        console.print(f"    {number}: {shortened(row.axes, MOST_NAMES)}", soft_wrap=True)
    if not overview.rows:
        note("Nothing of this network can be pruned: a layer between two others with weights could be.")


def _print_groups(console: Console, overview: Overview) -> None:
    from rich import box
    from rich.table import Table

    from jaxprune.structure.overview import shortened

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    table.add_column("group", overflow="fold", min_width=24)
    table.add_column("channels", justify="right", no_wrap=True)
    table.add_column("made by", overflow="fold")
    table.add_column("read by", overflow="fold")
    table.add_column("constraints", overflow="fold")
    for row in overview.rows:
        number = len(row.groups)
        table.add_row(
            row.name,
            f"{row.channels:,}" if number == 1 else f"{number} × {row.channels:,}",
            shortened(row.made_by, MOST_NAMES),
            shortened(row.read_by, MOST_NAMES) or "other activations",
            "; ".join(row.notes),
        )
    console.print(table)
    console.print(
        f"{overview.num_groups} groups with {overview.num_channels:,} channels. At most {overview.num_removable:,} "
        f"can be cut: that leaves {_share(overview.least_parameters, overview.parameters)} of the parameters and "
        f"{_share(overview.least_macs, overview.macs)} of the multiply-adds."
    )


def _share(part: int, whole: int) -> str:
    return f"{100 * part / max(whole, 1):.2g} %"


def _shown(text: str) -> str:
    """Text with paths of source files as seen from the working directory."""
    return text.replace(f"{Path.cwd()}/", "")

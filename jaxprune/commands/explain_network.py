"""`jaxprune explain --network NAME`: shows the groups of a network, what is frozen and why, without any weights."""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from jaxprune.commands.network_options import flag
from jaxprune.commands.output import claim, note, printing, say, write_figure
from jaxprune.text import closest

if TYPE_CHECKING:
    import jax
    from rich.console import Console

    from jaxprune.structure.groups import Structure
    from jaxprune.structure.overview import Overview

DTYPES = ("float32", "float16", "bfloat16", "int32", "uint8")

_NETWORK_ONLY = ("input", "why", "every")
"""Options that only go without a formula."""
_FORMULA_ONLY = ("code", "tree", "only", "weights", "num_images", "task", "base")
"""Options that only go with a formula."""

_FILE_WIDTH = 150
"""Columns of a table that is not written to a terminal."""
_MAX_NAMES = 4


def add_structure_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options that say how a network is looked at when there is no formula."""
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
    flags = [flag(name) for name in _NETWORK_ONLY if getattr(arguments, name)]
    if flags:
        raise ValueError(f"{flags[0]} shows the groups of a network, got a formula as well. Leave it out.")


def run_structure(arguments: argparse.Namespace) -> int:
    """Prints the groups of the network that the command line names.

    Returns:
      The exit status: 1 if there are no groups, otherwise 0.

    Raises:
      ValueError: for options that make no sense, an unknown network, or an input that it does not take.
    """
    from jaxprune.structure.overview import axes_of, overview_of

    _check_what_is_printed(arguments)
    if arguments.figure is not None:
        claim([arguments.figure], overwrite=arguments.overwrite)
    title, structure = _structure_of(arguments)
    if arguments.figure is not None:
        from jaxprune.figures.network_diagram import groups_figure

        write_figure(arguments.figure, groups_figure(structure, title, is_folded=not arguments.every))
    if arguments.why is not None:
        _check_path(structure, arguments.why)
        for line in axes_of(structure, arguments.why):
            say(_with_relative_paths(line))
        return 0
    overview = overview_of(structure, is_folded=not arguments.every)
    if arguments.json:
        say(json.dumps({"network": title, **_facts(structure, overview)}, indent=2))
    else:
        with printing():
            _print_overview(overview, title)
    return 0 if structure.groups else 1


def _check_what_is_printed(arguments: argparse.Namespace) -> None:
    """Refuses options that would change nothing."""
    if arguments.why is not None and arguments.json:
        raise ValueError("--why prints lines of text, got --json as well. Leave one out.")
    other = "--why" if arguments.why is not None else "--json" if arguments.json else ""
    if arguments.every and other and arguments.figure is None:
        raise ValueError(f"{other} shows everything already, got --every as well. Leave it out.")
    of_tasks = [flag(name) for name in ("seed", "bases_dir") if name in arguments.given]
    if of_tasks:
        raise ValueError(f"{of_tasks[0]} needs a formula, got none: the groups of a network have no weights.")


def _structure_of(arguments: argparse.Namespace) -> tuple[str, Structure]:
    """Returns the network's name with its input, and its structure."""
    import jax
    import numpy as np

    from jaxprune.nets.factories import find_network, look_in_working_directory
    from jaxprune.structure.tracing import trace_structure

    if arguments.network is None:
        raise ValueError(
            "explain needs a formula, or a network to take apart, got neither. "
            'Say explain "sum(abs(WI))", or explain --network lenet5.'
        )
    flags = [flag(name) for name in _FORMULA_ONLY if getattr(arguments, name) is not None]
    if flags:
        raise ValueError(
            f"{flags[0]} needs a formula, got none. The groups of --network need no such option."
        )
    if arguments.input is not None and arguments.data is not None:
        raise ValueError("Give the input only once, got --input and --data. Leave one out.")
    if ":" in arguments.network:
        look_in_working_directory()
    example, num_classes = None, 10
    if arguments.input is not None:
        example = parse_input(arguments.input)
    elif arguments.data is not None:
        from jaxprune.datasets.example_files import load_examples

        images, labels = load_examples(arguments.data, data_dir=arguments.data_dir)
        example, num_classes = (
            jax.ShapeDtypeStruct((1, *images.shape[1:]), images.dtype),
            len(np.unique(labels)),
        )
    sizes = {} if example is None else {"image_shape": example.shape[1:]}
    model = find_network(arguments.network, num_classes=num_classes, has_weights=False, **sizes)
    if example is None:
        image_shape = getattr(model, "image_shape", None)
        if not isinstance(image_shape, tuple):
            raise ValueError(
                f"--network {arguments.network} needs to be told what it takes, got neither --input nor --data. "
                "Say --input 1x32x32x3 for images, or --input 1x128:int32 for tokens."
            )
        example = jax.ShapeDtypeStruct((1, *image_shape), "float32")
    shape = "x".join(map(str, example.shape)) + ("" if example.dtype == "float32" else f":{example.dtype}")
    return f"{arguments.network} on {shape}", trace_structure(model, example)


def parse_input(text: str) -> jax.ShapeDtypeStruct:
    """Reads the shape and dtype of an input.

    Args:
      text: sizes joined by x, batch first; another dtype than float32 follows a colon.

    Raises:
      ValueError: for text that says something else.

    Example:
      >>> parse_input("1x32x32x3").shape, str(parse_input("2x128:int32").dtype)
      ((1, 32, 32, 3), 'int32')
    """
    import jax

    shape, _, dtype = text.partition(":")
    sizes = shape.split("x")
    if not all(re.fullmatch("[0-9]{1,9}", size) and int(size) > 0 for size in sizes) or len(sizes) < 2:
        raise ValueError(
            f"--input needs sizes joined by x, batch first, as in 1x32x32x3 or 1x128:int32, got {text!r}."
        )
    if dtype and dtype not in DTYPES:
        raise ValueError(
            f"--input needs one of the dtypes {', '.join(DTYPES)}, got {dtype!r}.{closest(dtype, DTYPES)}"
        )
    return jax.ShapeDtypeStruct(tuple(map(int, sizes)), dtype or "float32")


def _check_path(structure: Structure, path: str) -> None:
    """Raises for a path that is neither an array nor a layer, and suggests the nearest."""
    from jaxprune.structure.model_state import dotted

    arrays = [dotted(path) for path in structure.layouts]
    layers = set()
    for array in arrays:
        parts = array.split(".")
        layers |= {".".join(parts[:end]) for end in range(1, len(parts))}
    if path not in {*arrays, *layers}:
        raise ValueError(
            f"--why needs the path of an array or layer, such as {arrays[0]}, got {path!r}."
            f"{closest(path, [*arrays, *sorted(layers)])}"
        )


def _facts(structure: Structure, overview: Overview) -> dict[str, object]:
    """Returns everything that is known of the groups, as plain data."""
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
        "input": [1, *structure.example.first.shape[1:]],
        **{name: value for name, value in vars(overview).items() if isinstance(value, int)},
        "groups": groups,
        "frozen": dict(structure.frozen),
        "attributes": dict(structure.attributes),
    }


def _print_overview(overview: Overview, title: str) -> None:
    """Prints the sizes of a network, its groups, and what is never cut."""
    from rich.console import Console

    from jaxprune.structure.overview import first_names

    console = Console(file=sys.stdout, highlight=False, markup=False)
    if not console.is_terminal:
        console.width = _FILE_WIDTH
    console.print(
        f"{title}: {overview.parameters:,} parameters, {overview.macs:,} multiply-adds for one example"
    )
    if overview.rows:
        _print_groups(console, overview)
    if overview.attributes:
        console.print(
            "\nNumbers in your own classes that must follow, by slim(..., attributes={path: value}):"
        )
        for group, paths in overview.attributes.items():
            console.print(f"  {', '.join(paths)}: changes with the channels kept of {group}", soft_wrap=True)
    if overview.frozen:
        console.print("\nNever cut:")
    for row in overview.frozen:
        count = f"{row.count} {'axis' if row.count == 1 else 'axes'}"
        console.print(f"  {_with_relative_paths(row.reason)}", soft_wrap=True)
        console.print(f"    {count}: {first_names(row.axes, _MAX_NAMES)}", soft_wrap=True)
    if not overview.rows:
        note("Nothing of this network can be pruned: a layer between two others with weights could be.")


def _print_groups(console: Console, overview: Overview) -> None:
    """Prints a table of the groups, and how much could be cut."""
    from rich import box
    from rich.table import Table

    from jaxprune.structure.overview import first_names

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    table.add_column("group", overflow="fold", min_width=24)
    table.add_column("channels", justify="right", no_wrap=True)
    for name in ("made by", "read by", "constraints"):
        table.add_column(name, overflow="fold")
    for row in overview.rows:
        count = len(row.groups)
        table.add_row(
            row.name,
            f"{row.channels:,}" if count == 1 else f"{count} × {row.channels:,}",
            first_names(row.made_by, _MAX_NAMES),
            first_names(row.read_by, _MAX_NAMES) or "other activations",
            "; ".join(row.notes),
        )
    console.print(table)
    parameters = 100 * overview.least_parameters / max(overview.parameters, 1)
    macs = 100 * overview.least_macs / max(overview.macs, 1)
    console.print(
        f"{overview.num_groups} groups with {overview.num_channels:,} channels. At most {overview.num_removable:,} "
        f"can be cut: that leaves {parameters:.2g} % of the parameters and {macs:.2g} % of the multiply-adds."
    )


def _with_relative_paths(text: str) -> str:
    """Returns the text with paths of source files relative to the working directory."""
    return text.replace(f"{Path.cwd()}/", "")

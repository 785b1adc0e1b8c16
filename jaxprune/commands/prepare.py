"""`jaxprune prepare`: downloads data sets, or takes archives, and writes them as this package reads them."""

from __future__ import annotations

import argparse
from pathlib import Path

from jaxprune.commands.network_options import add_data_dir_option
from jaxprune.commands.output import note, say


def add_prepare(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `jaxprune prepare`."""
    from jaxprune.datasets.prepared_sets import USUAL_SETS

    parser.add_argument(
        "names",
        nargs="+",
        metavar="NAME",
        help=f"{', '.join(USUAL_SETS)}, or any other set of images with class labels that TensorFlow Datasets has; "
        "NAME/CONFIG for one of its configurations",
    )
    add_data_dir_option(parser)
    parser.add_argument(
        "--manual-dir",
        type=Path,
        metavar="DIR",
        help="folder with archives that need an account, those of imagenet2012 say (default: downloads/manual in the "
        "data directory)",
    )
    parser.add_argument(
        "--shrink",
        type=int,
        metavar="PIXELS",
        help="also write the images with a shorter side of at most so many pixels, usually 256, as "
        "tfds:NAME/shrunk256: decoding takes less time, and the fingerprint differs",
    )


def run_prepare(arguments: argparse.Namespace) -> int:
    """Prepares the sets one after the other, and prints their names and sizes; those that are there stay.

    Raises:
      ImportError: if TensorFlow or TensorFlow Datasets is missing.
      ValueError: if a set cannot be prepared; those before it are.
    """
    from jaxprune.datasets.preparation import check_names, prepare, summary
    from jaxprune.datasets.prepared_sets import PREFIX
    from jaxprune.datasets.shrinking import check_side, shrink

    if arguments.shrink is not None:
        check_side(arguments.shrink)
    check_names(arguments.names, arguments.data_dir)
    for name in arguments.names:
        prepared = prepare(name, data_dir=arguments.data_dir, manual_dir=arguments.manual_dir, tell=note)
        if arguments.shrink is not None:
            prepared = shrink(prepared, arguments.shrink, tell=note)
        say(f"{PREFIX}{prepared.name.partition(':')[0]}: {summary(prepared)}")
    return 0

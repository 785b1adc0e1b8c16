"""Takes a pruning function to ResNet-50 and MobileNetV2 on ILSVRC-2012; the same command goes on where it was.

python experiments/imagenet_transfer/run.py --function FUNCTION [--case NAME] [--data NAME] [--data-dir DIR] [--out DIR]
    ... --rehearse    the whole path in minutes, on a tiny set in the real format that is written first
Further options are passed on to `jaxprune transfer`, such as --weights, --batch-size or --workers.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from config import CASES, DATA, OBSERVED, REHEARSAL, REHEARSAL_IMAGES, REHEARSAL_OBSERVED

from jaxprune.cli import main as jaxprune
from jaxprune.comparison.transfer_results import write_summary

RESULTS = Path(__file__).parent / "results"
SUPPORT = Path(__file__).parents[2] / "tests" / "support"


def write_stand_in(data_dir: Path) -> None:
    """Writes a tiny set in the real format, with made-up images, unless it is there."""
    sys.path.append(str(SUPPORT))
    from prepared_data import write_prepared

    num_train, num_test = REHEARSAL_IMAGES
    if not (data_dir / "imagenet2012").exists():
        write_prepared(
            "imagenet2012", data_dir, num_train=num_train, num_test=num_test, num_labels=1000, side=72
        )


def main() -> None:
    """Runs or goes on with the transfers, and writes what they found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--function", required=True, help="formula, name, or folder of a run")
    parser.add_argument("--case", action="append", choices=CASES, help="which (default: both)")
    parser.add_argument("--rehearse", action="store_true", help="the whole path in minutes, on a tiny set")
    parser.add_argument("--data", default=DATA, metavar="NAME", help=f"or a shrunk copy (default: {DATA})")
    parser.add_argument("--data-dir", type=Path, metavar="DIR", help="where jaxprune prepare has put the set")
    parser.add_argument("--out", type=Path, default=Path("runs/imagenet_transfer"), metavar="DIR")
    options, further = parser.parse_known_args()
    out, observed = options.out, OBSERVED
    if options.rehearse:
        out, observed, further = out / "rehearsal", REHEARSAL_OBSERVED, [*REHEARSAL, *further]
        options.data_dir = out / "stand-in"
        write_stand_in(options.data_dir)
    where = [] if options.data_dir is None else ["--data-dir", str(options.data_dir)]
    for name in options.case or CASES:
        network, *settings = CASES[name]
        names = ["--function", options.function, "--network", network, "--data", options.data]
        place = ["--out", str(out / name), *where]
        status = jaxprune(["transfer", *names, *settings, *observed, *further, *place])
        if status:
            raise SystemExit(status)
        if not options.rehearse:
            write_summary(out / name, RESULTS / f"{name}.json")


if __name__ == "__main__":
    main()

"""Takes a pruning function to ResNets and VGG-19 on CIFAR and SVHN; the same command goes on after an interruption.

python experiments/cifar_transfer/run.py --function FUNCTION [--case NAME] [--data-dir DIR] [--out DIR]
    ... --rehearse       the whole path in minutes, on tiny sets in the real format that are written first
    ... --images DIR     ResNet-20 on the part of CIFAR-10 in DIR/cifar10_jpegbytes_8k_2k.npz, called cifar-part
Further options are passed on to `jaxprune transfer`.
"""

from __future__ import annotations

import argparse
import io
import sys
from pathlib import Path

import numpy as np
from config import CASES, PART, PART_NETWORK, REHEARSAL, REHEARSAL_IMAGES, REHEARSED

from jaxprune.cli import main as jaxprune
from jaxprune.comparison.transfer_results import write_summary

RESULTS = Path(__file__).parent / "results"
SUPPORT = Path(__file__).parents[2] / "tests" / "support"


def write_part(folder: Path, out: Path) -> Path:
    """Decodes the JPEG files of a part of CIFAR-10 into an archive; encoded anew, they are not CIFAR-10 any more."""
    from PIL import Image

    path = out / "cifar-part.npz"
    if path.exists():
        return path
    arrays = {}
    with np.load(folder / "cifar10_jpegbytes_8k_2k.npz", allow_pickle=False) as archive:
        for part in ("train", "test"):
            files = np.split(archive[f"jpeg_{part}"], archive[f"end_{part}"][:-1])
            images = [np.asarray(Image.open(io.BytesIO(file.tobytes())).convert("RGB")) for file in files]
            arrays |= {f"x_{part}": np.stack(images), f"y_{part}": archive[f"y_{part}"]}
    out.mkdir(parents=True, exist_ok=True)
    np.savez(path, **arrays)
    return path


def write_stand_ins(data_dir: Path) -> None:
    """Writes tiny sets in the real format, with made-up images, unless they are there."""
    sys.path.append(str(SUPPORT))
    from prepared_data import write_prepared

    for name, (num_train, num_test) in REHEARSAL_IMAGES.items():
        if not (data_dir / name).exists():
            write_prepared(name, data_dir, num_train=num_train, num_test=num_test)


def main() -> None:
    """Runs or goes on with the transfers, and writes what they found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--function", required=True, help="formula, name, or folder of a run")
    parser.add_argument("--case", action="append", choices=CASES, help="which (default: all)")
    parser.add_argument("--rehearse", action="store_true", help="the whole path in minutes, on tiny sets")
    parser.add_argument("--images", type=Path, metavar="DIR", help="folder with the part of CIFAR-10")
    parser.add_argument(
        "--data-dir", type=Path, metavar="DIR", help="where jaxprune prepare has put the sets"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/cifar_transfer"), metavar="DIR")
    options, further = parser.parse_known_args()
    cases = {name: CASES[name] for name in options.case or (REHEARSED if options.rehearse else CASES)}
    out = options.out / "rehearsal" if options.rehearse else options.out
    if options.rehearse:
        options.data_dir, further = out / "stand-ins", [*REHEARSAL, *further]
        write_stand_ins(options.data_dir)
    if options.images is not None:
        cases = {"cifar-part": (PART_NETWORK, str(write_part(options.images, out)), *PART)}
    where = [] if options.data_dir is None else ["--data-dir", str(options.data_dir)]
    for name, (network, data, *settings) in cases.items():
        names = ["--function", options.function, "--network", network, "--data", data]
        status = jaxprune(["transfer", *names, *settings, *further, *where, "--out", str(out / name)])
        if status:
            raise SystemExit(status)
        if not options.rehearse:
            write_summary(out / name, RESULTS / f"{name}.json")


if __name__ == "__main__":
    main()

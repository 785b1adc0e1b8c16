"""Records what a version of jaxprune shows to its users, so that two versions can be compared.

python experiments/same_behaviour/run.py record before.json     (in the older version)
python experiments/same_behaviour/run.py record after.json      (in the newer one)
python experiments/same_behaviour/run.py compare before.json after.json
"""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[2]

COMMANDS = {
    "list": "list",
    "list as JSON": "list --json",
    "explain fdr": "explain fdr --task digits",
    "explain as JSON": "explain sym_div --json",
    "explain a network": "explain --network resnet20 --every",
    "why an axis stays": "explain --network lenet5 --why conv1.bias",
    "code for NumPy": "explain t_stat --code numpy",
    "code for JAX": "explain geometric_median --code jax",
    "code for PyTorch": "explain t_stat --code torch",
    "score": "score fdr",
    "score as CSV": "score fdr l2 sum(abs(GW)) --task digits-deep --format csv",
    "score as JSON": "score mean(X)/std(X) N/(NX-NX) --format json --aggregation max",
    "score a network": "score fdr l1 --network resnet20 --data digits --num-images 200 --format csv",
    "prune": "prune --task digits --metric fdr --out prune",
    "prune by operations": "prune --task digits-deep --macs-fraction 0.5 --scope global --out prune-macs",
    "compare": "compare --task digits --metrics l1,fdr --bases 2 --out compare",
    "calibrate": "calibrate --task digits --bases 2 --oracle 6 --out calibrate",
    "compare one function": "compare --function fdr --task digits-deep --bases 2 --out compare-one",
    "evolve": "evolve --task digits --task digits-deep --generations 3 --population 8 --bases 2 --final-bases 2 "
    "--run-dir run --seed 3",
    "resume": "evolve --resume --run-dir run",
    "report": "report run",
    "compare a winner": "compare --function run --task digits --bases 1 --out compare-winner",
}
"""What is shown -> the arguments of `jaxprune`; they run in this order in one folder."""

FILES = (
    "prune/plan.json", "prune/result.json", "prune-macs/plan.json", "compare/comparison.csv", "compare/comparison.md",
    "calibrate/calibration-digits.json", "calibrate/calibration-digits.md", "compare-one/comparison.csv",
    "run/journal.jsonl", "run/config.json", "run/archive.json", "run/hall_of_fame.csv", "run/report.md",
)  # fmt: skip

TIMES = (
    (re.compile(r"\b\d+(\.\d+)?(e-?\d+)? ?(ms|s|min|h|seconds|minutes)\b"), "TIME"),
    (re.compile(r"\b\d+ (s|min|h) \d+ (s|min)\b"), "TIME"),
    (re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d)?(\.\d+)?(\+\d\d:\d\d|Z)?"), "DATE"),
    (re.compile(r'("\w*(seconds|time|at)\w*": ?)-?[\d.e+-]+'), r"\1TIME"),
    (re.compile(r"left \d+:\d\d"), "left TIME"),
    (re.compile(r"\| \d+\.\d\d \|$", re.MULTILINE), "| TIME |"),  # the last column of comparisons
    (re.compile(r",\d+\.\d{6,},(\w*)$", re.MULTILINE), r",TIME,\1"),  # the same in their CSV
    (re.compile(r" at 0x[0-9a-f]+"), ""),  # of functions that are default values
)


def without_times(text: str) -> str:
    """The text with durations and dates replaced by one word each."""
    for pattern, word in TIMES:
        text = pattern.sub(word, text)
    return text


def public_names() -> dict[str, str]:
    """Each public name with its signature and, for a class, its public members."""
    import jaxprune

    shown: dict[str, str] = {}
    for name in jaxprune.__all__:
        thing = getattr(jaxprune, name)
        lines = [type(thing).__name__]
        if callable(thing):
            lines.append(re.sub(r"jaxprune(\.\w+)+\.", "", str(inspect.signature(thing))))
        if inspect.isclass(thing):
            lines += sorted(member for member in dir(thing) if not member.startswith("_"))
            if dataclasses.is_dataclass(thing):
                lines += [f"field {field.name}" for field in dataclasses.fields(thing)]
        shown[name] = "\n".join(lines)
    return shown


def record(path: Path) -> None:
    """Runs every command in a fresh folder and writes outputs, files and public names to `path`."""
    environment = os.environ | {"PYTHONPATH": str(PACKAGE), "COLUMNS": "110", "JAX_PLATFORMS": "cpu"}
    with tempfile.TemporaryDirectory() as folder:
        outputs, files = {}, {}
        for title, arguments in COMMANDS.items():
            print(title, flush=True)
            done = subprocess.run(
                [sys.executable, "-m", "jaxprune.cli", *arguments.split()],
                cwd=folder, env=environment, capture_output=True, text=True,
            )  # fmt: skip
            outputs[title] = f"exit status {done.returncode}\n" + done.stdout.replace(folder, "FOLDER")
            if done.returncode == 2:
                outputs[title] += done.stderr
        for name in FILES:
            file = Path(folder, name)
            files[name] = file.read_text().replace(folder, "FOLDER") if file.exists() else "missing"
    path.write_text(json.dumps({"names": public_names(), "outputs": outputs, "files": files}, indent=1))


def compare(before: Path, after: Path) -> int:
    """Prints every difference; returns 1 if there is one, 0 otherwise."""
    old, new = json.loads(before.read_text()), json.loads(after.read_text())
    num_different = 0
    for part in old:
        for title in sorted(old[part].keys() | new[part].keys()):
            pair = [without_times(record[part].get(title, "missing")).splitlines() for record in (old, new)]
            if pair[0] != pair[1]:
                num_different += 1
                print(f"== {part}: {title}")
                print("\n".join(difflib.unified_diff(*pair, "before", "after", lineterm="", n=0)))
    print(f"{sum(map(len, old.values()))} recorded, {num_different} differ")
    return int(num_different > 0)


if __name__ == "__main__":
    sys.path.insert(0, str(PACKAGE))
    if sys.argv[1] == "record":
        record(Path(sys.argv[2]))
    else:
        sys.exit(compare(Path(sys.argv[2]), Path(sys.argv[3])))

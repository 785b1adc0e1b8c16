"""Command lines that cannot work end with status 2 and one sentence, before any work and without a traceback."""

# ruff: noqa: E501 - a table

from __future__ import annotations

import os
import random
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from jaxprune.cli import main, make_parser

LONG = "9" * 400
VERY_LONG = "9" * 5000

FILES = {
    "empty.npz": b"",
    "text.npz": b"hello",
    "zipped.npz": b"PK\x03\x04" + bytes(40),
    "to.json": b'{"config": {}, "settings": {"task_options": 5}}',
    "deep.json": b"[" * 100_000,
    "deep.toml": b"a = " + b"[" * 100_000,
    "list.json": b"[]",
    "large.toml": b"population = " + LONG.encode(),
    "larger.toml": b"population = " + VERY_LONG.encode(),
    "inf.toml": b"bases = inf",
    "wide.toml": "population = 8".encode("utf-16"),
    "binary.txt": b"\xff\xfe\x00",
    "thesis.csv": b"years of work",
    "plain": b"",
    "broken.py": b"def make(:\n",
    "ends.py": b"import sys; sys.exit(3)\n",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lines")
    for name, content in FILES.items():
        (folder / name).write_bytes(content)
    np.save(folder / "array.npy", np.zeros((4, 5)))
    (folder / "array.npy").rename(folder / "misnamed.npz")
    (folder / "folder.npz").mkdir()
    return folder


OWN = "score l1 --network own_networks:seeded --data"
LINES = {
    "": "list nothing",
    # modules of one's own
    "needs to look like module:function": [
        "score l1 --network ..:x --data digits", "score l1 --network .a:x --data digits", "score l1 --task ..:x",
        "score l1 --network a..b:x --data digits", "score l1 --network a:b.c --data digits", "compare --task 1:x",
        "evolve --task a-b:x", "explain --network ..:x", "prune --task .:x", "calibrate --task ..:x",
        "compare --function l1 --task ..:x",
    ],
    "got a built-in one": ["score l1 --network math:sqrt --data digits", "score l1 --task math:sqrt"],
    "got the class int": ["score l1 --network builtins:int --data digits"],
    "needs a function without arguments": ["score l1 --task own_networks:seeded", "score l1 --task jaxprune:Task"],
    "ends the program (status 3)": ["score l1 --network ends:make --data digits", "compare --task ends:make"],
    # numbers
    "at most 64 bits": [
        f"{command} --seed {seed}"
        for command in ("score l1", "explain l1", "prune", "compare", "calibrate", "compare --function l1")
        for seed in ("18446744073709551616", "9223372036854775808", "-9223372036854775809", LONG, VERY_LONG)
    ],
    "at most 32 bits": [
        f"score l1 --base {LONG}", "prune --base 99999999999", f"compare --bases {VERY_LONG}", f"compare --draws {LONG}",
        f"compare --repeats {LONG}", f"calibrate --oracle {LONG}", f"prune --multiple-of {LONG}",
        f"score l1 --num-images {LONG}",
    ],
    "needs a number below 10000": ["score l1 --base 10000", "prune --base 2147483647"],
    "EvolveConfig needs": [
        f"evolve --population {LONG}", "evolve --population 4294967296", f"evolve --generations {LONG}",
        f"evolve --evaluations {LONG}", f"evolve --seed {LONG}", "evolve --seed 4294967296", "evolve --config large.toml",
    ],
    "invalid int value": [f"evolve --population {VERY_LONG}", "evolve --population ''"],
    "a whole number below 2**31": [
        f"evolve --bases {LONG}", f"evolve --epochs {VERY_LONG}", "compare --epochs 2147483648", "evolve --config inf.toml",
    ],
    "a time needs to look like": [f"evolve --time {VERY_LONG}", "evolve --time 1e400", "evolve --time nan"],
    "rounds must be at least 1, got 0": [
        "compare --kept-fraction 0.5 --rounds 0", "evolve --kept-fraction 0.5 --rounds 0",
        "compare --task cli_tasks:small --rounds 0", "calibrate --task cli_tasks:small --rounds 0",
    ],
    "must be in (0, 1], got": [
        f"prune --{share}-fraction {number}" for share in ("kept", "macs", "params") for number in ("nan", "0", "inf", "-1")
    ],
    # options that would be ignored
    "needs a share to keep": [
        "prune --multiple-of 4", "prune --scope global", "prune --scope group", "prune --kept-counts 4 --multiple-of 4",
        "prune --kept-counts 4 --scope global",
    ],
    "needs a whole number >= 1, got": ["prune --kept-fraction 0.5 --multiple-of 0", "prune --multiple-of=-4 --kept-fraction 1"],
    "--batching needs no base networks and takes no --bases, --oracle,": ["calibrate --batching --bases 2 --oracle 3"],
    "chunk is for vmap, got 4 with 'scan'": ["evolve --task cli_tasks:small --batching scan --chunk 4"],
    "chunk needs to be a whole number, 1 or more, got 0": ["evolve --task cli_tasks:small --chunk 0"],
    "needs each group once": ["prune --task cli_tasks:small --kept-counts first.kernel=4,first.kernel=5"],
    "needs each task once": [
        "evolve --bases digits=3,digits=4", "compare --finetune digits=slim,digits=masked",
        "compare --task cli_tasks:small --epochs small=2,cli_tasks:small=3",
    ],
    "needs one value, but is given twice": [
        "score l1 --task digits --task fashion", "prune --task digits --task digits", "prune --metric l1 --metric l2",
        "explain l1 --network lenet5 --network vgg16", "score l1 --output a.csv --output b.csv", "evolve --run-dir a --run-dir b",
    ],
    "tasks need different names": [
        f"{command} --task digits --task digits" for command in ("evolve", "compare", "calibrate", "compare --function l1")
    ],
    "--bases-dir needs a task": [f"{OWN} digits --bases-dir b"],
    "Give only one of --code, --only and --json": ["explain l1 --code jax --only type", "explain l1 --json --only type"],
    "prints what no network changes": ["explain l1 --code jax --task digits", "explain l1 --only type --network lenet5 --data digits"],
    "needs a network, got none": ["explain l1 --seed 3", "explain l1 --bases-dir b"],
    "needs a formula, got none": ["explain --network lenet5 --seed 3", "explain --network lenet5 --bases-dir b"],
    "got --json as well": ["explain --network lenet5 --why conv1 --json"],
    "shows everything already": ["explain --network lenet5 --every --json", "explain --network lenet5 --every --why conv1"],
    "--overwrite needs a file to replace": ["score l1 --overwrite", "explain l1 --overwrite", "explain --network lenet5 --overwrite"],
    "needs a path, got an empty text": [
        "prune --out ''", "compare --out ''", "evolve --run-dir ''", "report ''", "score l1 --bases-dir ''", "evolve --config ''",
    ],
    # files that are read
    "data needs a NumPy archive": [f"{OWN} {name}.npz" for name in ("empty", "text", "zipped", "misnamed")]
    + ["explain --network lenet5 --data empty.npz"],
    "folder.npz: a folder": [f"{OWN} folder.npz"],
    "several processes need --": ["evolve --distributed", "evolve --coordinator here:1 --process-id 0"],
    "needs to be HOST:PORT of process 0": ["evolve --coordinator here --num-processes 2 --process-id 0"],
    "--join-timeout needs to be at least 1 second": ["evolve --join-timeout 0"],
    "task_options of a run need options by name": ["evolve --config to.json"],
    "nested too deep": ["evolve --config deep.json", "evolve --config deep.toml"],
    "settings by name, got a list": ["evolve --config list.json"],
    "got an error at": ["evolve --config larger.toml"],
    "not a text file": ["evolve --config wide.toml", "score --formulas binary.txt"],
    "--input needs sizes": [f"explain --network lenet5 --input {text}" for text in ("1x²", "1x٣", f"1x{LONG}", "x", "1")],
    "needs more memory than there is": ["explain --network lenet5 --input 1x999999x999999x1"],
    # files that would be written
    "Cannot write to plain": ["prune --out plain", "compare --out plain/x", "calibrate --out plain", "score l1 --output plain/a.csv",
        "explain l1 --tree plain/a.png", "explain --network lenet5 --figure plain/a.png"],
    "plain: Not a directory": [
        f"{command} --bases-dir plain" for command in ("score l1", "prune", "compare", "calibrate", "explain l1 --task digits")
    ],
    "it is a folder": ["explain l1 --tree .", "explain l1 --tree folder.npz"],
    "there is thesis.csv already": ["score l1 --output thesis.csv", "explain l1 --tree thesis.csv"],
    "each result needs a file of its own": ["explain l1 --tree a.png --figure ./A.png --network lenet5 --data digits"],
    "--output needs another file": ["score --formulas thesis.csv --output thesis.csv --overwrite"],
    "File name too long": [f"prune --out {'a' * 300}", f"score l1 --output {'a' * 300}.csv", f"report {'a' * 300}"],
}  # fmt: skip
TABLE = [
    (line, message)
    for message, lines in LINES.items()
    for line in ([lines] if isinstance(lines, str) else lines)
]


@pytest.mark.parametrize(("line", "message"), TABLE, ids=[line[:60] for line, _ in TABLE])
def test_a_command_line_that_cannot_work_is_refused_in_one_sentence(
    line, message, folder, monkeypatch, capsys
):
    monkeypatch.chdir(folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    try:
        status = main(shlex.split(line))
    except SystemExit as stop:
        status = stop.code
    shown = capsys.readouterr()
    sentences = [text for text in shown.err.splitlines() if ": error: " in text]
    assert status == 2 and not shown.out
    assert len(sentences) == 1 and message in sentences[0], shown.err
    assert "Traceback" not in shown.err and len(shown.err) < 1200
    assert before == {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    assert not (folder / "runs").exists()


OWN_CODE = """
import math

def helper():
    return {}["x"]

def make(rngs):
    return helper()

def task():
    return math.sqrt(-1)
"""


@pytest.mark.parametrize(
    ("line", "shown", "error"),
    [
        ("score l1 --network {}:make --data digits", ["in make", "in helper"], "KeyError: 'x'"),
        ("explain --network {}:make", ["in make", "in helper"], "KeyError: 'x'"),
        ("compare --task {}:task", ["in task"], "ValueError: math domain error"),
        ("evolve --task {}:task", ["in task"], "ValueError: math domain error"),
    ],
)
def test_an_error_in_a_users_module_shows_its_own_frames_only(
    line, shown, error, tmp_path, monkeypatch, capsys
):
    (tmp_path / "mine_that_fails.py").write_text(OWN_CODE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "mine_that_fails", raising=False)
    assert main(line.format("mine_that_fails").split()) == 2
    told = capsys.readouterr().err
    assert told.rstrip().endswith(error)
    assert all(part in told for part in shown)
    assert told.count("File ") == told.count("mine_that_fails.py") == len(shown)


def test_a_users_module_that_cannot_be_imported_shows_where(tmp_path, monkeypatch, capsys):
    (tmp_path / "mine_misspelt.py").write_text("x = 1\nx = undefined\n")
    (tmp_path / "mine_unparsed.py").write_text("def make(:\n")
    monkeypatch.syspath_prepend(tmp_path)
    for name, error in (("misspelt", "NameError: name 'undefined' is not"), ("unparsed", "SyntaxError: ")):
        assert main(["score", "l1", "--network", f"mine_{name}:make", "--data", "digits"]) == 2
        told = capsys.readouterr().err
        assert error in told and told.count("File ") == told.count(f"mine_{name}.py") == 1


def jaxprune(line: str, root, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs a line of bash in which `jaxprune` is this version."""
    shell = f'jaxprune() {{ {sys.executable} -m jaxprune.cli "$@"; }}; {line}'
    settings = {**os.environ, "PYTHONPATH": str(root), **environment}
    return subprocess.run(["bash", "-c", shell], capture_output=True, text=True, env=settings, check=False)


def test_a_closed_or_full_output_is_named(root):
    closed = jaxprune("jaxprune list presets >&-", root)
    assert closed.returncode == 2 and "the result needs a standard output, got a closed one" in closed.stderr
    full = jaxprune("jaxprune list presets > /dev/full", root)
    assert full.returncode == 2
    assert full.stderr == (
        "jaxprune list: error: Cannot read or write the standard output: No space left on device. Free some space, or "
        "choose another disk.\n"
    )


def test_a_closed_error_stream_is_no_error(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stderr", None)
    assert main(["list", "presets"]) == 0
    assert "quick" in capsys.readouterr().out


def test_signs_that_the_terminal_lacks_are_replaced(root):
    line = "from jaxprune.commands.output import prepare_streams, say; prepare_streams(); say('1 ± 2 × 3 ≤ 7 語')"
    shown = jaxprune(f'{sys.executable} -c "{line}"', root, PYTHONIOENCODING="ascii")
    assert shown.stdout == "1 +- 2 x 3 <= 7 ?\n" and not shown.stderr


VALUES = (
    "", "0", "-1", "1", "nan", "inf", "1e400", LONG, VERY_LONG, "x", "..", "/", "/proc/x", "plain", "a" * 300, "=", ",",
    "digits=1,digits=2", "cli_tasks:small", "cli_tasks:no_task", "own_networks:needs_more", "..:x", "math:sqrt", "l1", "mX",
    "sum(", "empty.npz", "misnamed.npz", "to.json", "deep.json", "ü", "\udcff", "\x00", "a\nb", "%s", "{}", "1x5", "0.5", "1h",
    "lenet5", "first.kernel", "random", "jax", "none",
)  # fmt: skip
STARTS = {
    "score": [["l1"], ["l1", "--task", "cli_tasks:small"], ["l1", "--network", "own_networks:seeded"]],
    "explain": [["l1"], [], ["--network", "own_networks:seeded", "--input", "1x5"]],
    "evolve": [["--task", "digits"]],
    "report": [["nowhere"], ["plain"]],
    "list": [[], ["presets"], ["x"]],
    "doctor": [["--no-test"]],
    **{
        command: [["--task", "cli_tasks:small"]]
        for command in ("prune", "compare", "calibrate", "sensitivity")
    },
}


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_no_random_command_line_ends_in_a_traceback(seed, folder, tmp_path, monkeypatch, capsys):
    class WorkBegins(BaseException):
        pass

    def begin(*arguments: object, **settings: object) -> None:
        raise WorkBegins

    monkeypatch.setattr("jaxprune.search.search.evolve_problem", begin)
    monkeypatch.setattr("jaxprune.tasks.base_networks.BasePool.bases", property(begin))
    shutil.copytree(folder, tmp_path / "lines")
    monkeypatch.chdir(tmp_path / "lines")
    rng = random.Random(seed)
    for _ in range(100):
        command = rng.choice(list(STARTS))
        choices = next(a for a in make_parser([command])._actions if a.dest == "command").choices
        options = [
            action for action in choices[command]._actions if not {"-h", "--debug"} & {*action.option_strings}
        ]
        words = [command, *rng.choice(STARTS[command])]
        for action in rng.choices([action for action in options if action.option_strings] or [None], k=2):
            if action is not None:
                value = rng.choice([*(action.choices or ()), *VALUES])
                words.append(action.option_strings[0] + (f"={value}" if action.nargs != 0 else ""))
        try:
            status = main(words)
        except SystemExit as stop:
            status = stop.code
        except WorkBegins:
            continue
        told = capsys.readouterr().err
        assert status in (0, 1, 2), words
        assert "Traceback" not in told and (status < 2 or ": error: " in told), words
    assert Path("thesis.csv").read_bytes() == FILES["thesis.csv"]

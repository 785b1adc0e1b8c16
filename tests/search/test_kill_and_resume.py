"""Real runs, killed at random moments and resumed, against one that was left alone."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

COMMAND = "evolve --task tiny_task:tiny_task --generations 3 --population 4 --no-report".split()
FINETUNE = "--fitness finetune".split()
LANDSCAPE = "--plans 12 --leaders 8 --force".split()


def start(run_dir: Path, *arguments: str) -> subprocess.Popen[str]:
    paths = [str(Path(__file__).parents[1] / "support"), os.environ.get("PYTHONPATH", "")]
    return subprocess.Popen(
        [sys.executable, "-m", "jaxprune.cli", *COMMAND, "--run-dir", str(run_dir), *arguments],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> None:
    output, _ = process.communicate()
    assert process.returncode == 0, output


def wait_for_lines(process: subprocess.Popen[str], path: Path, count: int) -> None:
    """Returns once the run has written so many lines of a file, or has ended."""
    while process.poll() is None and not (path.exists() and path.read_bytes().count(b"\n") >= count):
        time.sleep(0.01)


def kill_at(run_dir: Path, path: Path, count: int, *arguments: str) -> None:
    """Goes on with a run, and kills it when a file has so many lines."""
    process = start(run_dir, "--resume", *arguments)
    wait_for_lines(process, path, count)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL, "it ended before it was killed"


def bank_of(run_dir: Path) -> Path:
    """The file of the bank of a finished run."""
    (path,) = (run_dir / "bases").glob("*/bank-search.jsonl")
    return path


def assert_same(run_dir: Path, whole: Path) -> None:
    assert journal_of(run_dir) == journal_of(whole)
    for name in ("archive.json", "hall_of_fame.csv"):
        assert (run_dir / name).read_text() == (whole / name).read_text()


def journal_of(run_dir: Path) -> list[dict[str, object]]:
    """The journal's lines without what depends on the clock."""
    lines = [json.loads(line) for line in (run_dir / "journal.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if "seconds" not in name} for line in lines]


@pytest.mark.slow
def test_a_run_killed_five_times_ends_like_one_left_alone(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    finish(start(whole, *FINETUNE))
    num_lines = len(journal_of(whole))
    for moment in sorted(random.Random(0).sample(range(1, num_lines - 10), 5)):
        kill_at(killed, killed / "journal.jsonl", moment, *FINETUNE)
    finish(start(killed, "--resume", *FINETUNE))
    assert_same(killed, whole)


@pytest.mark.slow
def test_a_run_killed_in_bank_search_and_verification_ends_like_one_left_alone(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    finish(start(whole, *LANDSCAPE))
    kinds = [line["kind"] for line in journal_of(whole)]
    bank = bank_of(whole)
    verification, num_plans = kinds.index("trial"), bank.read_bytes().count(b"\n")
    assert num_plans == 24 and kinds.count("trial") > 12
    for count in (3, 15):
        kill_at(killed, killed / bank.relative_to(whole), count, *LANDSCAPE)
    for count in (9, kinds.index("generation") + 3, verification + 4, verification + 9):
        kill_at(killed, killed / "journal.jsonl", count, *LANDSCAPE)
    finish(start(killed, "--resume", *LANDSCAPE))
    assert_same(killed, whole)
    ours, theirs = (
        [json.loads(line) for line in file.read_text().splitlines()]
        for file in (bank, killed / bank.relative_to(whole))
    )
    for line in (*ours, *theirs):
        del line["seconds"], line["check"]
    assert ours == theirs  # no plan was fine-tuned twice


@pytest.mark.slow
@pytest.mark.parametrize("fitness", [FINETUNE, LANDSCAPE], ids=["finetune", "landscape"])
def test_the_same_seed_gives_the_same_run_twice(tmp_path: Path, fitness: list[str]) -> None:
    for name in ("first", "second"):
        finish(start(tmp_path / name, *fitness))
    assert_same(tmp_path / "first", tmp_path / "second")


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_hundred_kills_at_random_moments_change_nothing(tmp_path: Path) -> None:
    """Of a toy search, so that kills come between and inside writes rather than during training."""
    toy = Path(__file__).parents[1] / "support" / "toy_problem.py"
    rng = random.Random(0)

    def toy_run(run_dir: Path) -> subprocess.Popen[bytes]:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        return subprocess.Popen([sys.executable, str(toy), str(run_dir), "0.002"], env=environment)

    assert toy_run(tmp_path / "whole").wait() == 0
    num_kills = num_finished = 0
    while num_kills < 100:
        run_dir = tmp_path / str(num_finished)
        before = lines_of(run_dir)
        process = toy_run(run_dir)
        while process.poll() is None and lines_of(run_dir) == before:
            time.sleep(0.002)
        time.sleep(rng.uniform(0.0, 0.15))
        process.send_signal(signal.SIGKILL)
        if process.wait() == 0:
            assert_same(run_dir, tmp_path / "whole")
            num_finished += 1
        else:
            num_kills += 1
    assert toy_run(tmp_path / str(num_finished)).wait() == 0
    assert_same(tmp_path / str(num_finished), tmp_path / "whole")


def lines_of(run_dir: Path) -> int:
    """How many lines the journal has."""
    path = run_dir / "journal.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0

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

COMMAND = (
    "evolve",
    "--task",
    "tiny_task:tiny_task",
    "--generations",
    "3",
    "--population",
    "4",
    "--no-report",
)


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


def wait_for_lines(process: subprocess.Popen[str], journal: Path, count: int) -> None:
    """Returns once the run has written so many lines, or has ended."""
    while process.poll() is None and not (journal.exists() and journal.read_bytes().count(b"\n") >= count):
        time.sleep(0.01)


def journal_of(run_dir: Path) -> list[dict[str, object]]:
    """The journal's lines without what depends on the clock."""
    lines = [json.loads(line) for line in (run_dir / "journal.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if "seconds" not in name} for line in lines]


@pytest.mark.slow
def test_a_run_killed_five_times_ends_like_one_left_alone(tmp_path: Path) -> None:
    finish(start(tmp_path / "whole"))
    num_lines = len(journal_of(tmp_path / "whole"))
    for moment in sorted(random.Random(0).sample(range(1, num_lines - 10), 5)):
        process = start(tmp_path / "killed", "--resume")
        wait_for_lines(process, tmp_path / "killed" / "journal.jsonl", moment)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL, "it ended before it was killed"
    finish(start(tmp_path / "killed", "--resume"))
    assert journal_of(tmp_path / "killed") == journal_of(tmp_path / "whole")
    for name in ("archive.json", "hall_of_fame.csv"):
        assert (tmp_path / "killed" / name).read_text() == (tmp_path / "whole" / name).read_text()


@pytest.mark.slow
def test_the_same_seed_gives_the_same_run_twice(tmp_path: Path) -> None:
    for name in ("first", "second"):
        finish(start(tmp_path / name))
    assert journal_of(tmp_path / "first") == journal_of(tmp_path / "second")
    assert (tmp_path / "first" / "archive.json").read_text() == (
        tmp_path / "second" / "archive.json"
    ).read_text()

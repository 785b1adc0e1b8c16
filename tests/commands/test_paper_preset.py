"""The preset `paper` on its own tasks, scaled down, on tiny sets in the real format: whole, and after a kill."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from prepared_data import write_prepared

from jaxprune.cli import main
from jaxprune.search.journal import read_journal, without_times

TINY = "evolve --preset paper --scale 0.01 --population 3 --quiet".split()
SEARCH = "--generations 2 --elites 1 --extra-bases 1".split()
SHORT_SEARCH = "--generations 1 --elites 0 --extra-bases 0".split()
LENET = "--task mnist-lenet5 --no-report".split()


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One batch of training images of each set, and a few for validation and test."""
    folder = tmp_path_factory.mktemp("tfds")
    write_prepared("mnist", folder, num_train=250, num_test=20)
    write_prepared("cifar10", folder, num_train=160, num_test=20)
    return folder


def lines_of(run_dir: Path) -> list[dict[str, object]]:
    return [without_times(line) for line in read_journal(run_dir / "journal.jsonl")]


def trials_of(run_dir: Path) -> dict[str, set[int]]:
    """Task -> generations in which networks were fine-tuned."""
    found: dict[str, set[int]] = {}
    for line in lines_of(run_dir):
        if line["kind"] == "trial":
            found.setdefault(str(line["task"]), set()).add(int(str(line["generation"])))
    return found


def test_the_loop_of_the_preset_runs_in_rounds_on_a_task_of_ones_own(tmp_path: Path) -> None:
    task = "--task cli_tasks:small --kept-fraction 0.25 --rounds 2 --no-report".split()
    assert main([*TINY, *SEARCH, *task, "--run-dir", str(tmp_path)]) == 0
    assert trials_of(tmp_path) == {"small": {0, 1, 2}}
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["settings"]["preset"], config["settings"]["task_options"]["scale"]) == ("paper", 0.01)
    search = config["config"]
    assert [search[name] for name in ("variation", "seeds", "joint")] == ["paper", "paper", "geometric"]


@pytest.mark.slow
def test_the_preset_searches_on_lenet(data_dir: Path, tmp_path: Path) -> None:
    where = ["--data-dir", str(data_dir), "--run-dir", str(tmp_path)]
    assert main([*TINY, *SHORT_SEARCH, *LENET, *where]) == 0
    assert trials_of(tmp_path) == {"mnist-lenet5": {0, 1}}
    assert str(data_dir) not in (tmp_path / "config.json").read_text()  # it is of the machine, not of the run


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_whole_preset_runs_on_both_tasks_and_reports(data_dir: Path, tmp_path: Path) -> None:
    where = ["--data-dir", str(data_dir), "--run-dir", str(tmp_path)]
    few = "--generations 2 --elites 0 --extra-bases 0 --final-bases 1".split()
    assert main([*TINY, *few, *where]) == 0
    assert trials_of(tmp_path) == {"mnist-lenet5": {0, 1, 2}, "cifar10-vgg16": {0, 1, 2}}
    report = (tmp_path / "report.md").read_text()
    assert "mnist-lenet5" in report and "cifar10-vgg16" in report
    opened = [json.loads((tmp_path / f"test-{name}.json").read_text()) for name in trials_of(tmp_path)]
    assert [record["num_examples"] for record in opened] == [20, 20]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_killed_run_of_the_preset_ends_like_one_left_alone(data_dir: Path, tmp_path: Path) -> None:
    def start(run_dir: Path, *more: str) -> subprocess.Popen[bytes]:
        command = [*TINY, *SEARCH, *LENET, "--data-dir", str(data_dir), "--run-dir", str(run_dir), *more]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        return subprocess.Popen([sys.executable, "-m", "jaxprune.cli", *command], env=environment)

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert start(whole).wait() == 0
    num_lines = len(lines_of(whole))
    for count in (num_lines // 3, 2 * num_lines // 3):
        process, journal = start(killed, "--resume"), killed / "journal.jsonl"
        while process.poll() is None and not (
            journal.exists() and journal.read_bytes().count(b"\n") >= count
        ):
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, "it ended before it was killed"
    assert start(killed, "--resume").wait() == 0
    assert lines_of(killed) == lines_of(whole)
    assert (killed / "archive.json").read_text() == (whole / "archive.json").read_text()

"""Real processes of one search: the journal of one process, and a clear end when one of them dies, fails or stops."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from processes import assert_same, ends, start_toys
from toy_problem import SMALL, ToyProblem

from jaxprune.hosts.watching import EXIT_LOST
from jaxprune.search.search import evolve_problem

AGAIN = (
    "Start all processes again with --resume (resume=True): at most one block of fine-tunings is run again."
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of one process."""
    run_dir = tmp_path_factory.mktemp("whole") / "run"
    evolve_problem(ToyProblem(), SMALL, run_dir)
    return run_dir


def wait_for_trials(process: subprocess.Popen[str], count: int) -> None:
    """Waits until a process has run so many trials."""
    assert process.stdout is not None
    for _ in range(count):
        assert process.stdout.readline()


def stopped_by(
    run_dir: Path, act: Callable[[list[subprocess.Popen[str]]], None], count: int = 2
) -> list[tuple[int, str]]:
    """How processes end if something is done to them in the middle."""
    processes = start_toys(run_dir, count, "0.02", "60", "3")
    wait_for_trials(processes[1], 10)
    began = time.monotonic()
    act(processes)
    found = ends(processes)
    assert time.monotonic() - began < 25
    return found


@pytest.mark.parametrize("count", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_several_processes_write_the_run_of_one(tmp_path: Path, whole: Path, count: int) -> None:
    processes = start_toys(tmp_path / "run", count)
    outputs = [process.communicate(timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [0] * count, outputs
    assert_same(tmp_path / "run", whole)
    num_run = [len(output.splitlines()) for output, _ in outputs]
    assert min(num_run) > 0.8 * max(num_run)


def test_after_the_death_of_a_worker_another_number_of_processes_goes_on(tmp_path: Path, whole: Path) -> None:
    run_dir = tmp_path / "run"
    found = stopped_by(run_dir, lambda processes: processes[1].kill())
    assert [status for status, _ in found] == [EXIT_LOST, -signal.SIGKILL]
    (line,) = found[0][1].splitlines()
    assert line.startswith("process 1 on ") and line.endswith(f" died. {AGAIN}")
    before = run_dir.joinpath("journal.jsonl").read_bytes()
    evolve_problem(ToyProblem(), SMALL, run_dir, resume=True)
    assert run_dir.joinpath("journal.jsonl").read_bytes().startswith(before)
    assert_same(run_dir, whole)


@pytest.mark.slow
def test_after_the_death_of_the_leader_two_processes_go_on_as_three(tmp_path: Path, whole: Path) -> None:
    run_dir = tmp_path / "run"
    found = stopped_by(run_dir, lambda processes: processes[0].kill())
    assert [status for status, _ in found] == [-signal.SIGKILL, EXIT_LOST]
    assert found[1][1].splitlines()[-1].endswith(f" died. {AGAIN}")
    assert [status for status, _ in ends(start_toys(run_dir, 3))] == [0, 0, 0]
    assert_same(run_dir, whole)


def test_a_signal_to_a_worker_saves_and_stops_all(tmp_path: Path, whole: Path) -> None:
    run_dir = tmp_path / "run"
    found = stopped_by(run_dir, lambda processes: processes[1].send_signal(signal.SIGTERM))
    assert [status for status, _ in found] == [143, 143]
    assert "Everything is saved" in found[0][1]
    assert "stopped, because process 0 on " in found[1][1]
    evolve_problem(ToyProblem(), SMALL, run_dir, resume=True)
    assert_same(run_dir, whole)


@pytest.mark.slow
def test_signals_to_all_processes_stop_them_as_one_does(tmp_path: Path) -> None:
    def act(processes: list[subprocess.Popen[str]]) -> None:
        for process in reversed(processes):
            process.send_signal(signal.SIGTERM)

    assert [status for status, _ in stopped_by(tmp_path / "run", act)] == [143, 143]


@pytest.mark.slow
def test_an_error_in_a_worker_ends_all_and_is_not_tried_again(tmp_path: Path) -> None:
    processes = start_toys(tmp_path / "run", 2, FAIL_AT="1:7")
    (first, error), (second, its_own) = ends(processes)
    assert (first, second) == (2, 2)
    assert "InfrastructureError: process 1 on " in error and "failed: the toy is broken" in error
    assert its_own == "ValueError: the toy is broken\n"


@pytest.mark.slow
def test_a_process_that_never_starts_ends_the_others(tmp_path: Path) -> None:
    ((status, error),) = ends(start_toys(tmp_path / "run", 2, "0", "2", only=[0]))
    assert status == EXIT_LOST
    assert "process 0 of 2 waited 2 s (--join-timeout)" in error and "not all 2 processes came" in error


def test_a_leader_that_cannot_be_reached_is_told(tmp_path: Path) -> None:
    ((status, error),) = ends(start_toys(tmp_path / "run", 2, "0", "1", only=[1]))
    assert status == EXIT_LOST
    assert "process 1 of 2 needs process 0 at 127.0.0.1:" in error and "got no answer within 1 s" in error

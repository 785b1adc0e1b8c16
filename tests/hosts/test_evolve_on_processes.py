"""`jaxprune evolve` on several processes, base networks, banks and report among them, against one process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from processes import TIMES, assert_same, ends, free_port, start

from jaxprune.hosts.watching import EXIT_LOST

OPTIONS = (
    "--task normed_task:normed --unseen cli_tasks:small --generations 1 --population 4 --plans 12 --leaders 4 "
    "--force --yes --quiet"
).split()
ENVIRONMENT = {
    "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=2",
    "NPROC": "8",  # large matrix products are split by the size of XLA's pool
}


def evolve(
    run_dir: Path, count: int, *words: str, only: Sequence[int] | None = None
) -> list[subprocess.Popen[str]]:
    """Starts a run on so many processes, or some of them."""
    command = ["-m", "jaxprune.cli", "evolve", *OPTIONS, "--run-dir", str(run_dir), *words]
    if count == 1:
        return [start(command, ENVIRONMENT)]
    several = ["--coordinator", f"127.0.0.1:{free_port()}", "--num-processes", str(count)]
    ranks = range(count) if only is None else only
    return [start([*command, *several, "--process-id", str(rank)], ENVIRONMENT) for rank in ranks]


def finals_of(run_dir: Path) -> Any:
    """The final comparison without times."""

    def timeless(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: timeless(part) for name, part in value.items() if name not in (*TIMES, "check")}
        return [timeless(part) for part in value] if isinstance(value, list) else value

    return timeless(json.loads((run_dir / "final.json").read_text()))


# A chunk so small that the bank is several blocks, between which processes can die.
WAYS = {"vmap": ("--batching", "vmap", "--chunk", "2"), "scan": ("--batching", "scan")}


@pytest.fixture(scope="module", params=list(WAYS))
def whole(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, tuple[str, ...]]:
    """The run of one process, and the options by which it batched networks."""
    run_dir = tmp_path_factory.mktemp("whole") / "run"
    assert [status for status, _ in ends(evolve(run_dir, 1, *WAYS[request.param]), 280)] == [0]
    return run_dir, WAYS[request.param]


def wait_for(processes: Sequence[subprocess.Popen[str]], path: str, run_dir: Path, num_lines: int) -> None:
    """Waits until a file that matches has so many lines more."""

    def lines() -> int:
        return sum(file.read_bytes().count(b"\n") for file in run_dir.glob(path))

    before = lines()
    while lines() < before + num_lines:
        assert all(process.poll() is None for process in processes)
        time.sleep(0.02)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("count", [2, 3])
def test_search_and_report_are_those_of_one_process(
    tmp_path: Path, whole: tuple[Path, tuple[str, ...]], count: int
) -> None:
    one, batching = whole
    run_dir = tmp_path / "run"
    found = ends(evolve(run_dir, count, *batching), 280)
    assert [status for status, _ in found] == [0] * count, found
    for rank, (_, error) in list(enumerate(found))[1:]:
        first, last = error.splitlines()
        assert first.startswith(f"process {rank} on ") and f"one of {count} processes" in first
        assert int(last.split(" trained ")[1].split()[0]) > 20
    assert_same(run_dir, one)
    assert finals_of(run_dir) == finals_of(one)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_kills_and_signals_in_bank_and_search_change_nothing(
    tmp_path: Path, whole: tuple[Path, tuple[str, ...]]
) -> None:
    one, batching = whole
    run_dir = tmp_path / "run"

    def go_on(count: int) -> list[subprocess.Popen[str]]:
        return evolve(run_dir, count, *batching, "--resume")

    processes = go_on(3)
    wait_for(processes, "bases/*/bank-search.jsonl", run_dir, 3)
    processes[2].kill()
    assert [status for status, _ in ends(processes)] == [EXIT_LOST, EXIT_LOST, -signal.SIGKILL]

    processes = go_on(2)
    wait_for(processes, "bases/*/bank-search.jsonl", run_dir, 1)
    processes[0].kill()
    assert [status for status, _ in ends(processes)] == [-signal.SIGKILL, EXIT_LOST]

    processes = go_on(2)
    wait_for(processes, "journal.jsonl", run_dir, 9)
    processes[1].send_signal(signal.SIGTERM)
    (first, saved), (second, told) = ends(processes)
    assert (first, second) == (143, 143)
    assert "Go on with: jaxprune evolve" in saved
    assert "process 0 on " in told.splitlines()[1]

    assert [status for status, _ in ends(go_on(1), 280)] == [0]
    assert_same(run_dir, one)
    assert finals_of(run_dir) == finals_of(one)


PROGRAM = """
import sys
import jaxprune as jp
from jaxprune.hosts.joining import find_group, joined
from normed_task import normed
config = jp.EvolveConfig(generations=1, population=3, fitness="finetune")
with joined(find_group(True)) as hosts:
    result = jp.evolve([normed()], config, sys.argv[1], hosts=hosts)
    print("leads" if hosts.is_leader else "works", result.stopped)
"""


@pytest.mark.slow
def test_the_same_program_of_python_runs_on_all_processes(tmp_path: Path) -> None:
    address = {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{free_port()}", "JAX_NUM_PROCESSES": "2"}
    ranks = ({**ENVIRONMENT, **address, "JAX_PROCESS_ID": str(rank)} for rank in range(2))
    processes = [start(["-c", PROGRAM, str(tmp_path / "run")], environment) for environment in ranks]
    outputs = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert [output for output, _ in outputs] == ["leads generations\n", ""]


@pytest.mark.slow
def test_processes_that_differ_or_see_other_folders_say_so(tmp_path: Path) -> None:
    def both(*words: Sequence[str], data: Sequence[str] = ("0", "0")) -> list[tuple[int, str]]:
        several = ["--coordinator", f"127.0.0.1:{free_port()}", "--num-processes", "2", "--process-id"]
        command = ["-m", "jaxprune.cli", "evolve", *OPTIONS, *several]
        processes = [
            start([*command, str(rank), *more], {**ENVIRONMENT, "ROWS_SEED": seed})
            for rank, (more, seed) in enumerate(zip(words, data, strict=True))
        ]
        return ends(processes)

    run_dir = ["--run-dir", str(tmp_path / "run")]
    for status, error in both([*run_dir, "--seed", "1"], [*run_dir, "--seed", "2"]):
        assert (
            status == 2 and "config.seed is 1 on process 0 on " in error and "but 2 on process 1 on " in error
        )
    for status, error in both(run_dir, run_dir, data=("0", "1")):
        assert status == 2 and "normed.data is " in error and "but " in error
    for status, error in both(run_dir, ["--run-dir", str(tmp_path / "other")]):
        assert status == 2 and f"process 1 on {os.uname().nodename} sees another folder" in error


@pytest.mark.slow
def test_a_second_job_on_the_run_directory_ends_on_all_processes(tmp_path: Path) -> None:
    first = evolve(tmp_path / "run", 1, "--no-report")
    wait_for(first, "events.jsonl", tmp_path / "run", 1)
    found = ends(evolve(tmp_path / "run", 2, "--no-report", "--resume"))
    assert [status for status, _ in found] == [2, 2]
    assert all("in use" in error for _, error in found), found
    first[0].terminate()
    ends(first)

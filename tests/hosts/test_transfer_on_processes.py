"""`jaxprune transfer` on several processes against one: equal rows, and kills and signals that change nothing."""

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
from processes import ends, free_port, start
from toy_transfer import write_archive

from jaxprune.files import CHECK
from jaxprune.hosts.watching import EXIT_LOST

LINE = (
    "-m jaxprune.cli transfer --function l1 --network cli_tasks:SmallNet --recipe adam_short --base-recipe adam_short "
    "--batch-size 20 --kept-fraction 0.5 --against mean(X),mean(X)*2,random"
).split()
"""Two of the functions keep the same channels."""


def transfer(
    folder: Path, count: int, *words: str, devices: int = 1
) -> tuple[Path, list[subprocess.Popen[str]]]:
    """Starts a transfer on so many processes; returns its folder too."""
    folder.mkdir(exist_ok=True)
    data, out = folder / "vectors.npz", folder / "out"
    if not data.exists():
        write_archive(data)
    flag = f"--xla_force_host_platform_device_count={devices}"
    environment = {"XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {flag}", "NPROC": "8"}
    line = [*LINE, "--data", str(data), "--out", str(out), *words]
    if count == 1:
        return out, [start(line, environment)]
    line += ["--coordinator", f"127.0.0.1:{free_port()}", "--num-processes", str(count), "--process-id"]
    return out, [start([*line, str(rank)], environment) for rank in range(count)]


def finished(folder: Path, count: int, *words: str, devices: int = 1) -> tuple[Path, list[str]]:
    """The folder of a transfer that ended well, and the standard error of each process."""
    out, processes = transfer(folder, count, *words, devices=devices)
    found = ends(processes, 280)
    assert [status for status, _ in found] == [0] * count, found
    return out, [error for _, error in found]


def results_of(out: Path) -> list[Any]:
    """The result without times and places, and the records without times."""
    result = json.loads((out / "transfer.json").read_text())
    records = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    kept = {name: result[name] for name in ("rows", "test", "refused", "differences")}
    return [_timeless(kept), sorted(map(str, _timeless(records)))]


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _timeless(part) for name, part in value.items() if name not in ("seconds", CHECK)}
    return [_timeless(part) for part in value] if isinstance(value, list) else value


SHORT = ("--epochs", "1", "--base-epochs", "1")


@pytest.mark.parametrize(
    ("count", "devices", "words"),
    [
        pytest.param(2, 1, ["--bases", "1", "--no-scratch"]),
        pytest.param(3, 2, ["--bases", "4"], marks=pytest.mark.slow),
        pytest.param(2, 4, ["--bases", "2"], marks=pytest.mark.slow),
    ],
)
def test_rows_are_those_of_one_process(
    tmp_path: Path, count: int, devices: int, words: Sequence[str]
) -> None:
    one, _ = finished(tmp_path / "one", 1, *SHORT, *words, devices=devices)
    out, (leader, *workers) = finished(tmp_path / "several", count, *SHORT, *words, devices=devices)
    assert results_of(out) == results_of(one)
    assert "has its result" in leader and "on validation images" in leader
    for rank, error in enumerate(workers, 1):
        *_, first, last = error.splitlines()
        assert first.startswith(f"process {rank} on ") and f"one of {count} processes" in first
        assert int(last.split(" trained ")[1].split()[0]) >= 1
    assert not (out / "training").exists() or not list((out / "training").iterdir())


def wait_for_checkpoint(processes: Sequence[subprocess.Popen[str]], out: Path, pattern: str) -> None:
    """Waits until a training has saved a checkpoint."""
    while not any(path.name.isdigit() for path in (out / "training").glob(f"{pattern}/*")):
        assert all(process.poll() is None for process in processes), ends(processes)
        time.sleep(0.01)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_kills_and_signals_change_nothing(tmp_path: Path) -> None:
    long = ("--bases", "1", "--epochs", "900", "--base-epochs", "2")
    whole, _ = finished(tmp_path / "whole", 1, *long)
    folder = tmp_path / "stopped"

    out, processes = transfer(folder, 2, *long)
    wait_for_checkpoint(processes, out, "0-mean_activation")  # the second row, which the worker trains
    processes[1].kill()
    (status, error), (killed, _) = ends(processes)
    assert (status, killed) == (EXIT_LOST, -signal.SIGKILL)
    assert error.splitlines()[-1].endswith(
        "died. Start all processes again in the same way: trainings go on from their last checkpoints."
    )

    out, processes = transfer(folder, 2, *long)
    wait_for_checkpoint(processes, out, "0-scratch")
    processes[1].send_signal(signal.SIGTERM)
    (first, saved), (second, told) = ends(processes)
    assert (first, second) == (143, 143), (saved, told)
    assert "Start it again in the same way to go on." in saved
    assert "Training was interrupted after" in told and not (out / "transfer.json").exists()

    out, (error,) = finished(folder, 1, *long)
    assert "base 0, scratch: goes on after" in error  # where the other process saved it
    assert results_of(out)[0] == results_of(whole)[0]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_signal_to_the_leader_saves_the_trainings_of_all(tmp_path: Path) -> None:
    long = ("--bases", "2", "--no-scratch", "--epochs", "900", "--base-epochs", "2")
    out, processes = transfer(tmp_path / "stopped", 2, *long)
    wait_for_checkpoint(processes, out, "0-mean_activation")
    processes[0].send_signal(signal.SIGTERM)
    found = ends(processes)
    assert [status for status, _ in found] == [143, 143], found
    assert all("Training was interrupted after" in error for _, error in found), found
    assert len(list((out / "training").iterdir())) == 2


@pytest.mark.slow
def test_processes_that_differ_say_so(tmp_path: Path) -> None:
    address = ["--coordinator", f"127.0.0.1:{free_port()}", "--num-processes", "2", "--process-id"]
    line = [*LINE, "--data", str(write_archive(tmp_path / "vectors.npz")), "--out", str(tmp_path / "out")]
    both = [start([*line, "--seed", str(rank), *address, str(rank)]) for rank in range(2)]
    for status, error in ends(both):
        assert status == 2
        assert "settings.seed is 0 on process 0 on " in error and "but 1 on process 1 on " in error
    assert not (tmp_path / "out").exists()

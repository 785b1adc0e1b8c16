"""Starts the processes of a job on this machine, and compares what they write."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

SUPPORT = Path(__file__).resolve().parent
TOY = str(SUPPORT / "toy_hosts.py")
TIMES = ("seconds", "eta_seconds")


def free_port() -> int:
    """A port that nobody uses at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start(words: Sequence[str], environment: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
    """Starts Python with these words, and with the support modules."""
    paths = [str(SUPPORT.parent.parent), str(SUPPORT), os.environ.get("PYTHONPATH", "")]
    plain = {"PYTHONPATH": os.pathsep.join(paths), "JAX_PLATFORMS": "cpu"}
    return subprocess.Popen(
        [sys.executable, *words],
        env={**os.environ, **plain, **(environment or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def start_toys(
    run_dir: Path, count: int, *words: str, only: Sequence[int] | None = None, **environment: str
) -> list[subprocess.Popen[str]]:
    """Starts the processes of a toy search, or only some of them."""
    port = free_port()
    ranks = range(count) if only is None else only
    return [start([TOY, str(run_dir), str(port), str(count), str(r), *words], environment) for r in ranks]


def ends(processes: Sequence[subprocess.Popen[str]], seconds: float = 60) -> list[tuple[int, str]]:
    """Exit status and standard error of each process."""
    errors = [process.communicate(timeout=seconds)[1] for process in processes]
    return [(process.returncode, error) for process, error in zip(processes, errors, strict=True)]


def journal_of(run_dir: Path) -> list[dict[str, object]]:
    """The journal's lines without what depends on the clock."""
    lines = map(json.loads, (run_dir / "journal.jsonl").read_text().splitlines())
    return [{name: value for name, value in line.items() if name not in TIMES} for line in lines]


def assert_same(run_dir: Path, whole: Path) -> None:
    """Two runs have the same journal, archive and candidates."""
    assert journal_of(run_dir) == journal_of(whole)
    for name in ("archive.json", "hall_of_fame.csv"):
        assert (run_dir / name).read_text() == (whole / name).read_text()

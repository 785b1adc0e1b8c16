"""Terminals and pipes that go away while a search runs: it goes on, and its run directory says so."""

from __future__ import annotations

import io
import json
import os
import pty
import signal
import sys
from pathlib import Path
from typing import IO

import pytest
from rich.console import Console
from toy_problem import SMALL, ToyProblem

from jaxprune.cli import main
from jaxprune.report.live_table import LiveTable
from jaxprune.search.problem import Outcome, Trial
from jaxprune.search.search import evolve_problem


def closed_pipe() -> IO[str]:
    """A pipe that nobody reads any more."""
    reading, writing = os.pipe()
    os.close(reading)
    return os.fdopen(writing, "w")


def closed_terminal() -> IO[str]:
    """A terminal whose window was closed."""
    window, terminal = pty.openpty()
    file = os.fdopen(terminal, "w")
    os.close(window)
    return file


def full_disk() -> IO[str]:
    """A file on a full disk."""
    return Path("/dev/full").open("w")


def let_go(file: IO[str]) -> None:
    """Closes a file that is gone, which would fail because of what was not written to it."""
    with Path(os.devnull).open("w") as nowhere:
        os.dup2(nowhere.fileno(), file.fileno())
    file.close()


LOST = {"pipe": closed_pipe, "terminal": closed_terminal, "disk": full_disk}


@pytest.mark.parametrize("name", LOST)
@pytest.mark.parametrize("is_live", [False, True], ids=["lines", "live"])
def test_a_search_goes_on_without_its_output(tmp_path: Path, name: str, is_live: bool) -> None:
    messages: list[str] = []
    file = LOST[name]()
    with LiveTable(
        Console(file=file, force_terminal=is_live), is_live=is_live, on_lost=messages.append
    ) as table:
        table.on_message("a first line")
        result = evolve_problem(ToyProblem(), SMALL.replace(generations=1), tmp_path, callbacks=[table])
    assert result.stopped == "generations"
    assert len(messages) == 1 and messages[0].startswith(
        "nothing is shown any more, because the output is gone ("
    )
    let_go(file)


def test_output_that_is_lost_on_the_way_is_noticed_then(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    messages: list[str] = []
    file = os.fdopen(writing, "w")
    with LiveTable(Console(file=file), on_lost=messages.append) as table:
        table.on_message("one")
        assert not messages and os.read(reading, 10) == b"one\n"
        os.close(reading)
        table.on_message("two")
        table.on_message("three")
        assert len(messages) == 1
    let_go(file)


def test_a_lost_pipe_of_the_command_is_on_record(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        "jaxprune.search.search.make_problem", lambda tasks, config, run_dir, **_: ToyProblem()
    )
    arguments = [
        "evolve",
        "--fitness",
        "finetune",
        "--generations",
        "1",
        "--population",
        "4",
        "--no-report",
        "--run-dir",
    ]
    assert main([*arguments, str(tmp_path / "whole")]) == 0
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", lost := closed_pipe())
        assert main([*arguments, str(tmp_path / "run")]) == 0
    let_go(lost)
    events = [json.loads(line) for line in (tmp_path / "run" / "events.jsonl").read_text().splitlines()]
    assert [event["event"] for event in events] == ["output lost", "started", "stopped"]
    assert "Broken pipe" in events[0]["message"] and not capfd.readouterr().err
    for name in ("archive.json", "hall_of_fame.csv"):
        assert (tmp_path / "run" / name).read_text() == (tmp_path / "whole" / name).read_text()


def test_a_closed_terminal_does_not_stop_a_search(tmp_path: Path) -> None:
    class Hanging(ToyProblem):
        def run(self, trial: Trial) -> Outcome:
            if self.num_calls == 50:
                os.kill(os.getpid(), signal.SIGHUP)
            return super().run(trial)

    before = signal.getsignal(signal.SIGHUP)
    assert evolve_problem(Hanging(), SMALL, tmp_path).stopped == "generations"
    assert signal.getsignal(signal.SIGHUP) is before
    assert '"event": "hung up"' in (tmp_path / "events.jsonl").read_text()


def test_what_a_terminal_cannot_show_becomes_question_marks() -> None:
    content = io.BytesIO()
    file = io.TextIOWrapper(content, encoding="ascii")
    with LiveTable(Console(file=file)) as table:
        table.on_message("runs/größer: ± 3")
    assert content.getvalue() == b"runs/gr??er: ? 3\n"


def test_without_any_output_nothing_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)  # as Python does after `>&-`
    with LiveTable() as table:
        table.on_message("nobody reads this")

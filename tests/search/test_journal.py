"""The journal and the files of a run directory, one failure at a time."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from test_proposals import after
from toy_problem import SMALL, ToyProblem

from jaxprune import files
from jaxprune.files import RunDirectoryError, read_json, write_atomically
from jaxprune.search.journal import Journal, read_journal
from jaxprune.search.problem import Outcome
from jaxprune.search.run_directory import RunDirectory, load_run
from jaxprune.search.search import init_search

TRIAL = {
    "kind": "trial",
    "task": "t",
    "pool": "search",
    "base": 0,
    "repeat": 0,
    "digest": "d",
    "accuracy": 80.0,
}


def opened(path: Path, num_checkpointed: int = 0, messages: list[str] | None = None) -> Journal:
    return Journal(
        path / "journal.jsonl", num_checkpointed, [].append if messages is None else messages.append
    )


def test_lines_come_back(tmp_path: Path) -> None:
    journal = opened(tmp_path)
    assert journal.write({"kind": "header"}) and journal.write({**TRIAL, "seconds": 1.0})
    journal.close()
    assert list(read_journal(tmp_path / "journal.jsonl")) == [{"kind": "header"}, {**TRIAL, "seconds": 1.0}]


def test_lines_after_the_checkpoint_are_recognised_whatever_their_times(tmp_path: Path) -> None:
    journal = opened(tmp_path)
    journal.write({"kind": "header"})
    journal.write({**TRIAL, "seconds": 1.0})
    journal.close()
    again = opened(tmp_path, num_checkpointed=1)
    assert again.recorded_outcomes() == {("t", "search", 0, 0, "d"): Outcome(80.0, 1.0)}
    assert not again.write({**TRIAL, "seconds": 7.0})
    assert again.write({**TRIAL, "base": 1, "seconds": 2.0})
    again.close()
    lines = list(read_journal(tmp_path / "journal.jsonl"))
    assert [line.get("seconds") for line in lines] == [None, 1.0, 2.0]


def test_a_generation_that_goes_another_way_sets_its_old_lines_aside(tmp_path: Path) -> None:
    journal = opened(tmp_path)
    for base in range(3):
        journal.write({**TRIAL, "base": base})
    journal.close()
    messages: list[str] = []
    again = opened(tmp_path, 1, messages)
    again.write({**TRIAL, "base": 7})
    again.close()
    assert [line["base"] for line in read_journal(tmp_path / "journal.jsonl")] == [0, 7]
    assert [line["base"] for line in read_journal(tmp_path / "journal.discarded.jsonl")] == [1, 2]
    assert "did not repeat as recorded" in messages[0] and "2 remaining journal lines" in messages[0]


def test_a_truncated_last_line_is_dropped_and_said(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_text('{"kind": "header"}\n{"kind": "tri')
    messages: list[str] = []
    journal = opened(tmp_path, 0, messages)
    journal.close()
    assert path.read_text() == '{"kind": "header"}\n'
    assert "the last line of journal.jsonl was incomplete (13 bytes" in messages[0]


def test_a_damaged_line_in_the_middle_is_refused_by_number(tmp_path: Path) -> None:
    (tmp_path / "journal.jsonl").write_text('{"kind": "header"}\nnonsense\n{}\n')
    with pytest.raises(RunDirectoryError, match=r"line 2 of .* needs to be a JSON object, but it is damaged"):
        opened(tmp_path)


def test_a_journal_shorter_than_the_checkpoint_is_refused(tmp_path: Path) -> None:
    (tmp_path / "journal.jsonl").write_text('{"kind": "header"}\n')
    with pytest.raises(RunDirectoryError, match=r"at least the 5 lines that state\.json accounts for, got 1"):
        opened(tmp_path, 5)


@pytest.mark.parametrize("end", ['{"kind": "header"}', '{"kind": "tri', "\x89PNG"])
def test_a_refused_journal_is_left_as_it_is(tmp_path: Path, end: str) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_text(f'{{"kind": "header"}}\n{end}')
    with pytest.raises(RunDirectoryError, match=r"at least the 5 lines"):
        opened(tmp_path, 5)
    assert path.read_text() == f'{{"kind": "header"}}\n{end}'


@pytest.mark.parametrize("written", [0, 10])
def test_a_full_disk_leaves_no_half_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: int
) -> None:
    journal = opened(tmp_path)
    journal.write({"kind": "header"})
    before = (tmp_path / "journal.jsonl").read_text()
    whole = os.write

    def full(descriptor: int, data: bytes) -> int:
        if written == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return whole(descriptor, data[:written])

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(RunDirectoryError, match=r"the disk is full.*go on with resume=True"):
            journal.write(dict(TRIAL))
    assert (tmp_path / "journal.jsonl").read_text() == before
    assert journal.write(dict(TRIAL))
    journal.close()
    assert len(list(read_journal(tmp_path / "journal.jsonl"))) == 2


def test_atomic_writing_keeps_the_old_file_when_the_disk_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "state.json"
    write_atomically(path, '{"old": 1}')

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "fsync", full)
        with pytest.raises(RunDirectoryError, match=r"could not write .*state\.json: the disk is full"):
            write_atomically(path, '{"new": 2}')
    assert read_json(path) == {"old": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["state.json"]


def test_damaged_json_is_named(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text("{")
    with pytest.raises(RunDirectoryError, match=r"config\.json needs to be valid JSON, but it is damaged"):
        read_json(path)
    path.write_text("[]")
    with pytest.raises(RunDirectoryError, match="needs to hold a JSON object, got a list"):
        read_json(path)


def test_a_second_process_is_refused_and_a_dead_one_is_not(tmp_path: Path) -> None:
    program = (
        "import sys, time; from jaxprune.search.run_directory import RunDirectory\n"
        f"run = RunDirectory({str(tmp_path)!r}); print('locked', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None and holder.stdout.readline() == "locked\n"
        with pytest.raises(
            RunDirectoryError, match=f"is in use by process {holder.pid} on .*Wait for it to end"
        ):
            RunDirectory(tmp_path)
    finally:
        holder.kill()
        holder.wait()
    with RunDirectory(tmp_path):
        assert (tmp_path / "lock").read_text().startswith(f"process {os.getpid()} on ")


def test_a_read_only_directory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: object) -> int:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    with monkeypatch.context() as patch:  # root may write anywhere, so permissions alone cannot show it
        patch.setattr(os, "open", forbidden)
        with pytest.raises(
            RunDirectoryError, match=r"could not lock the run directory .* it is not writable"
        ):
            RunDirectory(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(RunDirectoryError, match="could not create the run directory"):
        RunDirectory(tmp_path / "file")


def test_load_run_needs_a_complete_generation(tmp_path: Path) -> None:
    with pytest.raises(RunDirectoryError, match="at least one complete generation"):
        load_run(tmp_path, ToyProblem())


def test_load_run_reads_what_checkpoint_wrote(tmp_path: Path) -> None:
    start = init_search(ToyProblem(), SMALL)
    with RunDirectory(tmp_path) as run:
        run.open_run(start, {}, resume=False)
        state = after(start, 1)
        run.checkpoint(state)
    assert load_run(tmp_path, start.problem) == state
    measured = json.loads((tmp_path / "config.json").read_text())["measured"]
    assert measured["digits"]["spread"] == state.scales["digits"].spread


def test_a_journal_without_its_config_is_refused(tmp_path: Path) -> None:
    (tmp_path / "journal.jsonl").write_text('{"kind": "header"}\n')
    with (
        RunDirectory(tmp_path) as run,
        pytest.raises(RunDirectoryError, match=r"needs a config\.json beside"),
    ):
        run.open_run(init_search(ToyProblem(), SMALL), {}, resume=True)

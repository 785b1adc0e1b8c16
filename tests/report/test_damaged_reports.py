"""Reports of runs with damaged side files, under the lock of the run, and where the disk offers little."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from made_up_runs import made_up_finals, searched
from toy_problem import SMALL, ToyProblem

from jaxprune import files
from jaxprune.comparison.finals import load_finals
from jaxprune.datasets.guarded_split import AlreadyOpenedError, GuardedSplit, Split, read_openings
from jaxprune.files import CHECK, RunDirectoryError, atomic_file
from jaxprune.report import writing
from jaxprune.report.writing import _why_stopped, render_report, write_report
from jaxprune.search.problem import Outcome, Trial
from jaxprune.search.run_directory import RunDirectory
from jaxprune.search.run_files import log_event
from jaxprune.search.search import evolve_problem


@pytest.fixture
def run_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A finished run with a made-up final comparison and records of opened test images; figures are left out."""
    monkeypatch.setattr(writing, "_save_figures", lambda run, folder: None)
    run_dir = Path(shutil.copytree(searched().journal.parent, tmp_path / "run"))
    (run_dir / "final.json").write_text(made_up_finals(searched().state).to_json())
    for name in ("digits", "fashion"):
        guarded(name).open(run_dir / f"test-{name}.json")
    return run_dir


def guarded(name: str = "digits") -> GuardedSplit:
    return GuardedSplit(name, Split(np.zeros((3, 4), np.float32), np.arange(3, dtype=np.int32)))


ODD_LINES = [
    b"null",
    b"[]",
    b"3",
    b"{}",
    b'{"event": "stopped"}',
    b'{"event": [], "message": ""}',
    b"\xff",
    b"[" * 100_000,
]


@pytest.mark.parametrize("end", [b"\n", b""], ids=["whole", "torn"])
def test_odd_events_change_no_report(run_dir: Path, end: bytes) -> None:
    before = render_report(run_dir).read_text()
    for line in ODD_LINES:
        with (run_dir / "events.jsonl").open("ab") as file:
            file.write(line + end)
        assert render_report(run_dir).read_text() == before, line[:30]
    (run_dir / "events.jsonl").unlink()
    assert render_report(run_dir).read_text() == before


@pytest.mark.parametrize(
    "text", ["", "{", "{}", "[]", "null", '{"opened": []}', '{"opened": 3}', '{"opened": [3]}', "[" * 100_000]
)
def test_a_damaged_record_of_test_images_is_refused_by_name(run_dir: Path, text: str) -> None:
    path = run_dir / "test-digits.json"
    path.write_text(text)
    for use in (lambda: render_report(run_dir), lambda: guarded().open(path, reopen=True)):
        with pytest.raises(
            RunDirectoryError, match=r"test-digits\.json needs .*Restore it from a backup, or delete it"
        ):
            use()
    path.unlink()
    assert "an unknown time (test-digits.json is missing)" in render_report(run_dir).read_text()


@pytest.mark.parametrize(
    ("edited", "value"),
    [("opened", ["2020-01-01T00:00:00+00:00"]), ("opened", []), ("digest", "0"), ("dataset", "x")],
)
def test_a_record_that_was_edited_is_refused(run_dir: Path, edited: str, value: object) -> None:
    path = run_dir / "test-digits.json"
    plain = json.loads(path.read_text())
    path.write_text(json.dumps({**plain, edited: value}))
    for use in (lambda: render_report(run_dir), lambda: guarded().open(path, reopen=True)):
        with pytest.raises(RunDirectoryError, match=r"test-digits\.json .*its checksum differs"):
            use()
    del plain[CHECK]  # of an older version
    path.write_text(json.dumps(plain))
    guarded().open(path, reopen=True)
    assert len(read_openings(path)) == 2


@pytest.mark.parametrize(
    "edit",
    [
        lambda plain: plain.clear(),
        lambda plain: plain.pop("comparison"),
        lambda plain: plain.update(format=None),
        lambda plain: plain.update(format=True),
        lambda plain: plain.update(views=[]),
        lambda plain: plain.update(views={"digits": [3]}),
        lambda plain: plain.update(comparison=[]),
        lambda plain: plain["comparison"]["measurements"][0].update(validation=99.0),
        lambda plain: plain.update(winner_id=3),
        lambda plain: plain.update(best_start="l2"),
    ],
)
def test_damaged_finals_are_refused_with_the_advice_to_measure_again(
    run_dir: Path, edit: Callable[[dict[str, Any]], object]
) -> None:
    path = run_dir / "final.json"
    plain = json.loads(path.read_text())
    edit(plain)
    path.write_text(json.dumps(plain))
    with pytest.raises(RunDirectoryError, match=r"final\.json needs .*Delete it and write the report again"):
        render_report(run_dir)


def test_finals_without_checksum_are_read(run_dir: Path) -> None:
    plain = json.loads((run_dir / "final.json").read_text())
    del plain[CHECK]
    (run_dir / "final.json").write_text(json.dumps(plain))
    assert load_finals(run_dir) == made_up_finals(searched().state)


# The lock


def no_finals(run_dir: Path, *_: object, **__: object) -> object:
    """Stands for the final comparison: says whether the directory is locked."""
    with pytest.raises(RunDirectoryError, match="is in use by process"):
        RunDirectory(run_dir)
    return made_up_finals(searched().state)


def test_a_report_is_written_under_the_lock_of_its_run(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writing, "run_finals", no_finals)
    problem: Any = SimpleNamespace()
    assert write_report(run_dir, problem, searched()).exists()
    with (
        RunDirectory(run_dir),
        pytest.raises(RunDirectoryError, match=r"is in use by process .*Wait for it to end"),
    ):
        write_report(run_dir, problem, searched())
    with RunDirectory(run_dir):
        assert render_report(run_dir).exists()  # reads what is complete, and trains nothing


def test_a_repair_is_told_to_callbacks_or_as_a_warning(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writing, "run_finals", no_finals)
    problem: Any = SimpleNamespace()
    messages: list[str] = []
    for callbacks in ([], [SimpleNamespace(on_message=messages.append)]):
        with (run_dir / "events.jsonl").open("ab") as file:
            file.write(b"null\n")
        with contextlib.nullcontext() if callbacks else pytest.warns(UserWarning, match="1 damaged line"):
            write_report(run_dir, problem, searched(), callbacks=callbacks)
    assert len(messages) == 1 and "1 damaged line" in messages[0]


# File systems that offer little, and directories that vanish


def test_a_name_is_taken_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object, **__: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", refused)
    guarded().open(tmp_path / "record.json")
    with pytest.raises(AlreadyOpenedError, match="needs to be opened once a run"):
        guarded().open(tmp_path / "record.json")
    assert os.listdir(tmp_path) == ["record.json"]


@pytest.mark.parametrize("other", ["file", "folder", "dangling link"])
def test_a_name_that_is_taken_is_left_alone(tmp_path: Path, other: str) -> None:
    path = tmp_path / "name"
    if other == "file":
        path.write_text("mine")
    elif other == "folder":
        path.mkdir()
    else:
        path.symlink_to("nowhere")
    with pytest.raises(FileExistsError), atomic_file(path, overwrite=False) as temporary:
        temporary.write_text("yours")
    assert os.listdir(tmp_path) == ["name"]
    assert path.is_symlink() if other == "dangling link" else not path.is_file() or path.read_text() == "mine"


ADVICE: Mapping[int, str] = {
    errno.ENOENT: "was deleted or moved, or its disk is gone.*without a copy, what it held is lost",
    errno.ESTALE: "was deleted or moved, or its disk is gone",
    errno.ENOSPC: "the disk is full. Everything up to the last complete line is kept",
    errno.EDQUOT: "the disk is full",
    errno.EROFS: "it is not writable",
    errno.ENOLCK: "its file system does not offer that .*Choose a run directory on a local disk",
    errno.EOPNOTSUPP: "Choose a run directory on a local disk",
    errno.EIO: "Input/output error. When the cause is gone, go on with resume=True",
}


@pytest.mark.parametrize("number", ADVICE, ids=errno.errorcode.get)
def test_each_failure_of_a_disk_has_its_advice(number: int) -> None:
    def fail() -> None:
        raise OSError(number, os.strerror(number))

    with (
        pytest.raises(RunDirectoryError, match=f"could not do it: .*{ADVICE[number]}") as caught,
        files.explained("do it"),
    ):
        fail()
    assert "Nothing" not in str(caught.value)


@pytest.mark.parametrize("vanish", [shutil.rmtree, lambda path: path.rename(path.with_name("moved"))])
def test_a_run_directory_that_vanishes_is_said_to_be_gone(
    tmp_path: Path, vanish: Callable[[Path], object]
) -> None:
    class Vandal(ToyProblem):
        def run(self, trial: Trial) -> Outcome:
            if self.num_calls == 50:
                vanish(tmp_path / "run")
            return super().run(trial)

    with pytest.raises(RunDirectoryError, match="it was deleted or moved, or its disk is gone"):
        evolve_problem(Vandal(), SMALL, tmp_path / "run")


def test_a_name_that_was_taken_is_free_again_if_the_file_cannot_be_put_there(tmp_path, monkeypatch):
    def refuse(*paths: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("os.replace", refuse)
    path = tmp_path / "once.json"
    with pytest.raises(OSError, match="Input/output"), atomic_file(path, overwrite=False) as temporary:
        temporary.write_text("{}")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("kinds", "reason"),
    [
        (("started", "stopped"), "time"),
        (("started", "stopped", "notice"), "time"),
        (("started", "stopped", "resumed"), ""),
        (("started", "stopped", "resumed", "interrupted"), ""),
        (("started",), ""),
    ],
)
def test_a_run_that_went_on_has_not_stopped(kinds, reason, tmp_path):
    for kind in kinds:
        log_event(tmp_path, kind, "time")
    state = SimpleNamespace(generation=1, config=SimpleNamespace(generations=2))
    assert _why_stopped(tmp_path, state) == reason

"""The directory of a run, for one process at a time and one config. Its files survive a kill at any moment.

config.json        settings, tasks with fingerprints, guesses, how members are batched, scales measured in generation 0
journal.jsonl      append-only: every candidate, fine-tuning and generation (see `journal.py`)
state.json         the search's state after the last complete generation
archive.json       the Pareto archive
hall_of_fame.csv   the best candidates, for a spreadsheet
events.jsonl       append-only: when the run was started, stopped, repaired; not part of its results
lock               locked while a process uses the directory

What is append-only is repaired when the directory is opened, and what follows from the state (the archive, the hall of
fame) is written again. A change of the other files is noticed by their checksums and refused, with a way to go on.
"""

from __future__ import annotations

import csv
import dataclasses
import fcntl
import io
import json
import os
import socket
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxprune.files import RunDirectoryError, explained, sealed, to_text, write_atomically
from jaxprune.search.journal import Journal
from jaxprune.search.problem import BatchedProblem, Problem
from jaxprune.search.resumption import (
    ABSENT,
    agree_on_names,
    differences,
    origin_of,
    task_changes,
    version_notice,
    with_batching,
)
from jaxprune.search.run_files import FORMAT, log_event, read_run_file, repair_events, state_of
from jaxprune.search.selection import one_per_behaviour
from jaxprune.search.serialization import individual_to_json, state_to_json
from jaxprune.search.settings import STOPS, in_todays_words
from jaxprune.search.state import Individual, SearchState

HALL_OF_FAME_SIZE = 20
"""Number of candidates in hall_of_fame.csv."""

_LIMITS = frozenset(f"config.{name}" for name in STOPS)
"""Names of the settings that a resumed run may change."""

_ASKED_BATCHING = frozenset(f"settings.{name}" for name in ("batching", "chunk", "convolution"))
"""Names of the settings that only ask for what stands settled under `batching`, task by task."""

_NOTHING = (None, ABSENT)
"""What a setting is that is not made; earlier versions left some of them out."""


class RunDirectory:
    """A locked run directory, to be used as a context manager."""

    def __init__(self, path: Path | str, notice: Callable[[str], None] = lambda message: None) -> None:
        """Creates the directory if needed and locks it.

        Args:
          path: the directory.
          notice: called with a message about each repair, which is also written to `events.jsonl`.

        Raises:
          RunDirectoryError: if another process uses the directory, or it cannot be written.
        """
        self.path = Path(path)
        self._notice = notice
        with explained(f"create the run directory {self.path}"):
            self.path.mkdir(parents=True, exist_ok=True)
        self._lock = lock_folder(self.path)
        self.journal: Journal | None = None
        if num_damaged := repair_events(self.path):
            self.notice(
                f"events.jsonl had {num_damaged} damaged line(s), which are now in events.discarded.jsonl"
            )

    def __enter__(self) -> RunDirectory:
        return self

    def __exit__(self, *_: object) -> None:
        if self.journal is not None:
            self.journal.close()
        os.close(self._lock)  # releases the lock; the file stays, so that nobody locks a deleted file

    def open_run(self, start: SearchState, settings: Mapping[str, Any], resume: bool) -> SearchState:
        """Starts a run in the directory, or opens the run that it holds.

        Args:
          start: the state that a new run begins with; its config, tasks and guesses are those of the run.
          settings: further plain settings of the caller; a resumed run needs the same ones.
          resume: whether an existing run is opened; a directory without a run is started in either case.

        Returns:
          `start`, or the state of the last complete generation with the config of `start`.

        Raises:
          RunDirectoryError: if there is a run and `resume` is false, if the run has other settings or a newer format,
            or if a file is damaged.
        """
        document = _document(start, settings)
        state_path = self.path / "state.json"
        state, saved = start, {}
        existing = self._existing_config(resume)
        if existing is not None:
            document = agree_on_names(document, existing, start.problem)
            _refuse_changes(existing, document, self.path, start.problem)
            if notice := version_notice(existing):
                self.notice(notice)
            if "measured" in existing:
                document["measured"] = existing["measured"]
        if state_path.exists():
            saved = read_run_file(state_path)
            state = state_of(saved, start.problem, state_path)
            _refuse_other_config(saved["state"], document, self.path)
            document["measured"] = _measured(state)
            state = dataclasses.replace(state, config=start.config)
        if existing != document:
            write_atomically(self.path / "config.json", to_text(sealed(document), indent=2) + "\n")
        num_lines = saved.get("journal_lines", 0)
        self.journal = Journal(
            self.path / "journal.jsonl", num_lines, self.notice, saved.get("journal_check")
        )
        if saved:
            self._write_results(state)
        elif "measured" in document and self.journal.next_generation() is None:
            self.notice(
                "config.json says that generation 0 was complete, but journal.jsonl does not hold it: what is missing "
                "is run again"
            )
        if num_lines == 0:
            self.journal.write({"kind": "header", "format": FORMAT, "seed": start.config.seed})
        return state

    def checkpoint(self, state: SearchState) -> None:
        """Saves the state after a complete generation, with the archive and the hall of fame.

        Raises:
          RunDirectoryError: if a file cannot be written; it then keeps its previous content.
        """
        assert self.journal is not None, "open_run comes first"
        self._write_results(state)
        if state.generation == 1:
            config = read_run_file(self.path / "config.json")
            config["measured"] = _measured(state)
            write_atomically(self.path / "config.json", to_text(sealed(config), indent=2) + "\n")
        saved = {
            "format": FORMAT,
            "journal_lines": self.journal.num_lines,
            "journal_check": self.journal.check,
            "state": state_to_json(state),
        }
        write_atomically(self.path / "state.json", to_text(sealed(saved)) + "\n")

    def notice(self, message: str) -> None:
        """Reports a message to the user, and writes it to `events.jsonl`."""
        self.event("notice", message)
        self._notice(message)

    def event(self, kind: str, message: str = "") -> None:
        """Appends an event with the current time to `events.jsonl`, on which no result depends.

        Args:
          kind: what happened, in one word.
          message: the details.
        """
        log_event(self.path, kind, message)

    def _existing_config(self, resume: bool) -> dict[str, Any] | None:
        """Returns the content of config.json; None if the directory holds no run."""
        config_path = self.path / "config.json"
        if config_path.exists():
            existing = read_run_file(config_path)
            if not resume:
                raise RunDirectoryError(
                    f"{self.path} already holds a run. Go on with it by resume=True (--resume), or choose "
                    "another directory for a new one."
                )
            return existing | {"config": in_todays_words(existing["config"])}
        if (self.path / "journal.jsonl").exists() or (self.path / "state.json").exists():
            raise RunDirectoryError(
                f"{self.path} needs a config.json beside its journal and state, got none. Restore it, or start in "
                "another directory."
            )
        return None

    def _write_results(self, state: SearchState) -> None:
        """Writes the archive and the hall of fame."""
        archive = [individual_to_json(state.individual(id_)) for id_ in state.archive]
        document = {"format": FORMAT, "generation": state.generation - 1, "members": archive}
        write_atomically(self.path / "archive.json", to_text(document, indent=2) + "\n")
        best = one_per_behaviour(state.ranked())[:HALL_OF_FAME_SIZE]
        write_atomically(self.path / "hall_of_fame.csv", _hall_of_fame(best))


def load_run(path: Path | str, problem: Problem) -> SearchState:
    """Reads the state of a run without locking or changing anything, for reports.

    Args:
      path: the run directory.
      problem: the problem that the state refers to.

    Raises:
      RunDirectoryError: if there is no complete generation, or the state is damaged or of a newer format.
    """
    state_path = Path(path) / "state.json"
    if not state_path.exists():
        raise RunDirectoryError(
            f"{path} needs a run with at least one complete generation, got no state.json."
        )
    return state_of(read_run_file(state_path), problem, state_path)


def lock_folder(folder: Path) -> int:
    """Locks a folder for this process, by a file in it.

    Args:
      folder: must exist.

    Returns:
      The descriptor; when it is closed, or the process ends, the system releases the lock.

    Raises:
      RunDirectoryError: if another process uses the folder, or the file cannot be written.
    """
    path = folder / "lock"
    with explained(f"lock the run directory {folder}"):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.read(descriptor, 200).decode(errors="replace").strip() or "another process"
            os.close(descriptor)
            raise RunDirectoryError(
                f"{folder} is in use by {holder}. Wait for it to end, stop it, or choose another directory."
            ) from error
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
    return descriptor


def _document(state: SearchState, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the content of config.json."""
    document = {
        "format": FORMAT,
        "config": state.config.to_json(),
        "tasks": {task.name: dataclasses.asdict(task) for task in state.tasks},
        "guesses": list(state.guesses),
        "settings": dict(settings),
        "origin": origin_of(state.problem),
    }
    if isinstance(state.problem, BatchedProblem):
        document["batching"] = state.problem.batching
    plain: dict[str, Any] = json.loads(
        to_text(document)
    )  # tuples become lists, as in the file when it is read
    return plain


def _measured(state: SearchState) -> dict[str, Any]:
    """Returns what config.json shows of the scales that generation 0 measured."""
    return {name: dataclasses.asdict(scale) for name, scale in state.scales.items()}


def _refuse_other_config(saved: Mapping[str, Any], document: Mapping[str, Any], folder: Path) -> None:
    """Raises an error if config.json, as far as it is not a limit, is not that of the saved state."""
    tasks = {task["name"]: task for task in saved["tasks"]}
    parts = {"config": in_todays_words(saved["config"]), "tasks": tasks, "guesses": saved["guesses"]}
    changes = [
        f"{name.removeprefix('config.')} is {there!r} there and {here!r} here"
        for name, here, there in differences(parts, {part: document[part] for part in parts})
        if ABSENT not in (here, there) and name not in _LIMITS  # one of them may be of an earlier version
    ]
    if changes:
        raise RunDirectoryError(
            f"{folder} needs config.json and state.json of one run, but they differ: {'; '.join(changes)}. "
            "config.json was changed, or one of them was copied: restore it."
        )


def _refuse_changes(
    existing: Mapping[str, Any], wanted: Mapping[str, Any], folder: Path, problem: Problem
) -> None:
    """Raises an error that says all that differs, unless it only says when to stop."""
    asked = _ASKED_BATCHING if "batching" in existing else frozenset()
    in_words = {f"tasks.{name}.fingerprint" for name in existing["tasks"]}  # by `task_changes`
    changes = [
        f"{name.removeprefix('config.')} was {before!r} and is now {now!r}"
        for name, before, now in differences(with_batching(existing, problem), wanted)
        if not name.startswith(("measured", "origin"))
        and name not in _LIMITS | in_words | asked
        and not (before in _NOTHING and now in _NOTHING)
    ]
    changes += task_changes(existing, wanted)
    if changes:
        raise RunDirectoryError(
            f"{folder} holds a run with other settings: {'; '.join(changes)}. Resume it with the settings it "
            f"was started with (only {', '.join(STOPS)} may change), or start in another directory."
        )


def _hall_of_fame(individuals: Sequence[Individual]) -> str:
    """Writes ranked individuals as CSV."""
    tasks = list(individuals[0].fitness.tasks) if individuals else []
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    names = ["rank", "id", "formula", "mean", "se", "lower", "complexity", "origin", "generation"]
    per_task = [f"{task} {column}" for task in tasks for column in ("difference", "se", "bases", "accuracy")]
    writer.writerow(names + per_task)
    for rank, individual in enumerate(individuals, start=1):
        candidate, fitness = individual.candidate, individual.fitness
        row: list[object] = [rank, candidate.id, candidate.text]
        row += [f"{value:.4f}" for value in (fitness.mean, fitness.se, fitness.lower)]
        row += [candidate.complexity, candidate.origin, candidate.generation]
        for result in fitness.tasks.values():
            row += [f"{result.difference:.3f}", f"{result.se:.3f}", result.bases, f"{result.accuracy:.3f}"]
        writer.writerow(row)
    return table.getvalue()

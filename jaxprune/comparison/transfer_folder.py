"""The folder of a transfer, for one process at a time. Its files survive a kill at any moment.

config.json        settings, and what the images and the network are
results.jsonl      append-only: kept counts, plans, a row per trained network, refused functions, test accuracies
bases/N/           base networks
networks/N-NAME/   pruned and fine-tuned networks, with the plan of each beside it as N-NAME.plan.json
training/          checkpoints of the network that is being trained
test.json          when test images were opened
compiled/          programs that rows share, if the command keeps them there
transfer.json, report.md, figures/: written at the end
lock               locked while a process uses the folder

Each line of results.jsonl has a checksum of its own. A damaged line is moved aside, and its network is trained again.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from jaxprune.comparison.transfer_records import FORMAT, Accuracy, TransferRow
from jaxprune.files import (
    CHECK,
    RunDirectoryError,
    append_whole,
    checksum,
    explained,
    parse_json,
    read_json,
    repair_lines,
    sealed,
    to_text,
    write_atomically,
)
from jaxprune.search.resumption import ABSENT, differences
from jaxprune.search.run_directory import lock_folder
from jaxprune.search.run_files import checked_content

_CONFIG = "config.json"
_RESULTS = "results.jsonl"
_REMEDY = "Restore it from a backup, or start in another folder."
_AGAIN = "give the same command again"


class PlanRecord(NamedTuple):
    """What is noted of a plan: a hash of the kept channels, and the groups that l2 ordered."""

    kept_digest: str
    fallback_groups: tuple[str, ...]


class TransferFolder:
    """A locked folder of a transfer, to be used as a context manager.

    Attributes:
      path: the folder.
      records: the lines of results.jsonl, without checksums, in their order.
    """

    def __init__(
        self, path: Path, document: Mapping[str, Any], notice: Callable[[str], None] = lambda message: None
    ) -> None:
        """Creates the folder, or opens one of the same transfer, and locks it.

        Args:
          path: the folder.
          document: plain data that a transfer which goes on has to agree with.
          notice: called with a message about each repair.

        Raises:
          RunDirectoryError: if another process uses the folder, it holds another transfer or other files, it is of a
            newer version, or it cannot be written.
        """
        self.path = path
        check_folder(path, document)
        with explained(f"create {path}", again=_AGAIN, place="folder"):
            path.mkdir(parents=True, exist_ok=True)
        self._lock = lock_folder(path)
        try:
            if not (path / _CONFIG).exists():
                text = to_text(sealed({"format": FORMAT, **document}), indent=2)
                write_atomically(path / _CONFIG, f"{text}\n", again=_AGAIN)
            self.records, num_damaged = repair_lines(
                path / _RESULTS, _record_in, path / "results.discarded.jsonl"
            )
        except BaseException:
            os.close(self._lock)
            raise
        if num_damaged:
            notice(
                f"{_RESULTS} had {num_damaged} damaged line(s), which are now in results.discarded.jsonl: what they "
                "held is done again"
            )

    def __enter__(self) -> TransferFolder:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._lock)  # releases the lock; the file stays, so that nobody locks a deleted file

    @property
    def rows(self) -> dict[tuple[int, str], TransferRow]:
        """(base, row name) -> the row of each trained network."""
        found = (TransferRow.from_json(plain) for plain in self._of("row"))
        return {(row.base, row.name): row for row in found}

    @property
    def refused(self) -> dict[str, str]:
        """Row name -> why the function was left out."""
        return {plain["name"]: plain["reason"] for plain in self._of("refused")}

    @property
    def planned(self) -> dict[tuple[int, str], PlanRecord]:
        """(base, row name) -> what is noted of each plan."""
        return {
            (plain["base"], plain["name"]): PlanRecord(plain["kept_digest"], tuple(plain["fallback_groups"]))
            for plain in self._of("plan")
        }

    @property
    def kept_counts(self) -> dict[str, int] | None:
        """Group -> number of channels that stay, or None if it is not known yet."""
        return next((dict(plain["counts"]) for plain in self._of("counts")), None)

    @property
    def test(self) -> dict[tuple[int, str], Accuracy]:
        """(base, row name) -> accuracy on test images."""
        return {(plain["base"], plain["name"]): Accuracy(*plain["test"]) for plain in self._of("test")}

    def add(self, kind: str, plain: Mapping[str, Any]) -> None:
        """Appends a line, and waits until it is on the disk.

        Args:
          kind: "row", "plan", "refused", "counts" or "test".
          plain: its content.

        Raises:
          RunDirectoryError: if it cannot be written.
        """
        record = {"record": kind, **plain}
        path = self.path / _RESULTS
        with explained(f"open {path}", again=_AGAIN, place="folder"):
            descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            append_whole(descriptor, to_text(sealed(record)).encode() + b"\n", path)
        finally:
            os.close(descriptor)
        self.records.append(record)

    def network(self, base: int, name: str) -> Path:
        """Returns the folder for the weights of a pruned network; its plan is beside it, see `plan`.

        Args:
          base: number of the base network.
          name: of the row.
        """
        return self.path / "networks" / f"{base}-{file_name(name)}"

    def plan(self, base: int, name: str) -> Path:
        """Returns the file for the plan of a pruned network.

        Args:
          base: number of the base network.
          name: of the row.
        """
        return self.path / "networks" / f"{base}-{file_name(name)}.plan.json"

    def base(self, base: int) -> Path:
        """Returns the folder for the weights of a base network.

        Args:
          base: its number.
        """
        return self.path / "bases" / str(base)

    def training(self, base: int, name: str) -> Path:
        """Returns the folder for checkpoints of a network while it is trained.

        Args:
          base: number of the base network.
          name: of the row.
        """
        return self.path / "training" / f"{base}-{file_name(name)}"

    def _of(self, kind: str) -> Iterator[dict[str, Any]]:
        """The records of one kind, without their kind."""
        for record in self.records:
            if record["record"] == kind:
                yield {name: value for name, value in record.items() if name != "record"}


def check_folder(path: Path, document: Mapping[str, Any]) -> None:
    """Checks whether a transfer may use a folder, before anything is made or changed.

    Args:
      path: the folder; it need not exist.
      document: plain data that a transfer in the folder has to agree with.

    Raises:
      RunDirectoryError: if the folder holds another transfer, or something else.
    """
    if path.exists() and not path.is_dir():
        raise RunDirectoryError(f"a transfer needs a folder, got the file {path}. Name another folder.")
    config = path / _CONFIG
    if not config.exists():
        names = sorted(child.name for child in path.iterdir()) if path.is_dir() else []
        names = [name for name in names if name not in ("lock", "compiled")]
        if names:
            raise RunDirectoryError(
                f"{path} needs to be a new or empty folder, or one of a transfer, got one with {', '.join(names[:4])}"
                f"{' and others' if len(names) > 4 else ''}. Name another folder."
            )
        return
    existing = checked_content(read_json(config, _REMEDY), config, _REMEDY)
    wanted = {"format": FORMAT, **document}
    changes = [
        f"{name} was {_shown(before)} and is now {_shown(now)}"
        for name, before, now in differences(existing, parse_json(to_text(wanted)))  # type: ignore[arg-type]
        if name != "format" and not (before in (None, ABSENT) and now in (None, ABSENT))
    ]
    if changes:
        raise RunDirectoryError(
            f"{path} holds a transfer with other settings: {'; '.join(changes)}. Go on with the settings it was "
            "started with, or name another folder."
        )


def read_config(path: Path) -> dict[str, Any]:
    """Returns the content of a transfer's config.json.

    Args:
      path: the folder.

    Raises:
      RunDirectoryError: if there is none, or it is damaged or of a newer version.
    """
    config = path / _CONFIG
    return checked_content(read_json(config, _REMEDY), config, _REMEDY)


def file_name(name: str) -> str:
    """Returns a name for files of a row, different for different rows.

    Args:
      name: of the row, which may be a formula.

    Example:
      >>> file_name("l1"), file_name("mean(X)*2")
      ('l1', 'mean-X-2-37eac3')
    """
    plain = re.sub(r"[^\w.]+", "-", name, flags=re.ASCII).strip("-.")[:40]
    return plain if plain == name else f"{plain or 'row'}-{checksum(name)[:6]}"


def _shown(value: object) -> str:
    """A setting in a message."""
    return "not set" if value in (None, ABSENT) else repr(value)


def _record_in(line: bytes) -> dict[str, Any] | None:
    """The record in a line of results.jsonl; None if it is damaged."""
    try:
        plain = parse_json(line)
        if not isinstance(plain, dict) or not isinstance(plain.get("record"), str):
            return None
        content = {name: value for name, value in plain.items() if name != CHECK}
        return content if plain.get(CHECK) == checksum(content) else None
    except ValueError:
        return None

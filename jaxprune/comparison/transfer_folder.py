"""The folder of a transfer, for one process at a time. Its files survive a kill at any moment.

config.json        settings, and what the images and the network are
results.jsonl      append-only: kept counts, plans, a row per trained network, refused functions, test accuracies
bases/N/           base networks
networks/N-NAME/   pruned and fine-tuned networks, with the plan of each beside it as N-NAME.plan.json
training/          checkpoints of the networks that are being trained
test.json          when test images were opened
compiled/          programs that rows share, if the command keeps them there
transfer.json, report.md, figures/: written at the end
lock               locked while a process uses the folder

Each line of results.jsonl has a checksum of its own. A damaged line is moved aside, and its network is trained again.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from jaxprune.comparison.record_folder import RecordFolder, Records
from jaxprune.comparison.transfer_records import FORMAT, Accuracy, TransferRow
from jaxprune.files import checksum


class PlanRecord(NamedTuple):
    """What is noted of a plan: a hash of the kept channels, and the groups that l2 ordered."""

    kept_digest: str
    fallback_groups: tuple[str, ...]


class KnownTransfer(Records):
    """What is known of the folder of a transfer, and where its files are."""

    @property
    def rows(self) -> dict[tuple[int, str], TransferRow]:
        """(base, row name) -> the row of each trained network."""
        found = (TransferRow.from_json(plain) for plain in self.records_of("row"))
        return {(row.base, row.name): row for row in found}

    @property
    def refused(self) -> dict[str, str]:
        """Row name -> why the function was left out."""
        return {plain["name"]: plain["reason"] for plain in self.records_of("refused")}

    @property
    def planned(self) -> dict[tuple[int, str], PlanRecord]:
        """(base, row name) -> what is noted of each plan."""
        return {
            (plain["base"], plain["name"]): PlanRecord(plain["kept_digest"], tuple(plain["fallback_groups"]))
            for plain in self.records_of("plan")
        }

    @property
    def kept_counts(self) -> dict[str, int] | None:
        """Group -> number of channels that stay, or None if it is not known yet."""
        return next((dict(plain["counts"]) for plain in self.records_of("counts")), None)

    @property
    def test(self) -> dict[tuple[int, str], Accuracy]:
        """(base, row name) -> accuracy on test images."""
        return {(plain["base"], plain["name"]): Accuracy(*plain["test"]) for plain in self.records_of("test")}

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


class TransferFolder(KnownTransfer, RecordFolder):
    """The locked folder of a transfer."""

    what = "transfer"
    format = FORMAT


def check_folder(path: Path, document: Mapping[str, Any]) -> None:
    """Checks whether a transfer may use a folder, before anything is made or changed.

    Args:
      path: the folder; it need not exist.
      document: plain data that a transfer in the folder has to agree with.

    Raises:
      RunDirectoryError: if the folder holds another transfer, or something else.
    """
    TransferFolder.check(path, document)


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

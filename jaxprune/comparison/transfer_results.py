"""A finished transfer as data: accuracies by row and base, paired differences to the rivals, and its file."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxprune.comparison.measurements import PairedDifference, standard_error
from jaxprune.comparison.transfer_records import (
    DENSE,
    FORMAT,
    Accuracy,
    TransferFacts,
    TransferRow,
    TransferSettings,
)
from jaxprune.files import RunDirectoryError, read_json, sealed, to_text, write_atomically
from jaxprune.search.run_files import checked_content

RESULT_FILE = "transfer.json"
"""The file of a finished transfer in its folder."""

_REMEDY = "Delete it and give the command of the transfer again: nothing is trained twice."


@dataclass(frozen=True)
class Transfer:
    """A finished transfer.

    Attributes:
      settings: how it was made.
      facts: what its networks share.
      rows: one for each trained network, base networks first.
      refused: row name -> why the function has no scores on some base, for functions that were left out.
      test: (base, row name) -> accuracy on test images, opened once at the end; empty without test images.
      opened: when test images were opened, in UTC.
    """

    settings: TransferSettings
    facts: TransferFacts
    rows: tuple[TransferRow, ...]
    refused: Mapping[str, str]
    test: Mapping[tuple[int, str], Accuracy]
    opened: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the rows of pruned networks: functions in the order of the settings, then controls."""
        known = (*self.settings.functions, *self.settings.controls)
        return tuple(name for name in known if name not in self.refused)

    @property
    def is_tested(self) -> bool:
        """Whether test images were opened."""
        return bool(self.test)

    def row(self, base: int, name: str) -> TransferRow:
        """Returns a row.

        Args:
          base: number of the base network.
          name: of the row.

        Raises:
          KeyError: if there is none.
        """
        for row in self.rows:
            if (row.base, row.name) == (base, name):
                return row
        raise KeyError((base, name))

    def final(self, name: str) -> list[Accuracy]:
        """Returns the accuracy on each base: on test images where they were opened, else on validation images.

        Args:
          name: of a row, or `DENSE`.
        """
        bases = range(self.settings.bases)
        return [self.test[base, name] if self.is_tested else self.row(base, name).after for base in bases]

    def paired(self, name: str, other: str) -> PairedDifference:
        """Compares the final top-1 accuracy of two rows, base by base.

        Args:
          name: of a row.
          other: of a row, or `DENSE`.

        Returns:
          The mean of the first minus the second, and its standard error over bases.
        """
        pairs = zip(self.final(name), self.final(other), strict=True)
        differences = [one.top1 - two.top1 for one, two in pairs]
        return PairedDifference(float(np.mean(differences)), standard_error(differences), len(differences))

    def to_json(self) -> dict[str, Any]:
        """Returns the transfer as plain data, with the numbers of its tables."""
        first = self.names[0] if self.names else ""
        rivals = [name for name in (*self.names, DENSE) if name != first] if first else []
        return {
            "settings": self.settings.to_json(),
            "facts": self.facts.to_json(),
            "rows": [row.to_json() for row in self.rows],
            "refused": dict(self.refused),
            "test": [
                {"base": base, "name": name, "test": list(found)} for (base, name), found in self.test.items()
            ],
            "opened": list(self.opened),
            "differences": {rival: self.paired(first, rival)._asdict() for rival in rivals},
        }

    def summary(self) -> dict[str, Any]:
        """Returns what was found in a few numbers: accuracies by row and base, differences, sizes and times."""
        bases = range(self.settings.bases)
        rows = {
            name: {
                "before": [row.before.top1 for row in found if row.before is not None],
                "after": [row.after.top1 for row in found],
                "test": [each.top1 for each in self.final(name)] if self.is_tested else [],
                "seconds": [round(row.seconds) for row in found],
            }
            for name in (DENSE, *self.names)
            for found in [[self.row(base, name) for base in bases]]
        }
        first = next(iter(self.names), None)
        rivals = [name for name in (*self.names, DENSE) if first is not None and name != first]
        return {
            "functions": dict(self.settings.functions),
            "bases": self.settings.bases,
            "num_train": self.facts.num_train,
            "macs": [self.facts.macs, self.facts.slim_macs],
            "parameters": [self.facts.parameters, self.facts.slim_parameters],
            "top1": rows,
            "differences": {rival: self.paired(str(first), rival)._asdict() for rival in rivals},
            "refused": dict(self.refused),
        }

    @staticmethod
    def from_json(plain: Mapping[str, Any]) -> Transfer:
        """Returns the transfer that `to_json` wrote.

        Raises:
          ValueError, TypeError, KeyError: if it is none.
        """
        return Transfer(
            TransferSettings.from_json(plain["settings"]),
            TransferFacts.from_json(plain["facts"]),
            tuple(TransferRow.from_json(row) for row in plain["rows"]),
            dict(plain["refused"]),
            {(each["base"], each["name"]): Accuracy(*each["test"]) for each in plain["test"]},
            tuple(plain["opened"]),
        )


def mean_accuracy(values: list[float]) -> tuple[float, float | None]:
    """Returns the mean and its standard error, NaN for values that are not there.

    Example:
      >>> mean_accuracy([70.0, 72.0])
      (71.0, 1.0)
    """
    return (float(np.mean(values)), standard_error(values)) if values else (math.nan, None)


def save_transfer(folder: Path, transfer: Transfer) -> Path:
    """Writes `transfer.json` into the folder of a transfer, and returns its path.

    Args:
      folder: of the transfer.
      transfer: its result.

    Raises:
      RunDirectoryError: if it cannot be written.
    """
    path = folder / RESULT_FILE
    text = to_text(sealed({"format": FORMAT, **transfer.to_json()}), indent=1)
    write_atomically(path, f"{text}\n", again="give the same command again")
    return path


def load_transfer(folder: Path) -> Transfer:
    """Reads the `transfer.json` of a finished transfer.

    Args:
      folder: of the transfer.

    Raises:
      RunDirectoryError: if there is none, or it is damaged or of a newer version.
    """
    path = folder / RESULT_FILE
    if not path.exists():
        raise RunDirectoryError(
            f"{folder} needs a finished transfer, got no {RESULT_FILE}. Give the command of the transfer again: it "
            "goes on where it was."
        )
    content = checked_content(read_json(path, _REMEDY), path, _REMEDY)
    try:
        return Transfer.from_json(content)
    except (KeyError, TypeError, ValueError) as error:
        raise RunDirectoryError(f"{path} is damaged ({error!r}). {_REMEDY}") from error


def write_summary(folder: Path, path: Path) -> None:
    """Writes what a finished transfer found in a few numbers, small enough to be kept under version control.

    Args:
      folder: of the transfer.
      path: the JSON file; folders that are missing are made.

    Raises:
      RunDirectoryError: as `load_transfer`, or if the file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(load_transfer(folder).summary(), indent=1) + "\n")

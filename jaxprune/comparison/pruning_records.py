"""The folder of a run that prunes one network, its records, and its result.

config.json     settings, and what the images, the weights and the network are
results.jsonl   append-only: a row per trained network, the plan, test accuracies, what was written at the end
plan.json       which channels stay
dense/          weights of the dense network, if it was trained here
pruned/         weights of the slim network before fine-tuning
networks/       weights of all fine-tuned networks, and of those from new weights
training/       checkpoints of the network that is being trained
test.json       when test images were opened
compiled/       programs, if the command keeps them there
network/, network.stablehlo, speed.json, kept.png, result.json: written at the end
lock            locked while a process uses the folder

All accuracies are in percent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any, Literal, NamedTuple

from jaxprune.comparison.pruning_setup import PruningSettings
from jaxprune.comparison.record_folder import RecordFolder
from jaxprune.comparison.transfer_records import Accuracy
from jaxprune.pruning.planning import Plan

RowName = Literal["dense", "pruned", "finetuned", "scratch"]
"""The network before pruning, right after it, fine-tuned, and the slim one trained from new weights."""


def title_of(name: RowName, seed: int) -> str:
    """Returns what a network is, in words.

    Args:
      name: what it is.
      seed: number of its training.

    Example:
      >>> title_of("dense", 0), title_of("finetuned", 2)
      ('dense network', 'fine-tuned 2')
    """
    titles = {"dense": "dense network", "pruned": "right after pruning"}
    return titles.get(name) or f"{'fine-tuned' if name == 'finetuned' else 'from scratch'} {seed}"


class PruningRow(NamedTuple):
    """One network.

    Attributes:
      name: what it is.
      seed: number of the training among those of this name.
      accuracy: on validation images.
      curve: (epochs trained, top-1 accuracy) along the training, the last one after it; empty without one.
      steps: optimiser steps.
      seconds: how long the training took, without interruptions.
      num_devices: number of devices that batches were split among.
      digest: a hash of the weights.
    """

    name: RowName
    seed: int
    accuracy: Accuracy
    curve: tuple[tuple[float, float], ...]
    steps: int
    seconds: float
    num_devices: int
    digest: str

    def to_json(self) -> dict[str, Any]:
        """Returns the row as plain data."""
        return self._asdict() | {
            "accuracy": list(self.accuracy),
            "curve": [list(point) for point in self.curve],
        }

    @staticmethod
    def from_json(plain: Mapping[str, Any]) -> PruningRow:
        """Returns the row that `to_json` wrote.

        Raises:
          TypeError, KeyError: if it is none.
        """
        curve = tuple((float(epoch), float(top1)) for epoch, top1 in plain["curve"])
        return PruningRow(**{**plain, "accuracy": Accuracy(*plain["accuracy"]), "curve": curve})


class PruningFolder(RecordFolder):
    """The locked folder of a run that prunes one network."""

    what = "pruning run"

    @property
    def rows(self) -> dict[tuple[RowName, int], PruningRow]:
        """(name, seed) -> the row of each network."""
        found = (PruningRow.from_json(plain) for plain in self.records_of("row"))
        return {(row.name, row.seed): row for row in found}

    @property
    def test(self) -> dict[tuple[RowName, int], Accuracy]:
        """(name, seed) -> accuracy on test images."""
        return {(plain["name"], plain["seed"]): Accuracy(*plain["test"]) for plain in self.records_of("test")}

    @property
    def planned(self) -> dict[str, Any] | None:
        """What is noted of the plan: a hash of the kept channels, and the groups that l2 ordered; or None."""
        return next(self.records_of("plan"), None)

    @property
    def shipped(self) -> dict[str, Any] | None:
        """What is noted of the files that are written at the end, or None."""
        return next(self.records_of("shipped"), None)

    @property
    def plan_file(self) -> Path:
        """The file of the plan."""
        return self.path / "plan.json"

    def weights(self, name: RowName, seed: int) -> Path:
        """Returns the folder for the weights of a network.

        Args:
          name: what it is.
          seed: number of its training.
        """
        if name in ("dense", "pruned"):
            return self.path / name
        return self.path / "networks" / f"{name}-{seed}"

    def training(self, name: RowName, seed: int) -> Path:
        """Returns the folder for checkpoints of a network while it is trained.

        Args:
          name: what it is.
          seed: number of its training.
        """
        return self.path / "training" / f"{name}-{seed}"


@dataclass(frozen=True, eq=False)
class PruningResult:
    """What came of pruning a network.

    Attributes:
      settings: what was done.
      plan: which channels stay.
      macs: multiply-adds for one image, dense and slim.
      parameters: trained parameters, dense and slim.
      rows: a row per network.
      test: (name, seed) -> accuracy on test images; empty without them.
      opened: when test images were opened.
      best_seed: the fine-tuning that is best on validation images, whose network is saved and exported.
      fallback_groups: groups in which all scores were equal, so that l2 ordered them.
      speed: what `compare_speed` measured, as plain data.
      export_problem: why there is no exported file; "" if there is one.
    """

    settings: PruningSettings
    plan: Plan
    macs: tuple[int, int]
    parameters: tuple[int, int]
    rows: tuple[PruningRow, ...]
    test: Mapping[tuple[RowName, int], Accuracy]
    opened: Sequence[str]
    best_seed: int
    fallback_groups: Sequence[str]
    speed: Mapping[str, Any]
    export_problem: str

    def accuracies(self, name: RowName, *, on_test: bool = False) -> tuple[float, ...]:
        """Returns the top-1 accuracies of all networks of a name, by seed.

        Args:
          name: what they are.
          on_test: on test instead of validation images.
        """
        rows = [row for row in self.rows if row.name == name]
        if on_test:
            return tuple(
                self.test[row.name, row.seed].top1 for row in rows if (row.name, row.seed) in self.test
            )
        return tuple(row.accuracy.top1 for row in rows)

    def to_json(self) -> dict[str, Any]:
        """Returns the result as plain data."""
        names = dict.fromkeys(row.name for row in self.rows)
        parts = {"validation": False, **({"test": True} if self.test else {})}
        return {
            "settings": self.settings.to_json(),
            "kept_counts": self.plan.kept_counts,
            "widths": dict(self.plan.widths),
            "macs": self.macs[0],
            "slim_macs": self.macs[1],
            "parameters": self.parameters[0],
            "slim_parameters": self.parameters[1],
            "accuracy": {
                part: {name: spread(self.accuracies(name, on_test=on_test)) for name in names}
                for part, on_test in parts.items()
            },
            "best_seed": self.best_seed,
            "fallback_groups": list(self.fallback_groups),
            "rows": [row.to_json() for row in self.rows],
            "test_opened": list(self.opened),
            "speed": dict(self.speed),
            "export_problem": self.export_problem,
        }


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Returns values with their mean and standard deviation, which is None for one value.

    Args:
      values: at least one.

    Example:
      >>> spread((1.0, 3.0))
      {'mean': 2.0, 'sd': 1.4142135623730951, 'each': [1.0, 3.0]}
    """
    return {"mean": mean(values), "sd": stdev(values) if len(values) > 1 else None, "each": list(values)}

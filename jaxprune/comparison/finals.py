"""The stored final comparison of a run: what was measured, which functions were compared and why."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from jaxprune.comparison.protocol import LayerView
from jaxprune.comparison.results import Comparison
from jaxprune.comparison.winner_checks import Part, Soundness
from jaxprune.files import RunDirectoryError, sealed, to_text
from jaxprune.search.run_files import FORMAT, REMEDIES, read_run_file

Controls = Literal["standard", "full"]

WINNER, GUESS, RANDOM_SEARCH = "winner", "best guess", "random search"
"""Row names that stand for different formulas in different runs."""


@dataclass(frozen=True)
class Finals:
    """The content of `final.json`: what the final comparison measured, and which functions it compared and why.

    Args:
      winner_id: id of the winner among the run's candidates.
      formulas: row name -> formula of every function.
      roles: row name -> what the row is, if its name does not say it.
      best_start: row of the library function or own seed that was best on the search bases; "winner" if that is the
        winner itself.
      controls: "standard" or "full".
      comparison: the measurements.
      views: task -> what functions keep on final base 0, layer by layer.
      steps: task -> number of optimiser steps of the last round's fine-tuning.
      seconds: time of the comparison, training of the final bases included.
      random_search: numbers of the random search of equal budget, or None if it was not run.
      unseen: tasks that were not searched on.
      known: rows of known functions, whose spread is the sd of a task, and among which rows are ranked; empty if they
        are too few.
      best_known: row of the known function that landscapes predicted to be best; empty without landscapes.
      parts: what each part of the winner is worth; empty without landscapes.
      soundness: task -> whether the winner tells channels apart on the final bases.
      compensated: tasks whose fine-tuning starts after a compensation of the removed channels.
    """

    winner_id: int
    formulas: Mapping[str, str]
    roles: Mapping[str, str]
    best_start: str
    controls: Controls
    comparison: Comparison
    views: Mapping[str, tuple[LayerView, ...]]
    steps: Mapping[str, int]
    seconds: float
    random_search: Mapping[str, Any] | None = None
    unseen: tuple[str, ...] = ()
    known: tuple[str, ...] = ()
    best_known: str = ""
    parts: tuple[Part, ...] = ()
    soundness: Mapping[str, Soundness] = field(default_factory=dict)
    compensated: tuple[str, ...] = ()

    @property
    def figure_rows(self) -> tuple[str, ...]:
        """The rows for figures with few lines: winner, l2, the best start formula, random plans, scratch."""
        return tuple(dict.fromkeys((WINNER, "l2", self.best_start, "random", "scratch")))

    @property
    def searched(self) -> tuple[str, ...]:
        """The tasks that were searched on."""
        return tuple(name for name in self.comparison.task_names if name not in self.unseen)

    def to_json(self) -> str:
        """Returns JSON text for `from_json`."""
        plain = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        plain["comparison"] = json.loads(self.comparison.to_json())
        plain["views"] = {
            task: [dataclasses.asdict(view) for view in views] for task, views in self.views.items()
        }
        plain["parts"] = [dataclasses.asdict(part) for part in self.parts]
        plain["soundness"] = {task: dataclasses.asdict(one) for task, one in self.soundness.items()}
        return to_text(sealed({"format": FORMAT, **plain}), indent=1) + "\n"

    @classmethod
    def from_json(cls, plain: Mapping[str, Any], path: Path) -> Finals:
        """Returns what `to_json` wrote, also in an earlier version, from the content that `read_run_file` returns.

        Args:
          plain: the content.
          path: the file, for messages.

        Raises:
          RunDirectoryError: if the content is no final comparison.
        """
        try:
            later = ("unseen", "known", "best_known", "parts", "soundness", "compensated")
            names = [field.name for field in dataclasses.fields(cls)]
            values = {name: plain[name] for name in names if name in plain or name not in later}
            values["comparison"] = Comparison.from_json(json.dumps(values["comparison"]))
            values["views"] = {
                task: tuple(_view_from_json(view) for view in views)
                for task, views in values["views"].items()
            }
            values["parts"] = tuple(Part(**part) for part in values.get("parts", ()))
            values["soundness"] = {
                task: Soundness(**one) for task, one in values.get("soundness", {}).items()
            }
            values |= {name: tuple(values.get(name, ())) for name in ("unseen", "known", "compensated")}
            return cls(**values)
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            raise RunDirectoryError(
                f"{path} needs a final comparison as write_report stores it, but it is damaged ({error!r}). "
                f"{REMEDIES[path.name]}"
            ) from error


def load_finals(run_dir: Path) -> Finals | None:
    """Returns the final comparison that a run directory holds, or None.

    Raises:
      RunDirectoryError: if it is damaged or of a newer format.
    """
    path = run_dir / "final.json"
    return Finals.from_json(read_run_file(path), path) if path.exists() else None


def _view_from_json(plain: Mapping[str, Any]) -> LayerView:
    kept = {name: tuple(index) for name, index in plain["kept"].items()}
    scores = {name: tuple(values) for name, values in plain["scores"].items()}
    return LayerView(plain["group"], plain["width"], plain["count"], kept, scores)

"""What a plan was asked for and what it met, as plain data that is saved with the plan."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jaxprune.pruning.plan_checks import shown
from jaxprune.types import is_whole

Amounts = float | Mapping[str, float]
"""One number for the whole network, or one for each group or pattern of groups."""

BUDGETS = ("kept_fraction", "kept_counts", "macs_fraction", "params_fraction", "latency_fraction")
"""Names of budgets, which are the keywords of `plan`."""


@dataclass(frozen=True)
class Budget:
    """A budget that a plan was made for, and what the plan keeps of the full network.

    Example:
      >>> print(Budget("macs_fraction", asked=0.5, met=0.4967))
      macs_fraction: asked 0.5, met 0.4967
      >>> Budget.from_record(Budget("kept_fraction", 0.5, 0.48).to_record()).met
      0.48
    """

    name: str
    """One of `BUDGETS`."""
    asked: Amounts
    """As the caller gave it."""
    met: Amounts
    """What is kept, in the same form; for a pattern, of the groups that it matches."""
    table: tuple[Mapping[str, float], ...] = ()
    """What was measured for a latency: multiply-adds kept, seconds, and the fraction of the full network's."""

    def __str__(self) -> str:
        return f"{self.name}: asked {_text(self.asked)}, met {_text(self.met)}"

    def to_record(self) -> dict[str, Any]:
        """Returns the budget as JSON can hold it."""
        plain = {
            name: dict(value) if isinstance(value, Mapping) else value
            for name, value in (("name", self.name), ("asked", self.asked), ("met", self.met))
        }
        return plain | ({"table": [dict(row) for row in self.table]} if self.table else {})

    @classmethod
    def from_record(cls, record: object) -> Budget:
        """Returns the budget that `to_record` wrote.

        Raises:
          ValueError: if it is none.
        """
        if not isinstance(record, dict) or not {"name", "asked", "met"} <= record.keys() <= {
            *cls.__annotations__
        }:
            raise ValueError(f"budget must have a name, and what was asked and met, got {shown(record)}")
        if record["name"] not in BUDGETS:
            raise ValueError(f"budget must be one of {', '.join(BUDGETS)}, got {shown(record['name'])}")
        for name in ("asked", "met"):
            if not _are_amounts(record[name]):
                raise ValueError(f"{name} of a budget must be numbers, got {shown(record[name])}")
        table = record.get("table", [0])
        if "table" in record and not (
            isinstance(table, list)
            and table
            and all(isinstance(row, dict) and _are_amounts(row) for row in table)
        ):
            raise ValueError(f"table of a budget must be rows of numbers, got {shown(table)}")
        return cls(record["name"], record["asked"], record["met"], tuple(record.get("table", ())))


def _text(amounts: Amounts) -> str:
    """Returns amounts for people, at most four digits."""
    if isinstance(amounts, Mapping):
        return ", ".join(f"{name} {value:.4g}" for name, value in amounts.items())
    return f"{amounts:.4g}"


def _are_amounts(value: object) -> bool:
    """Tells whether a value of a record is a number >= 0, or numbers by name."""
    if isinstance(value, dict):
        return bool(value) and all(_is_amount(each) for each in value.values())
    return _is_amount(value)


def _is_amount(value: object) -> bool:
    """Tells whether a value is a finite number >= 0."""
    return (is_whole(value) or isinstance(value, float)) and math.isfinite(value) and value >= 0

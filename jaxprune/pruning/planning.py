"""From scores to a plan: which channels of each group are kept under a budget."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path as FilePath

import jax
import numpy as np
from flax import nnx

from jaxprune.files import atomic_file
from jaxprune.pruning.budgets import Factor, Scope, check_scores, counts_within
from jaxprune.structure.groups import Structure
from jaxprune.structure.model_state import Parts, fingerprint
from jaxprune.structure.tracing import structure_of_parts, trace_structure
from jaxprune.types import Array, Kept

_FORMAT = 1


@dataclass(frozen=True)
class Plan:
    """What is kept of each group, with the network it was made for: plain data, saved as JSON.

    Example:
      >>> plan = Plan({"conv1.kernel": (0, 2)}, {"conv1.kernel": 4}, "0123456789abcdef", (1, 8, 8, 1), "float32")
      >>> Plan.from_json(plan.to_json()) == plan
      True
    """

    kept: Mapping[str, tuple[int, ...]]
    """Group name -> sorted kept indices; groups that stay whole are listed too."""
    widths: Mapping[str, int]
    """Group name -> number of channels before."""
    fingerprint: str
    """Of the network's paths, shapes and dtypes."""
    example_shape: tuple[int, ...]
    """Shape of the images the network takes, batch first."""
    example_dtype: str

    @property
    def kept_counts(self) -> dict[str, int]:
        """Group name -> number of kept channels."""
        return {name: len(kept) for name, kept in self.kept.items()}

    @property
    def example(self) -> jax.ShapeDtypeStruct:
        """Shape and dtype to trace the network with."""
        return jax.ShapeDtypeStruct(self.example_shape, np.dtype(self.example_dtype))

    def to_kept(self) -> Kept:
        """The content as hashable pairs."""
        return tuple(self.kept.items())

    def to_json(self) -> str:
        """The plan as JSON text."""
        record = {
            "format": _FORMAT,
            "fingerprint": self.fingerprint,
            "example": {"shape": list(self.example_shape), "dtype": self.example_dtype},
            "groups": {
                name: {"width": self.widths[name], "kept": list(kept)} for name, kept in self.kept.items()
            },
        }
        return json.dumps(record, indent=1)

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """A plan from what `to_json` wrote.

        Raises:
          ValueError: for text that is no plan, or of a newer format.
        """
        try:
            record = json.loads(text)
            version = int(record["format"])
            if version > _FORMAT:
                raise ValueError(
                    f"needs a plan of format {_FORMAT} or older, got {version}. Use a newer jaxprune to read it."
                )
            groups = record["groups"]
            return cls(
                kept={name: tuple(int(index) for index in group["kept"]) for name, group in groups.items()},
                widths={name: int(group["width"]) for name, group in groups.items()},
                fingerprint=str(record["fingerprint"]),
                example_shape=tuple(int(size) for size in record["example"]["shape"]),
                example_dtype=str(record["example"]["dtype"]),
            )
        except (AttributeError, KeyError, TypeError, json.JSONDecodeError) as error:
            raise ValueError(
                f"needs a plan as Plan.to_json writes it, got {text[:60]!r} ({type(error).__name__}: {error})."
            ) from error

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the plan atomically: a reader sees the old file or the whole new one."""
        with atomic_file(FilePath(path)) as temporary:
            temporary.write_text(self.to_json(), encoding="utf-8")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Plan:
        """Reads what `save` wrote."""
        return cls.from_json(FilePath(path).read_text())


def plan(
    model: nnx.Module,
    scores: Mapping[str, Array],
    example: Array | jax.ShapeDtypeStruct,
    *,
    kept_fraction: float | None = None,
    kept_counts: Mapping[str, int] | None = None,
    macs_fraction: float | None = None,
    params_fraction: float | None = None,
    scope: Scope = "group",
    multiple_of: int = 1,
    ignore: tuple[str, ...] = (),
    factor: Factor = "inner",
) -> Plan:
    """Chooses the channels to keep: the highest scores under exactly one budget.

    With `scope="group"` every group keeps the same fraction t of its channels: `round(t * C)` (half to even), at
    least 1, then rounded to the nearest multiple of `multiple_of` (up on a tie, at least one multiple, at most C).
    `kept_fraction` is t itself; for `macs_fraction` and `params_fraction` t is the greatest whose slim network costs at
    most that fraction of the full one. With `scope="global"` all channels compete by score (scores of `jp.score` are
    relative to their group's mean) and the lowest fall, in blocks of `multiple_of`, until the budget holds; no group
    loses its last channel. Lowest scores are pruned first, of equal ones the lower index.

    Args:
      model: NNX network; it is not changed.
      scores: group name -> [C], finite, for every group that is not ignored.
      example: images as the network takes them, or their shape and dtype.
      kept_fraction: fraction of channels kept, in (0, 1].
      kept_counts: group name -> channels kept; groups left out stay whole, `multiple_of` is not applied.
      macs_fraction: multiply-adds kept, in (0, 1].
      params_fraction: trained parameters kept, in (0, 1].
      scope: one fraction per group, or all channels in one ranking.
      multiple_of: counts are multiples of this where a group is at least that wide.
      ignore: names of groups that stay whole; shell patterns such as `"layers.*"` are fine.
      factor: which group loses channels where two share every index, such as whole heads (`"outer"`) and the places
        within each head (`"inner"`), or whole groups of a grouped convolution and the places within each; `"both"`
        prunes both, so that the product of the two fractions is left. `kept_counts` may name any group.

    Returns:
      The plan.

    Raises:
      ValueError: if nothing can be pruned; for missing, unknown, mis-sized or non-finite scores (group and channel
        named); for a budget out of range or below what one channel per group costs; if not exactly one is given.
    """
    structure = trace_structure(model, example)
    structure.require_groups()
    budgets = {
        "kept_fraction": kept_fraction,
        "kept_counts": kept_counts,
        "macs_fraction": macs_fraction,
        "params_fraction": params_fraction,
    }
    counts = counts_within(
        structure, budgets, scores=scores, scope=scope, multiple_of=multiple_of, ignore=ignore, factor=factor
    )
    checked = check_scores(
        structure, scores, needed=[name for name, n in counts.items() if n < structure.widths[name]]
    )
    return make_plan(structure, select(checked, counts))


def make_plan(structure: Structure, kept: Kept | Mapping[str, tuple[int, ...]]) -> Plan:
    """A plan for this network from kept indices; groups left out stay whole.

    Raises:
      ValueError: for indices that do not fit the groups.
    """
    indices = index_arrays(structure, kept)
    return Plan(
        kept={
            name: tuple(int(index) for index in np.asarray(indices[name]))
            if name in indices
            else tuple(range(width))
            for name, width in structure.widths.items()
        },
        widths=structure.widths,
        fingerprint=structure.fingerprint,
        example_shape=tuple(structure.example.shape),
        example_dtype=str(structure.example.dtype),
    )


def select(scores: Mapping[str, Array], counts: Mapping[str, int]) -> Kept:
    """The highest-scored channels of each group: the cheap path for many candidates of one network.

    Args:
      scores: group name -> [C], finite.
      counts: group name -> channels kept, between 1 and C; other groups are left out of the result.

    Returns:
      (group, sorted kept indices) in the order of `counts`; of equal scores the lower index falls first.

    Example:
      >>> select({"conv": np.array([3.0, 1.0, 1.0, 2.0])}, {"conv": 3})
      (('conv', (0, 2, 3)),)
    """
    return tuple((name, _highest(scores.get(name), count)) for name, count in counts.items())


def check_plan(parts: Parts, plan: Plan) -> Structure:
    """The structure of the plan's network.

    Raises:
      TypeError: if `plan` is no `Plan`.
      ValueError: if the model has other paths, shapes or dtypes than the network the plan was made for.
    """
    if not isinstance(plan, Plan):
        raise TypeError(f"needs a Plan, got {type(plan).__name__}. Make one with plan() or Plan.load().")
    found = fingerprint(parts.flat)
    if found != plan.fingerprint:
        raise ValueError(
            f"needs the network that the plan was made for (fingerprint {plan.fingerprint}, widths "
            f"{dict(plan.widths)}), got one with fingerprint {found}. "
            "Make a new plan for this network, or load the right one."
        )
    return structure_of_parts(parts, plan.example)


def _highest(scores: Array | None, count: int) -> tuple[int, ...]:
    if scores is None:
        return tuple(range(count))
    order = np.argsort(np.asarray(scores), kind="stable")
    return tuple(np.sort(order[len(order) - count :]).tolist())


# === merged: """Kept indices of groups as arrays, checked."""

KeptIndices = Mapping[str, Sequence[int] | Array] | Kept
"""Group name -> kept indices, as a mapping or as the pairs of `types.Kept`; indices may be traced arrays."""


def index_arrays(structure: Structure, kept: KeptIndices) -> dict[str, Array]:
    """Kept indices as integer arrays, checked against the groups as far as their values are known.

    Returns:
      Group name -> [kept] int32; groups that `kept` leaves out are left out here too: they stay whole.

    Raises:
      ValueError: for unknown groups, no index at all, or indices out of order or range. Traced indices are not
        looked at.
    """
    pairs: Iterable[tuple[str, Sequence[int] | Array]] = kept.items() if isinstance(kept, Mapping) else kept
    result: dict[str, Array] = {}
    problems: list[str] = []
    for name, values in pairs:
        group = structure.groups.get(name)
        if group is None:
            problems.append(f"no group is called {name!r} (groups: {', '.join(structure.groups)})")
            continue
        if isinstance(values, jax.core.Tracer):
            result[name] = values
            continue
        index = np.asarray(values, np.int32)
        if index.ndim != 1 or not 1 <= index.size <= group.size:
            problems.append(f"{name} needs between 1 and {group.size} kept indices, got shape {index.shape}")
        elif (np.diff(index) <= 0).any() or index[0] < 0 or index[-1] >= group.size:
            problems.append(
                f"{name} needs rising indices between 0 and {group.size - 1}, got {index.tolist()}"
            )
        result[name] = index
    if problems:
        raise ValueError(f"needs kept indices that fit the network's groups: {'; '.join(problems)}.")
    return result

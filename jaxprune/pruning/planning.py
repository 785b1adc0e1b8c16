"""Plans prunings: turns scores of channels and a budget into the channels that each group keeps."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path as FilePath
from types import MappingProxyType
from typing import Any

import jax
import numpy as np
from flax import nnx

from jaxprune.files import atomic_file
from jaxprune.nets.inputs import Batch, Example, is_dtype, is_shape
from jaxprune.pruning.budget_records import Budget, digest_problem, kept_digest, origin_problem, versions_now
from jaxprune.pruning.budgets import Fraction, Scope, check_scores, choose_counts
from jaxprune.pruning.latency import make_timer
from jaxprune.pruning.plan_checks import (
    index_arrays,
    network_problems,
    plan_problems,
    shown,
)
from jaxprune.pruning.scopes import Factor, Limits
from jaxprune.scoring.metrics import PruningFunction, name_of
from jaxprune.structure.groups import Structure
from jaxprune.structure.model_state import Parts, fingerprint
from jaxprune.structure.tracing import structure_of_parts, trace_structure
from jaxprune.types import Array, Kept, is_whole

_FORMAT, _FORMAT_OF_INPUTS = 1, 2
"""Of plans whose network takes one array, and of the others, which older versions cannot read."""


@dataclass(frozen=True)
class Plan:
    """The channels that each group keeps, and the network they were chosen for: plain data, saved as JSON.

    Raises:
      ValueError: for kept indices that are not rising whole numbers below the width of their group.

    Example:
      >>> plan = Plan({"conv1.kernel": (0, 2)}, {"conv1.kernel": 4}, "0123456789abcdef", (1, 8, 8, 1), "float32")
      >>> Plan.from_json(plan.to_json()) == plan
      True
    """

    kept: Mapping[str, tuple[int, ...]]
    """Group name -> sorted kept indices; groups that stay whole are listed too, and those left out stay whole.
    Read-only, as `widths` is: what was checked once stays as it is."""
    widths: Mapping[str, int]
    """Group name -> number of channels before pruning."""
    fingerprint: str
    """A digest of the network's paths, shapes and dtypes."""
    example_shape: tuple[int, ...]
    """Shape of the images that the network takes, batch axis first; of its first batched input if it takes several."""
    example_dtype: str
    notes: tuple[str, ...] = ()
    """What the slim network does otherwise than the full one without those channels, in words."""
    inputs: Example | None = None
    """What the network takes if that is not one array."""
    source: str = field(default="", compare=False, repr=False)
    """The file that the plan was loaded from, for messages."""
    budget: Budget | None = field(default=None, compare=False)
    """What was asked and what is met; None for a plan of given channels."""
    metric: str = field(default="", compare=False)
    """Text of the formula, or name of the function, that scored the channels; "" if it was not told."""
    versions: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False)
    """Versions of jaxprune, JAX and Flax that made the plan."""
    structure: Structure | None = field(default=None, compare=False, repr=False)
    """The groups of the network, kept so that `mask` and `slim` do not trace it again; not saved, copied or pickled."""

    def __post_init__(self) -> None:
        """Checks the kept indices and makes them tuples of whole numbers."""
        if problems := plan_problems(self.kept, self.widths):
            raise ValueError(
                f"needs kept indices that fit the groups' widths: {'; '.join(problems)}. Make a plan with plan() or "
                "make_plan()."
            )
        kept = {name: tuple(np.asarray(indices).tolist()) for name, indices in self.kept.items()}
        widths = {name: int(width) for name, width in self.widths.items()}
        object.__setattr__(self, "kept", MappingProxyType(kept))
        object.__setattr__(self, "widths", MappingProxyType(widths))

    def __reduce__(self) -> tuple[type[Plan], tuple[object, ...]]:
        """Makes copies and pickles of the fields, because read-only mappings have none."""
        values = {each.name: getattr(self, each.name) for each in fields(self) if each.name != "structure"}
        return Plan, tuple((values | {"kept": dict(self.kept), "widths": dict(self.widths)}).values())

    @property
    def kept_counts(self) -> dict[str, int]:
        """Group name -> number of kept channels."""
        return {name: len(kept) for name, kept in self.kept.items()}

    @property
    def example(self) -> jax.ShapeDtypeStruct | Example:
        """What to trace the network with: shape and dtype of its only array, or all that it takes."""
        if self.inputs is not None:
            return self.inputs
        return jax.ShapeDtypeStruct(self.example_shape, np.dtype(self.example_dtype))

    def to_kept(self) -> Kept:
        """Returns the kept indices as hashable pairs."""
        return tuple(self.kept.items())

    def to_json(self) -> str:
        """Returns the plan as JSON text.

        Raises:
          ValueError: if the network takes containers of classes that JSON cannot name.
        """
        example: dict[str, Any] = {"shape": list(self.example_shape), "dtype": self.example_dtype}
        record = {
            "format": _FORMAT if self.inputs is None else _FORMAT_OF_INPUTS,
            "fingerprint": self.fingerprint,
            "example": example if self.inputs is None else self.inputs.to_record(),
            "groups": {
                name: {"width": self.widths[name], "kept": list(kept)} for name, kept in self.kept.items()
            },
        }
        if self.notes:
            record["notes"] = list(self.notes)
        if self.metric:
            record["metric"] = self.metric
        if self.budget is not None:
            record |= {"budget": self.budget.to_record(), "kept_digest": kept_digest(self.kept)}
        if self.versions:
            record["versions"] = dict(self.versions)
        return json.dumps(record, indent=1)

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """Returns the plan that `to_json` wrote.

        Raises:
          ValueError: if the text is not a plan, or is of a newer format.
        """
        return cls._from_record(_read_record(text))

    @classmethod
    def _from_record(cls, record: Mapping[str, Any], source: str = "") -> Plan:
        """Returns the plan that a record holds."""
        example, inputs = record["example"], None
        if "shape" not in example:
            inputs = Example.from_record(example)
            example = {"shape": inputs.first.shape, "dtype": str(inputs.first.dtype)}
        plan = cls(
            kept={name: group["kept"] for name, group in record["groups"].items()},
            widths={name: group["width"] for name, group in record["groups"].items()},
            fingerprint=record["fingerprint"],
            example_shape=tuple(example["shape"]),
            example_dtype=example["dtype"],
            notes=tuple(record.get("notes", ())),
            inputs=inputs,
            source=source,
            budget=Budget.from_record(record["budget"]) if "budget" in record else None,
            metric=record.get("metric", ""),
            versions=record.get("versions", {}),
        )
        if problem := digest_problem(record, plan.kept):
            raise ValueError(problem)
        return plan

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the plan as JSON; a reader sees either the old file or the complete new one.

        Raises:
          OSError: if the file cannot be written; nothing is left behind.
        """
        with atomic_file(FilePath(path)) as temporary:
            temporary.write_text(self.to_json(), encoding="utf-8")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Plan:
        """Reads the plan that `save` wrote.

        Raises:
          OSError: if the file cannot be read.
          ValueError: if it does not hold a plan, or one of a newer format; the message names file and group.
        """
        try:
            text = FilePath(path).read_text(encoding="utf-8-sig")
            return cls._from_record(_read_record(text), source=os.fspath(path))
        except ValueError as error:  # among them text that is not UTF-8
            raise ValueError(f"{os.fspath(path)}: {error}") from error


def plan(
    model: nnx.Module,
    scores: Mapping[str, Array],
    example: Batch,
    *,
    kept_fraction: Fraction | None = None,
    kept_counts: Mapping[str, int] | None = None,
    macs_fraction: Fraction | None = None,
    params_fraction: Fraction | None = None,
    latency_fraction: float | None = None,
    scope: Scope = "group",
    multiple_of: int = 1,
    min_kept: Limits | None = None,
    max_kept: Limits | None = None,
    groups: Sequence[str] | None = None,
    ignore: Sequence[str] = (),
    factor: Factor = "inner",
    metric: PruningFunction | str = "",
) -> Plan:
    """Chooses the channels to keep: those with the highest scores, under exactly one budget.

    With `scope="group"` every group keeps the same fraction t of its channels: `round(t * C)` (half to even), at
    least 1. `kept_fraction` is t itself; for the others, t is the largest fraction whose slim network is within the
    budget. With `scope="global"` the channels of all groups compete by score (`jp.score` divides scores by their
    group's mean), and the lowest are removed in steps of `multiple_of` until the budget is met; every group keeps at
    least one channel. Then single groups keep a step more, as long as that fits, so that the network comes as near to
    the budget as steps allow. Among equal scores, the lower index is removed first.

    `plan.budget` says what was asked and what is met. A budget that is exceeded by more than 1 %, a plan that prunes
    nothing, and groups that stay whole because of `multiple_of` are warnings.

    Args:
      model: NNX network; it is not changed.
      scores: group name -> [C] finite scores; groups left out, such as those that `jp.score` cannot score, stay whole.
      example: a batch as the network takes it, or its shapes and dtypes, as for `trace_structure`.
      kept_fraction: fraction of channels kept, in (0, 1]; or fractions by name or shell pattern of groups, such as
        `{"encoder.*": 0.5, "decoder.*": 0.75}`, and groups that no pattern matches stay whole. In multiples every
        group's count is rounded to the nearest (up on a tie), then some are rounded the other way if that brings all
        channels nearer to the fraction; without multiples, only if `min_kept` or `max_kept` changes a count.
      kept_counts: group name -> channels kept; groups left out stay whole, and `multiple_of` is not applied.
      macs_fraction, params_fraction: fraction of multiply-adds or of trained parameters kept, in (0, 1]; or fractions
        by pattern, each of the layers that make or read channels of the groups that it matches.
      latency_fraction: fraction of the full network's time for a call, jitted, on a batch like `example`, in (0, 1].
        A few networks are compiled and timed (see `jaxprune.pruning.latency`): it holds for this machine.
      scope: one fraction per group, or all channels in one ranking.
      multiple_of: counts are multiples of this in groups that are at least that wide; narrower ones stay whole.
      min_kept, max_kept: the fewest and the most channels that groups keep: whole numbers of channels, or floats that
        are fractions of a group; one for all groups, or by name or pattern, as `jp.sensitivity(...).floors()` returns.
        Other groups make up for them, so that the budget is still met.
      groups: names of the only groups that may lose channels; shell patterns such as `"layers.*"` are allowed.
      ignore: names or patterns of groups that stay whole.
      factor: which of two groups that share every index loses channels. Whole heads, or whole groups of a grouped
        convolution, are `"outer"`; the channels within each of them are `"inner"`; `"both"` prunes both, so that the
        product of the two fractions is left. `kept_counts` may name any group.
      metric: what scored the channels, to be saved with the plan.

    Returns:
      The plan.

    Raises:
      ValueError: if nothing can be pruned; for unknown, wrongly sized or non-finite scores (the message names
        group and channel); for a budget that is out of range or cannot be met (the message says what can); for patterns
        that match nothing, and options that contradict each other; if not exactly one budget is given.
    """
    structure = trace_structure(model, example)
    structure.require_groups()
    checked = check_scores(structure, scores)
    choice = choose_counts(
        structure,
        kept_fraction=kept_fraction,
        kept_counts=kept_counts,
        macs_fraction=macs_fraction,
        params_fraction=params_fraction,
        latency_fraction=latency_fraction,
        scores=checked,
        scope=scope,
        multiple_of=multiple_of,
        min_kept=min_kept,
        max_kept=max_kept,
        groups=groups,
        ignore=ignore,
        factor=factor,
        seconds_of=None if latency_fraction is None else make_timer(model, structure, example),
    )
    if choice.remarks:
        warnings.warn(f"{'; '.join(choice.remarks)}.", stacklevel=2)
    counts = choice.counts
    pruned_groups = [name for name, count in counts.items() if count < structure.widths[name]]
    kept = select(check_scores(structure, scores, needed=pruned_groups), counts)
    text = metric if isinstance(metric, str) else name_of(metric)
    return replace(make_plan(structure, kept), budget=choice.budget, metric=text)


def make_plan(structure: Structure, kept: Kept | Mapping[str, tuple[int, ...]]) -> Plan:
    """Returns a plan for a network from kept indices.

    Args:
      structure: groups of the network.
      kept: group name -> kept indices; groups left out stay whole.

    Returns:
      The plan.

    Raises:
      ValueError: for indices that do not fit the groups.
    """
    indices, example = index_arrays(structure, kept), structure.example
    all_kept = {
        name: tuple(np.asarray(indices.get(name, range(width))).tolist())
        for name, width in structure.widths.items()
    }
    return Plan(
        kept=all_kept,
        widths=structure.widths,
        fingerprint=structure.fingerprint,
        example_shape=tuple(example.first.shape),
        example_dtype=str(example.first.dtype),
        inputs=None if example.is_one_array else example,
        notes=tuple(
            f"{weight}, which loses channels of {name}: the slim network normalises over those that stay"
            for name, weights in structure.normalised.items()
            for weight in weights
            if weight.is_norm and len(all_kept[name]) < structure.widths[name]
        ),
        versions=versions_now(),
        structure=structure,
    )


def select(scores: Mapping[str, Array], counts: Mapping[str, int]) -> Kept:
    """Returns the highest-scored channels of each group; cheap, for many candidates of one network.

    Args:
      scores: group name -> [C] finite scores; a group without scores keeps its first channels.
      counts: group name -> channels kept, between 1 and C; other groups are left out of the result.

    Returns:
      (group, sorted kept indices) in the order of `counts`; among equal scores the lower index is removed first.

    Example:
      >>> select({"conv": np.array([3.0, 1.0, 1.0, 2.0])}, {"conv": 3})
      (('conv', (0, 2, 3)),)
    """
    return tuple(
        (name, tuple(np.flatnonzero(highest(np.asarray(scores[name]), count)).tolist()))
        if name in scores
        else (name, tuple(range(count)))
        for name, count in counts.items()
    )


def highest(scores: np.ndarray, count: int) -> np.ndarray:
    """Returns [..., C] which of [..., C] finite scores are the `count` highest; of equal ones the higher indices.

    Example:
      >>> highest(np.array([3.0, 1.0, 1.0, 2.0]), 3).tolist()
      [True, False, True, True]
    """
    rising = np.argsort(scores, axis=-1, kind="stable")
    is_kept = np.zeros(np.shape(scores), bool)
    np.put_along_axis(is_kept, rising[..., scores.shape[-1] - count :], True, axis=-1)
    return is_kept


def check_plan(parts: Parts, plan: Plan) -> Structure:
    """Returns the structure of a model, after checking that the plan was made for it.

    Args:
      parts: the model, taken apart.
      plan: a plan for it.

    Returns:
      The model's structure.

    Raises:
      TypeError: if `plan` is not a `Plan`.
      ValueError: if the model has other paths, shapes or dtypes than the network the plan was made for, or if the plan
        has other groups, widths or indices than the network.
    """
    if not isinstance(plan, Plan):
        raise TypeError(f"needs a Plan, got {type(plan).__name__}. Make one with plan() or Plan.load().")
    origin = f"{plan.source}: " if plan.source else ""
    digest = fingerprint(parts.flat)
    if digest != plan.fingerprint:
        raise ValueError(
            f"{origin}needs the network that the plan was made for (fingerprint {plan.fingerprint}, widths "
            f"{dict(plan.widths)}), got one with fingerprint {digest}. "
            "Make a new plan for this network, or load the right one."
        )
    structure = structure_of_parts(parts, plan.example)
    if problems := network_problems(plan.widths, structure.widths):
        raise ValueError(
            f"{origin}needs kept indices that fit the network's groups: {'; '.join(problems)}. "
            "Make a new plan for this network."
        )
    return structure


def _read_record(text: str) -> dict[str, Any]:
    """Returns what a plan's JSON text holds, after checking everything but the kept indices and widths."""
    try:
        record = json.loads(text, object_pairs_hook=_without_repeats)
    except (ValueError, RecursionError) as error:  # a RecursionError for brackets that are nested too deeply
        raise _no_plan(f"got {text[:60]!r} ({type(error).__name__}: {error})") from error
    if not isinstance(record, dict):
        raise _no_plan(f"got {shown(record)}")
    missing = [name for name in ("format", "fingerprint", "example", "groups") if name not in record]
    if missing:
        raise _no_plan(f"{', '.join(missing)} missing, got {text[:60]!r}")
    version, digest, example = record["format"], record["fingerprint"], record["example"]
    has_inputs = isinstance(example, dict) and "batch" in example
    newest = _FORMAT_OF_INPUTS if has_inputs else _FORMAT
    if is_whole(version) and version > newest:
        raise ValueError(
            f"needs a plan of format {newest} or older, got {shown(version)}. Use a newer jaxprune to read it."
        )
    if not is_whole(version, smallest=1):
        raise _no_plan(f"format must be {newest}, got {shown(version)}")
    if not isinstance(digest, str):
        raise _no_plan(f"fingerprint must be a text, got {shown(digest)}")
    if has_inputs:
        try:
            Example.from_record(example)
        except ValueError as error:
            raise _no_plan(str(error)) from error
    elif (
        not isinstance(example, dict)
        or not (is_shape(shape := example.get("shape")) and shape)
        or not is_dtype(example.get("dtype"))
    ):
        raise _no_plan(f"example must have a shape and a dtype of JAX, got {shown(example)}")
    groups, notes = record["groups"], record.get("notes", [])
    if not isinstance(notes, list) or not all(isinstance(note, str) for note in notes):
        raise _no_plan(f"notes must be a list of texts, got {shown(notes)}")
    if problem := origin_problem(record):
        raise _no_plan(problem)
    if not isinstance(groups, dict):
        raise _no_plan(f"groups must be an object, got {shown(groups)}")
    for name, group in groups.items():
        if not isinstance(group, dict) or not {"width", "kept"} <= group.keys():
            raise _no_plan(f"group {name} must have a width and kept indices, got {shown(group)}")
    return record


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Returns the members of a JSON object, which must have different names."""
    names = [name for name, _ in pairs]
    if len(set(names)) < len(names):
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)!r} is listed twice")
    return dict(pairs)


def _no_plan(problem: str) -> ValueError:
    """Returns the error for text that is no plan."""
    return ValueError(
        f"needs a plan as Plan.to_json writes it, but {problem}. Make the plan again, or restore the file."
    )

"""Sensitivity: how accuracy falls when one group of channels is pruned further and further, and all others stay whole.

Channels are masked, not removed, and nothing is fine-tuned, so that one compiled program measures every group at every
fraction. What such curves tell is which groups need their channels; they do not add up over groups.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxprune.datasets.dataset import Dataset
from jaxprune.nets.inputs import Batch, arrays_of
from jaxprune.observation.examples import Examples, gather_examples
from jaxprune.pruning.budgets import check_scores
from jaxprune.pruning.masking import check_maskable, zero_channels
from jaxprune.pruning.planning import highest
from jaxprune.pruning.scopes import Factor, free_groups
from jaxprune.pruning.targets import checked_fraction
from jaxprune.scoring.metrics import PruningFunction, name_of
from jaxprune.structure.groups import Structure
from jaxprune.structure.model_state import FlatState, merge_to_run, split_model
from jaxprune.structure.tracing import trace_structure
from jaxprune.text import columns
from jaxprune.types import Array, is_whole

FRACTIONS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
"""The fractions of a group's channels that are measured by default."""


@dataclass(frozen=True)
class Sensitivity:
    """Accuracies of a network in which a single group is pruned, as plain data.

    Raises:
      ValueError: if widths, counts and accuracies are not of the same groups, or do not fit together.

    Example:
      >>> found = Sensitivity(90.0, {"conv": 4}, {"conv": (1, 2, 3)}, {"conv": (50.0, 88.5, 89.5)}, 200)
      >>> found.floors(max_drop=1.0), found.floors(max_drop=2.0)
      ({'conv': 3}, {'conv': 2})
      >>> print(found)
      group  channels  kept  accuracy, %   drop
      conv          4     1        50.00  40.00
                          2        88.50   1.50
                          3        89.50   0.50
    """

    dense_accuracy: float
    """Of the whole network, in percent."""
    widths: Mapping[str, int]
    """Group name -> number of channels."""
    counts: Mapping[str, tuple[int, ...]]
    """Group name -> kept channels that were measured, rising."""
    accuracies: Mapping[str, tuple[float, ...]]
    """Group name -> accuracy in percent with so many channels kept."""
    num_labels: int
    """Predictions that an accuracy is measured on; one of them is the least that it can change by."""
    metric: str = ""
    """What scored the channels."""

    def __post_init__(self) -> None:
        """Checks that everything fits together, and makes mappings read-only."""
        problem = _problem(self.widths, self.counts, self.accuracies)
        if not _is_percent(self.dense_accuracy) or not is_whole(self.num_labels, smallest=1):
            problem = "the accuracy of the whole network must be in percent, and the number of labels >= 1"
        if problem:
            raise ValueError(f"needs a sensitivity as jp.sensitivity returns it, but {problem}.")
        for name in ("widths", "counts", "accuracies"):
            value = getattr(self, name)
            plain = dict(value) if name == "widths" else {group: tuple(each) for group, each in value.items()}
            object.__setattr__(self, name, MappingProxyType(plain))

    def floors(self, max_drop: float = 1.0) -> dict[str, int]:
        """Returns the fewest channels of each group with which accuracy drops by no more than some points.

        A group keeps the smallest measured count from which on, upwards, no measured accuracy drops further; all its
        channels if even the largest measured count does. Groups that are pruned together drop more.

        Args:
          max_drop: points of accuracy in percent, >= 0.

        Returns:
          Group name -> kept channels, as `plan(min_kept=...)` takes them.

        Raises:
          ValueError: for a negative drop, or one that is no number.
        """
        if not 0 <= max_drop < math.inf:
            raise ValueError(f"max_drop needs points of accuracy >= 0, such as 1.0, got {max_drop!r}.")
        floors = dict(self.widths)
        for name, counts in self.counts.items():
            pairs = zip(reversed(counts), reversed(self.accuracies[name]), strict=True)
            for count, accuracy in pairs:
                if self.dense_accuracy - accuracy > max_drop + 1e-9:
                    break
                floors[name] = count
        return floors

    def to_json(self) -> str:
        """Returns the sensitivity as JSON text."""
        return json.dumps({"format": 1, **_as_plain(self)}, indent=1)

    @classmethod
    def from_json(cls, text: str) -> Sensitivity:
        """Returns the sensitivity that `to_json` wrote.

        Raises:
          ValueError: if the text is none.
        """
        try:
            record = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"needs a sensitivity as to_json writes it, got {text[:60]!r}.") from error
        if not isinstance(record, dict) or record.pop("format", None) != 1 or record.keys() != _FIELDS:
            raise ValueError(f"needs a sensitivity as to_json writes it, got {text[:60]!r}.")
        return cls(**record)

    def __str__(self) -> str:
        rows: list[tuple[object, ...]] = [("group", "channels", "kept", "accuracy, %", "drop")]
        for name, counts in self.counts.items():
            for count, accuracy in zip(counts, self.accuracies[name], strict=True):
                head = ("", "") if rows[-1][0] == name or count != counts[0] else (name, self.widths[name])
                rows.append((*head, count, f"{accuracy:.2f}", f"{self.dense_accuracy - accuracy:.2f}"))
        return columns(rows)


_FIELDS = frozenset(Sensitivity.__annotations__)


def sensitivity(
    model: nnx.Module,
    scores: Mapping[str, Array],
    data: Dataset | tuple[Batch, Array],
    *,
    fractions: Sequence[float] = FRACTIONS,
    groups: Sequence[str] | None = None,
    ignore: Sequence[str] = (),
    factor: Factor = "inner",
    batch_size: int = 256,
    metric: PruningFunction | str = "",
    on_message: Callable[[str], None] = lambda message: None,
) -> Sensitivity:
    """Measures accuracy against the kept fraction, one group at a time, without fine-tuning.

    The channels of highest score stay, the others are masked (see `mask`). Which channels are masked is an argument of
    the evaluation, so one program is compiled for all groups and fractions.

    Args:
      model: trained NNX network; it is not changed.
      scores: group name -> [C] finite scores, as `jp.score` returns them; groups left out are not measured.
      data: a dataset, of which the validation images are read, or inputs and labels [N]: images [N, ...], or any other
        batch as the network takes it. Of outputs [N, ..., K] the largest along the last axis is the prediction, and
        labels are [N, ...].
      fractions: kept fractions of a group's channels to measure, in (0, 1]; counts are rounded, at least one channel.
      groups: names or patterns of the groups to measure; by default all.
      ignore: names or patterns of groups that are not measured.
      factor: which of two groups that share every index is measured, see `plan`.
      batch_size: examples per forward pass.
      metric: what scored the channels, to be saved with the result.
      on_message: called with a sentence after every group.

    Returns:
      The accuracies. `print` shows a table, `floors` gives what `plan(min_kept=...)` takes.

    Raises:
      ValueError: for unusable scores, fractions or labels, patterns that match nothing, and groups that cannot be
        masked.

    Example:
      >>> class Net(nnx.Module):
      ...     def __init__(self, rngs):
      ...         self.hidden, self.head = nnx.Linear(2, 4, rngs=rngs), nnx.Linear(4, 2, rngs=rngs)
      ...     def __call__(self, x):
      ...         return self.head(nnx.relu(self.hidden(x)))
      >>> images, labels = np.eye(2, dtype=np.float32), np.arange(2)
      >>> found = sensitivity(Net(nnx.Rngs(0)), {"hidden.kernel": np.arange(4)}, (images, labels), fractions=[0.5])
      >>> found.counts["hidden.kernel"], found.num_labels
      ((2,), 2)
    """
    inputs, labels = _examples(data)
    examples = gather_examples(model, inputs, None, has_loss=False)
    if labels.shape[:1] != (examples.num_examples,):
        raise ValueError(
            f"data needs one label for each of at least one example, got {examples.example.words} and labels "
            f"{labels.shape}."
        )
    structure = trace_structure(model, examples.example)
    structure.require_groups()
    arrays = check_scores(structure, scores)
    free = free_groups(structure, ignore, factor, groups=groups, scores=arrays)
    check_maskable(structure, dict.fromkeys(free, 1))
    counts = {name: _counts(structure.widths[name], fractions) for name in free}
    accuracy_of = _make_evaluation(model, structure, examples, labels, batch_size)
    whole = {name: np.ones(structure.widths[name], bool) for name in free}
    dense = accuracy_of(whole)
    accuracies = {}
    for number, name in enumerate(free, start=1):
        accuracies[name] = tuple(
            accuracy_of({**whole, name: highest(arrays[name], count)}) for count in counts[name]
        )
        lowest = f"{accuracies[name][0]:.1f} % with {counts[name][0]} of {structure.widths[name]} channels"
        on_message(f"sensitivity: group {number} of {len(free)}, {name}: {lowest}")
    widths = {name: structure.widths[name] for name in free}
    text = metric if isinstance(metric, str) else name_of(metric)
    return Sensitivity(dense, widths, counts, accuracies, labels.size, text)


def _examples(data: object) -> tuple[Batch, np.ndarray]:
    """Returns inputs and whole-number labels."""
    pair = data.standardised().validation if isinstance(data, Dataset) else data
    if not isinstance(pair, tuple | list) or len(pair) != 2:
        got = f"{len(pair)} arrays" if isinstance(pair, tuple | list) else type(pair).__name__
        raise ValueError(f"data needs a Dataset, or images and labels, got {got}. Give (inputs, labels).")
    inputs = np.asarray(pair[0]) if isinstance(pair[0], list) else pair[0]
    labels = np.asarray(pair[1])
    sizes = [array.shape for array in arrays_of(inputs)[:1]]
    if not labels.size or any(not shape or labels.shape[:1] != shape[:1] for shape in sizes):
        raise ValueError(
            f"data needs one label for each of at least one example, got images {sizes[0]} and labels "
            f"{labels.shape}."
        )
    if not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(
            f"labels must be whole numbers from 0, got dtype {labels.dtype}. Use labels.astype(int)."
        )
    return inputs, labels


def _counts(width: int, fractions: Sequence[float]) -> tuple[int, ...]:
    """Returns the different numbers of channels of some fractions of a group, rising."""
    if not len(fractions):
        raise ValueError("fractions needs at least one fraction to measure, got none.")
    return tuple(sorted({max(1, round(checked_fraction("fractions", each) * width)) for each in fractions}))


def _make_evaluation(
    model: nnx.Module,
    structure: Structure,
    examples: Examples,
    labels: np.ndarray,
    batch_size: int,
) -> Callable[[Mapping[str, np.ndarray]], float]:
    """Returns a function from which channels stay to accuracy in percent; it compiles one program."""
    if not is_whole(batch_size, smallest=1):
        raise ValueError(f"batch_size must be a whole number >= 1, got {batch_size!r}.")
    graphdef, flat, rest = split_model(model, "evaluation")
    size = min(int(batch_size), examples.num_examples)
    example = examples.example.with_batch_size(size)

    def outputs_of(flat: FlatState, arrays: Sequence[Array]) -> Any:  # noqa: ANN401 - whatever it returns
        return example.call_network(cast(Callable[..., Any], merge_to_run(graphdef, flat, rest)), arrays)

    _check_outputs(jax.eval_shape(outputs_of, flat, example.arrays), labels)

    @jax.jit
    def num_correct(
        flat: FlatState, is_kept: Mapping[str, Array], arrays: Sequence[Array], answers: Array
    ) -> Array:
        logits = outputs_of(zero_channels(structure, flat, is_kept), arrays)
        is_right = (jnp.argmax(logits, -1) == answers) & jnp.all(jnp.isfinite(logits), -1)
        return jnp.sum(is_right, dtype=jnp.int32)

    flat = jax.device_put(flat)
    answers = labels.astype(np.int32)
    batches = []
    for batch in examples.batches(size):
        is_real = batch.is_real.reshape(-1, *[1] * (labels.ndim - 1))
        batches.append(jax.device_put((batch.arrays, np.where(is_real, answers[batch.rows], -1))))

    def accuracy_of(is_kept: Mapping[str, np.ndarray]) -> float:
        parts = [
            num_correct(flat, is_kept, *batch) for batch in batches
        ]  # all are under way before one is read
        return 100.0 * sum(map(int, parts)) / labels.size

    return accuracy_of


def _check_outputs(outputs: object, labels: np.ndarray) -> None:
    """Raises a `ValueError` if a network's outputs are no logits for such labels."""
    if not isinstance(outputs, jax.ShapeDtypeStruct) or outputs.ndim < 2:
        raise ValueError(f"sensitivity needs a network that returns one array of logits, got {outputs}.")
    if outputs.shape[1:-1] != labels.shape[1:]:
        raise ValueError(
            f"labels need one class for each place of the outputs {outputs.shape[1:-1]}, got {labels.shape[1:]} for "
            "each example."
        )
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= outputs.shape[-1]:
        raise ValueError(f"labels must be from 0 to {outputs.shape[-1] - 1}, got {low} to {high}.")


def _problem(widths: object, counts: object, accuracies: object) -> str | None:
    """Says in words why numbers by group do not fit together; None if they do."""
    if not (isinstance(widths, Mapping) and isinstance(counts, Mapping) and isinstance(accuracies, Mapping)):
        return "widths, counts and accuracies must be by group"
    if not widths.keys() == counts.keys() == accuracies.keys():
        return "widths, counts and accuracies must be of the same groups"
    for name, width in widths.items():
        kept, percents = counts[name], accuracies[name]
        if not isinstance(kept, list | tuple) or not isinstance(percents, list | tuple):
            return f"group {name} must have lists of counts and accuracies"
        if not is_whole(width) or not all(is_whole(count, smallest=1) and count <= width for count in kept):
            return f"group {name} must have counts from 1 to its width"
        if (
            list(kept) != sorted(set(kept))
            or len(kept) != len(percents)
            or not all(map(_is_percent, percents))
        ):
            return f"group {name} must have rising counts, and an accuracy in percent for each"
    return None


def _is_percent(value: object) -> bool:
    """Tells whether a value is a number from 0 to 100."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 100


def _as_plain(found: Sensitivity) -> dict[str, object]:
    """Returns the fields as JSON can hold them."""
    values = {name: getattr(found, name) for name in Sensitivity.__annotations__}
    return {name: dict(value) if isinstance(value, Mapping) else value for name, value in values.items()}

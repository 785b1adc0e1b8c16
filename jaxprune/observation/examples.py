"""Calibration examples in memory, or in batches that are read again for every pass, behind one interface.

The arrays of a batch come in the order of the network's `Example`. Batches have one size: the last one of a pass is
filled up with copies of its first example. Arrays that the caller has put on devices are put there again, batch by
batch.
"""

from __future__ import annotations

import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Generic, NamedTuple, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import AxisType, Mesh, NamedSharding

from jaxprune.nets.inputs import Batch, Example, arrays_of, example_of
from jaxprune.observation.checks import check_labels, check_real
from jaxprune.observation.sample import batch_indices
from jaxprune.structure.model_state import place_of
from jaxprune.types import Array

Targets = Any
"""What a loss reads besides the outputs: labels [N], any pytree of arrays [N, ...], or None for the batch itself."""

_Item = TypeVar("_Item")


class ExampleBatch(NamedTuple):
    """Some examples, as many as every batch of the pass has."""

    arrays: tuple[Array, ...]
    """What the network takes."""
    targets: Targets
    rows: np.ndarray
    """[size] number of each example among all."""
    is_real: np.ndarray
    """[size] False where an example only fills up."""


@dataclass(frozen=True, eq=False)
class Repeated(Generic[_Item]):
    """An iterable that makes a new iterator for every pass."""

    make: Callable[[], Iterator[_Item]]

    def __iter__(self) -> Iterator[_Item]:
        return self.make()


@dataclass(frozen=True, eq=False)
class Examples(ABC):
    """The examples that networks are observed on."""

    example: Example
    """What the network takes; the batch size is that of all examples, or of the first batch."""
    num_examples: int
    labels: np.ndarray | None
    """[N] whole numbers; None without classes."""

    @abstractmethod
    def batches(self, size: int) -> Iterator[ExampleBatch]:
        """Yields all examples in their order, `size` at a time."""

    @abstractmethod
    def take(self, rows: np.ndarray) -> tuple[tuple[Array, ...], Targets]:
        """Returns the arrays and targets of some examples."""

    def of_rows(self, rows: np.ndarray, size: int) -> Iterator[tuple[tuple[Array, ...], np.ndarray]]:
        """Yields what the network takes of some examples, `size` at a time, and which of them are real."""
        for part, is_real in batch_indices(len(rows), size):
            yield self.take(rows[part])[0], is_real

    def inputs(self, size: int) -> Repeated[tuple[tuple[Array, ...], np.ndarray]]:
        """Returns what the network takes, and which examples are real, for any number of passes."""
        return Repeated(lambda: ((batch.arrays, batch.is_real) for batch in self.batches(size)))

    def with_targets(self, size: int) -> Repeated[tuple[tuple[Array, ...], Targets, np.ndarray]]:
        """Returns the same with targets for the loss."""
        return Repeated(lambda: ((b.arrays, b.targets, b.is_real) for b in self.batches(size)))


def gather_examples(
    model: nnx.Module, images: Batch | Iterable[Any], labels: Targets, *, has_loss: bool
) -> Examples:
    """Checks calibration examples; batches of an iterable are read once for this.

    Args:
      model: the network that takes them; only its signature is read, and its shapes where that leaves a doubt.
      images: a batch as the network takes it, or an iterable of batches, or of (batch, labels).
      labels: [N] classes, or targets for the loss, or None.
      has_loss: whether the caller has a loss of its own, which may read any targets.

    Returns:
      The examples.

    Raises:
      ValueError: for inputs, labels or batches that do not fit together, or are not finite.
    """
    if is_stream(images, labels):
        if labels is not None:
            raise ValueError(
                f"needs labels in the batches, as pairs (batch, labels), got them beside {type(images).__name__}. Zip "
                "them with the batches."
            )
        return _StreamedExamples.read(model, images, has_loss=has_loss)
    batch = _as_batch(images)
    arrays = arrays_of(batch)
    if len(arrays) == 1 and arrays[0] is batch:
        if arrays[0].ndim < 2:
            raise ValueError(f"needs images [N, ...] with at least two axes, got shape {arrays[0].shape}.")
        if arrays[0].dtype == object:
            check_real(np.asarray(arrays[0]))
    example = example_of(batch, model)
    targets, classes = _check_targets(labels, example.batch_size, has_loss=has_loss)
    return _StoredExamples(
        example, example.batch_size, classes, _check_arrays(example, arrays), targets, arrays
    )


def is_stream(images: Batch | Iterable[Any], labels: Targets = None) -> bool:
    """Tells whether calibration examples come as an iterable of batches.

    A list is one without labels beside it; otherwise it is an array in the making.
    """
    if isinstance(images, list):
        return labels is None
    if hasattr(images, "__next__"):  # JAX's trees would warn
        return True
    is_leaf = len(leaves := jax.tree.leaves(images)) == 1 and leaves[0] is images
    return (
        is_leaf
        and not hasattr(images, "shape")
        and hasattr(images, "__iter__")
        and not isinstance(images, str)
    )


def first_batch(images: Batch | Iterable[Any], labels: Targets = None) -> Batch:
    """Returns a batch as the network takes it: all examples in memory, or the first ones of an iterable.

    Raises:
      ValueError: for an iterable that can be read only once, or is empty.
    """
    if is_stream(images, labels):
        _again(images)
    for batch in read_batches(images, labels):
        return batch
    raise _no_batches()


def read_batches(images: Batch | Iterable[Any], labels: Targets = None) -> Iterator[Batch]:
    """Yields batches as the network takes them: all examples in memory at once, or those of an iterable.

    Example:
      >>> [batch.shape for batch in read_batches([np.zeros((4, 2)), (np.ones((3, 2)), [0, 1, 2])])]
      [(4, 2), (3, 2)]
    """
    if is_stream(images, labels):
        yield from (_split(item)[0] for item in images)
    else:
        yield _as_batch(images)


def _as_batch(images: Batch) -> Batch:
    """Returns a list of images as one array, and arrays of other libraries as NumPy's."""
    return _known(images) if not isinstance(images, list) and arrays_of(images) else np.asarray(images)


def _known(batch: Batch) -> Batch:
    """Returns a batch with arrays of other libraries than JAX and NumPy as NumPy's."""
    return jax.tree.map(
        lambda leaf: leaf if isinstance(leaf, jax.Array) or not arrays_of(leaf) else np.asarray(leaf), batch
    )


def _check_arrays(example: Example, arrays: tuple[Array, ...], owner: str = "") -> tuple[Array, ...]:
    """Returns arrays on the host in a dtype of JAX, after checking their numbers."""
    return tuple(
        _checked(array, is_batched, owner if example.is_one_array else f"{owner}input {name}: ", example)
        for array, is_batched, name in zip(arrays, example.is_batched, example.names, strict=True)
    )


def _checked(array: Array, is_batched: bool, owner: str, example: Example) -> Array:
    """Returns one array in a dtype of JAX, after checking its numbers; random keys stay as they are."""
    if jnp.issubdtype(array.dtype, jax.dtypes.extended):
        return array
    wide = np.asarray(array)
    check_real(wide, owner=owner)
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite
        values = wide.astype(jax.dtypes.canonicalize_dtype(wide.dtype), copy=False)
    if np.issubdtype(values.dtype, np.integer) and values is not wide and not np.array_equal(values, wide):
        raise ValueError(
            f"{owner}needs whole numbers that fit {values.dtype}, got {wide.min()} to {wide.max()}. "
            "Scale these examples, or turn on jax_enable_x64."
        )
    if example.is_one_array:
        num_bad, kind = int(values.size - np.count_nonzero(np.isfinite(values))), "finite images"
    else:  # masks that are added to scores hold infinities
        num_bad, kind = int(np.count_nonzero(np.isnan(values))), "numbers"
    if num_bad:
        got = "NaN or infinite values" if example.is_one_array else "NaN"
        raise ValueError(f"{owner}needs {kind}, got {num_bad} {got}. Clean or drop these examples.")
    return values


def _check_targets(
    labels: Targets, num_examples: int, *, has_loss: bool, owner: str = ""
) -> tuple[Targets, np.ndarray | None]:
    """Returns what a loss reads, on the host, and the labels if they are classes."""
    if labels is None:
        return None, None
    is_plain = jax.tree_util.treedef_is_leaf(jax.tree.structure(labels)) or isinstance(labels, list)
    if is_plain and (np.ndim(labels) < 2 or not has_loss):
        classes = check_labels(labels, num_examples, owner=owner)
        return classes, classes
    if not has_loss:
        raise ValueError(
            f"{owner}needs labels [N], got {type(labels).__name__}: only a loss of your own reads targets of another "
            "form. Give observe(..., loss=...), or leave labels out."
        )
    targets = np.asarray(labels) if is_plain else jax.tree.map(np.asarray, labels)
    shapes = [leaf.shape for leaf in jax.tree.leaves(targets)]
    if any(shape[:1] != (num_examples,) for shape in shapes):
        raise ValueError(
            f"{owner}needs targets with an entry for each of {num_examples} examples, got shapes {shapes}. "
            "Put the batch axis first in each of their arrays."
        )
    return targets, None


def _beside(original: Array, rows: Array) -> Array:
    """Puts rows of an array on the devices over which the caller has split it."""
    if not isinstance(original, jax.Array) or len(original.sharding.device_set) == 1:
        return rows
    place = place_of(original, rows.shape)
    if isinstance(place, NamedSharding) and isinstance(place.mesh, Mesh):
        # the traced operations know nothing of meshes with explicit axes
        axis_types = (AxisType.Auto,) * len(place.mesh.axis_names)
        mesh = Mesh(place.mesh.devices, place.mesh.axis_names, axis_types=axis_types)
        place = NamedSharding(mesh, place.spec, memory_kind=place.memory_kind)
    return jax.device_put(rows, place)


@dataclass(frozen=True, eq=False)
class _StoredExamples(Examples):
    """Examples in memory."""

    arrays: tuple[Array, ...]
    targets: Targets
    originals: tuple[Array, ...]
    """The arrays as they were given."""

    def take(self, rows: np.ndarray) -> tuple[tuple[Array, ...], Targets]:
        """Returns the arrays and targets of some examples."""
        columns = zip(self.arrays, self.originals, self.example.is_batched, strict=True)
        arrays = tuple(
            _beside(original, array[_as_slice(rows)]) if is_batched else original
            for array, original, is_batched in columns
        )
        return arrays, jax.tree.map(lambda leaf: leaf[rows], self.targets)

    def batches(self, size: int) -> Iterator[ExampleBatch]:
        """Yields all examples in their order, `size` at a time."""
        for index, is_real in batch_indices(self.num_examples, size):
            yield ExampleBatch(*self.take(index), index, is_real)


def _as_slice(rows: np.ndarray) -> np.ndarray | slice:
    """Returns rising neighbours as a slice, which copies nothing."""
    is_range = len(rows) > 0 and bool((np.diff(rows) == 1).all())
    return slice(int(rows[0]), int(rows[-1]) + 1) if is_range else rows


@dataclass(frozen=True, eq=False)
class _StreamedExamples(Examples):
    """Examples in batches that an iterable gives anew in every pass."""

    source: Iterable[Any]
    has_loss: bool
    marks: tuple[int, ...]
    """A checksum of the first example of each batch, which has to be the same in every pass."""
    _subsets: dict[bytes, _StoredExamples] = field(default_factory=dict, init=False)
    """Examples that were taken before, by their rows: the sample."""

    @classmethod
    def read(cls, model: nnx.Module, source: Iterable[Any], *, has_loss: bool) -> _StreamedExamples:
        """Reads all batches once, to check and count them."""
        example: Example | None = None
        sizes, marks, labels = [], [], list[np.ndarray | None]()
        for number, item in enumerate(_again(source)):
            batch, given = _split(item)
            if not arrays_of(batch):
                raise ValueError(
                    f"batch {number}: needs a batch, or (batch, labels), got {type(item).__name__}. For a network that "
                    "takes several arguments give jaxprune.Inputs."
                )
            arrays, _, classes, found = _check_batch(number, batch, given, example, model, has_loss)
            example = example or found
            sizes.append(found.batch_size)
            labels.append(classes)
            marks.append(_mark(arrays))
        if example is None:
            raise _no_batches()
        known = [each for each in labels if each is not None]
        if len(known) not in (0, len(labels)):
            raise ValueError("needs labels with every batch or with none, got both. Give them each time.")
        all_labels = np.concatenate(known) if known else None
        return cls(example, sum(sizes), all_labels, source, has_loss, tuple(marks))

    def batches(self, size: int) -> Iterator[ExampleBatch]:
        """Yields all examples in their order, `size` at a time; the last ones of each batch are filled up."""
        start = 0
        for arrays, targets, count, originals in self._read():
            stored = _StoredExamples(self.example, count, None, arrays, targets, originals)
            for index, is_real in batch_indices(count, size):
                yield ExampleBatch(*stored.take(index), start + index, is_real)
            start += count

    def take(self, rows: np.ndarray) -> tuple[tuple[Array, ...], Targets]:
        """Returns the arrays and targets of some examples, which stay in memory."""
        subset = self._subset(rows)
        return subset.arrays, subset.targets

    def of_rows(self, rows: np.ndarray, size: int) -> Iterator[tuple[tuple[Array, ...], np.ndarray]]:
        """Yields what the network takes of some examples, `size` at a time, and which of them are real."""
        yield from self._subset(rows).inputs(size)

    def _subset(self, rows: np.ndarray) -> _StoredExamples:
        """Returns some examples, which one pass collects at the first call."""
        key = rows.tobytes()
        if key not in self._subsets:
            self._subsets[key] = self._collect(rows)
        return self._subsets[key]

    def _collect(self, rows: np.ndarray) -> _StoredExamples:
        order = np.argsort(rows, kind="stable")
        start, parts, originals = 0, [], cast(tuple[Array, ...], ())
        for arrays, targets, count, originals in self._read():
            inside = rows[order][(rows[order] >= start) & (rows[order] < start + count)] - start
            if inside.size:
                stored = _StoredExamples(self.example, count, None, arrays, targets, originals)
                own, own_targets = stored.take(inside)
                parts.append((tuple(map(_on_host, own)), jax.tree.map(np.asarray, own_targets)))
            start += count
        back = np.argsort(order, kind="stable")
        joined = tuple(
            np.concatenate([part[0][number] for part in parts])[back] if is_batched else originals[number]
            for number, is_batched in enumerate(self.example.is_batched)
        )
        targets = jax.tree.map(lambda *leaves: np.concatenate(leaves)[back], *(part[1] for part in parts))
        example = self.example.with_batch_size(len(rows))
        return _StoredExamples(example, len(rows), None, joined, targets, originals)

    def _read(self) -> Iterator[tuple[tuple[Array, ...], Targets, int, tuple[Array, ...]]]:
        """Yields arrays, targets, number of examples, and arrays as given, of each batch of a pass."""
        count = 0
        for number, item in enumerate(_again(self.source)):
            batch, given = _split(item)
            arrays, targets, _, found = _check_batch(number, batch, given, self.example, None, self.has_loss)
            if number >= len(self.marks) or _mark(arrays) != self.marks[number]:
                raise _other_batches(f"batch {number} differs")
            count += 1
            yield arrays, targets, found.batch_size, arrays_of(batch)
        if count < len(self.marks):
            raise _other_batches(f"{count} of {len(self.marks)} batches came")


def _check_batch(
    number: int,
    batch: Batch,
    labels: Targets,
    first: Example | None,
    model: nnx.Module | None,
    has_loss: bool,
) -> tuple[tuple[Array, ...], Targets, np.ndarray | None, Example]:
    """Returns arrays, targets and classes of a batch of an iterable, and its example, alike the first one."""
    owner, arrays = f"batch {number}: ", arrays_of(batch)
    found = example_of(batch, model if first is None else None)
    if first is not None:
        # a last batch may be smaller, even if an axis then looks like its batch axis
        found = Example(found.batch, first.call, first.is_batched if len(arrays) == len(first.arrays) else ())
        if not found.is_batched or found.with_batch_size(first.batch_size) != first:
            raise ValueError(
                f"{owner}needs {first.words} apart from the number of examples, as batch 0, got {found.words}. "
                "Bring all batches to one shape and type."
            )
    targets, classes = _check_targets(labels, found.batch_size, has_loss=has_loss, owner=owner)
    return _check_arrays(found, arrays, owner), targets, classes, found


def _again(source: Iterable[Any]) -> Iterable[Any]:
    """Returns an iterable that can be read several times."""
    if hasattr(source, "__next__"):
        raise ValueError(
            f"needs batches that can be read several times, got {type(source).__name__}, which gives them once. Give a "
            "list, or an object whose __iter__ starts anew."
        )
    return source


def _split(item: Batch) -> tuple[Batch, Targets]:
    """Splits what an iterable gives into a batch and labels; data loaders give lists of the two."""
    batch, labels = item if type(item) in (tuple, list) and len(item) == 2 else (item, None)
    return _known(batch), _known(labels)


def _mark(arrays: tuple[Array, ...]) -> int:
    """Returns a checksum of the first entries of the arrays."""
    total = 0
    for array in arrays:
        if isinstance(array, np.ndarray):
            total = zlib.crc32(np.ascontiguousarray(array[:1]).tobytes(), total)
    return total


def _on_host(array: Array) -> Array:
    """Returns an array as NumPy's, random keys as they are."""
    return array if jnp.issubdtype(array.dtype, jax.dtypes.extended) else np.asarray(array)


def _no_batches() -> ValueError:
    return ValueError("needs at least one batch, got none. Is the iterable empty?")


def _other_batches(what: str) -> ValueError:
    return ValueError(
        f"needs an iterable that gives the same batches in the same order each time, but in a later pass {what}. "
        "Do not shuffle calibration batches anew."
    )

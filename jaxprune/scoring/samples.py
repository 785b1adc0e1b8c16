"""Which rows of a class-sorted sample belong to which class."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from threading import RLock

import numpy as np

from jaxprune.scoring.kernels import RowMask, bucket

MASK_BYTES = 64 << 20
"""Masks of rows are kept up to that many bytes, unless a budget says less."""


class Masks:
    """Masks that several layers read, the last ones used, up to a number of bytes."""

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._kept: OrderedDict[Hashable, RowMask] = OrderedDict()
        self._lock, self._bytes = RLock(), 0

    def get(self, key: Hashable, make: Callable[[], RowMask]) -> RowMask:
        """The mask of a key, made if it is not there."""
        with self._lock:
            found = self._kept.get(key)
            if found is not None:
                self._kept.move_to_end(key)
                return found
        found = make()
        with self._lock:
            if key not in self._kept:
                self._kept[key] = found
                self._bytes += sum(array.nbytes for array in found[:3])
            while self._bytes > self._most_bytes and len(self._kept) > 1:
                self._bytes -= sum(array.nbytes for array in self._kept.popitem(last=False)[1][:3])
        return found


class Samples:
    """The rows of a sample by class; the same for all layers of a network.

    Args:
      class_counts: number of rows of each class.
      dtype: of values.
      mask_bytes: for masks of rows.

    Example:
      >>> samples = Samples((2, 1), np.float32)
      >>> samples.padded["NX"], samples.starts.tolist(), samples.is_other[1].tolist()
      (4, [0, 2], [True, True, False, False])
    """

    def __init__(
        self, class_counts: tuple[int, ...], dtype: np.dtype | type, mask_bytes: int = MASK_BYTES
    ) -> None:
        counts = np.asarray(class_counts)
        ids = np.repeat(np.arange(len(counts)), counts)
        self.num_classes = len(counts)
        self.true_sizes: dict[str, int | np.ndarray] = {"NX": len(ids), "N": counts}
        self.padded = {"NX": bucket(len(ids)), "N": bucket(int(counts.max()))}
        self.padded["NQ"] = self.padded["NX"]
        self.belongs = np.zeros((self.num_classes, self.padded["NX"]), dtype)
        """[K, padded NX] 1 where a row is of a class."""
        self.belongs[ids, np.arange(len(ids))] = 1
        is_row = np.arange(self.padded["NX"]) < len(ids)
        self.is_other = np.asarray((self.belongs == 0) & is_row)
        """[K, padded NX] whether a row is of another class; `Q` is `X` with this mask."""
        self.masks = Masks(mask_bytes)
        self.starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
        """[K] the first row of each class."""
        self.class_stride = int(counts[0]) if len(set(class_counts)) == 1 else 0
        """Rows from one class to the next; 0 where classes differ in size: then columns have one class at a time."""

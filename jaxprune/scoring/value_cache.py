"""Values that are kept between calls, the last ones used, up to a number of bytes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Sequence

from jaxprune.types import Array


class ValueCache:
    """What steps computed, by what they compute.

    Args:
      most_bytes: of all values together.

    Example:
      >>> import numpy as np
      >>> remembered = ValueCache(most_bytes=100)
      >>> remembered.add("a", [np.ones(8)]), remembered.add("b", [np.ones(8)])
      (None, None)
      >>> remembered.get("a") is None, remembered.get("b") is None
      (True, False)
    """

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes, self._bytes = most_bytes, 0
        self._values: OrderedDict[Hashable, Sequence[Array]] = OrderedDict()

    def get(self, key: Hashable) -> Sequence[Array] | None:
        """The values of a key, if they are still there."""
        found = self._values.get(key)
        if found is not None:
            self._values.move_to_end(key)
        return found

    def add(self, key: Hashable, values: Sequence[Array]) -> None:
        """Keeps values, and lets go of those that were not used for longest."""
        if key in self._values:
            return
        self._values[key] = values
        self._bytes += sum(value.nbytes for value in values)
        while self._bytes > self._most_bytes and self._values:
            _, dropped = self._values.popitem(last=False)
            self._bytes -= sum(value.nbytes for value in dropped)

"""Independent work on a few threads, with results in order."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

import jax

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def default_workers() -> int:
    """Threads that train at the same time: one per core on a CPU, where small networks leave cores idle; else one."""
    return (
        len(os.sched_getaffinity(0))
        if jax.default_backend() == "cpu" and hasattr(os, "sched_getaffinity")
        else 1
    )


def map_in_order(
    function: Callable[[_Item], _Result], items: Iterable[_Item], *, workers: int | None = None
) -> Iterator[_Result]:
    """`map` on threads: results in the order of the items, items taken as they are needed.

    At most twice as many items as threads are under way; closing the iterator drops those not yet begun. Which
    thread runs an item has no influence on its result.

    Args:
      function: called once for each item, on any thread.
      items: what to work on.
      workers: number of threads; `default_workers()` when None. 1 runs in the caller's thread.

    Yields:
      `function(item)` for each item in turn.

    Raises:
      ValueError: if `workers` is below 1.

    Example:
      >>> list(map_in_order(abs, [-2, 1], workers=2))
      [2, 1]
    """
    count = default_workers() if workers is None else workers
    if count < 1:
        raise ValueError(f"workers must be at least 1, got {count}.")
    if count == 1:
        yield from map(function, items)
        return
    waiting: deque[Future[_Result]] = deque()
    source = iter(items)
    with ThreadPoolExecutor(count) as pool:
        try:
            waiting.extend(pool.submit(function, item) for item in islice(source, 2 * count))
            while waiting:
                yield waiting.popleft().result()
                waiting.extend(pool.submit(function, item) for item in islice(source, 1))
        finally:
            for future in waiting:
                future.cancel()

"""Batches on the host, made in order by the caller itself, by threads, or by processes of Grain."""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
import shutil
import signal
import threading
from pathlib import Path
from typing import Protocol

from jaxprune.datasets.batch_makers import BatchMaker, HostBatch
from jaxprune.types import is_whole


class HostBatches(Protocol):
    """An iterator over a host's rows that can be closed."""

    def __next__(self) -> HostBatch:
        """Returns the next batch."""

    def close(self) -> None:
        """Ends threads and processes that make batches."""


def host_batches(make: BatchMaker, numbers: range, threads: int, workers: int) -> HostBatches:
    """Makes the batches of some numbers in order: in this thread, in others, or in processes.

    Args:
      make: makes the batch of a number; pickled if there are workers.
      numbers: numbers of the batches, one after the other.
      threads: number of threads, checked by `check_helpers`.
      workers: number of processes, likewise.

    Returns:
      The batches; each one is made by one thread or process as a whole, and each of these is at most two ahead.

    Example:
      >>> import numpy as np
      >>> from jaxprune.datasets.batch_makers import ArrayTesting, Rows
      >>> make = ArrayTesting(np.zeros((4, 2, 2, 1), np.uint8), np.arange(4), Rows(2))
      >>> next(host_batches(make, range(1, 2), threads=0, workers=0)).labels.tolist()
      [2, 3]
    """
    workers, threads = min(workers, len(numbers)), min(threads, len(numbers))
    if not workers and not threads:
        return (make(number) for number in numbers)
    import grain

    batches = grain.MapDataset.range(numbers.start, numbers.stop).map(make)
    if not workers:
        options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(2, threads))
        return iter(batches.to_iter_dataset(options))
    from absl import flags

    if not flags.FLAGS.is_parsed():  # Grain reads its flags, which a program without absl's app never parses
        flags.FLAGS.mark_as_parsed()
    options = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
    processes = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=1)
    return iter(batches.to_iter_dataset(options).mp_prefetch(processes, worker_init_fn=_start_worker))


def check_helpers(threads: int, workers: int, num_bytes: int) -> None:
    """Checks numbers of threads and processes, and that they have what they need.

    Args:
      threads: number of threads.
      workers: number of processes.
      num_bytes: size of a host's rows of a batch.

    Raises:
      ValueError: if one of the numbers is negative, neither is 0, or shared memory is too small for the processes.
      ImportError: if Grain is needed and not installed.
    """
    if not (is_whole(threads) and is_whole(workers) and min(threads, workers) == 0):
        raise ValueError(
            f"threads and workers must be whole numbers >= 0, and one of them 0, got {threads} and {workers}. "
            "Use threads for a few CPU cores, workers for many."
        )
    if (threads or workers) and importlib.util.find_spec("grain") is None:
        raise ImportError(
            "threads and workers need the package grain, and could not find it. Install it with "
            "pip install 'jaxprune[data]', or pass threads=0, workers=0."
        )
    if workers and Path("/dev/shm").is_dir():
        needed, free = workers * 2 * num_bytes, shutil.disk_usage("/dev/shm").free
        if needed > free:
            raise ValueError(
                f"{workers} workers need {needed / 2**20:,.0f} MiB of shared memory, got {free / 2**20:,.0f} MiB "
                "free in /dev/shm. Use fewer workers, or give the container more (docker run --shm-size)."
            )


def _start_worker(index: int, count: int) -> None:
    """Prepares a process: it ends with the one that started it, and at no other's wish.

    A signal to stop goes to all processes of a job; the training loop still wants its batches, to end in good order.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Waits for the parent process to end, however it ends, and ends this one: Grain's workers would wait for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)

"""Measures how fast the fine-tunings of a task are for each way to batch them, and chooses the best for a search.

What is timed are a few steps of the networks that are fine-tuned in the first round, from fresh weights: no base
network is trained. Compilation is timed apart.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np

from jaxprune.nets.cost import count_macs
from jaxprune.tasks.task_programs import TaskPrograms
from jaxprune.training.batching import DEFAULT_CHUNK, Batching, Convolution, Strategy
from jaxprune.training.local_devices import row_size
from jaxprune.training.loop import Examples, split_network
from jaxprune.training.trainer import Job, Trainer, default_workers, map_in_order

FLOPS_PER_MAC = 6
"""A multiply-accumulate is two operations, forward, and twice as many backward."""

CHUNKS = (1, 2, 4, 8, 16, 32)
"""Members on each device that are tried with "vmap"."""

MOST_SECONDS = 60.0
"""After a chunk that took longer, with its compilation, no larger one is tried; and no further one for a choice."""

SLOWER = 1.1
"""A chunk that takes longer for each member than the best so far, by this factor, ends the growth."""

_MOST_STEPS, _LEAST_STEPS, _FLOPS = 32, 2, 2e10
"""Steps that are timed: as many as take so many FLOPs, within these limits."""


class Timing(NamedTuple):
    """How long one fine-tuning of as many members as are trained together takes, in one round."""

    batching: Batching
    num_members: int
    """Members that are trained together: a row on all local devices, or one on each thread."""
    seconds: float
    first_seconds: float
    """Time of the first call, which compiles."""

    @property
    def member_seconds(self) -> float:
        """Time for each member where all are busy."""
        return self.seconds / self.num_members

    def seconds_of(self, sizes: Sequence[int]) -> float:
        """Computes the time of batches of fine-tunings, where a row takes as long when it is not full.

        Args:
          sizes: fine-tunings that are run together, batch by batch.

        Example:
          >>> Timing(Batching("vmap", 4), 8, 2.0, 9.0).seconds_of([8, 9])
          6.0
        """
        return self.seconds * sum(math.ceil(size / self.num_members) for size in sizes)


Timer = Callable[[TaskPrograms, Batching], Timing]


def time_batching(
    programs: TaskPrograms,
    batching: Batching,
    *,
    num_steps: int | None = None,
    batch_size: int | None = None,
    repeats: int = 2,
) -> Timing:
    """Times one way to batch the fine-tunings of a task.

    Args:
      programs: the machinery of the task.
      batching: the way; parts left open are chosen as `Trainer` does.
      num_steps: steps that are timed; by default 2 to 32, fewer the larger the network.
      batch_size: by default that of the recipe.
      repeats: how often the steps are timed; the fastest counts.
    """
    model, recipe = programs.fine_tuned_model, programs.recipe()
    size = batch_size or recipe.batch_size
    if num_steps is None:
        example = jax.ShapeDtypeStruct((size, *programs.data.x.shape[1:]), programs.data.x.dtype)
        affordable = round(_FLOPS / (FLOPS_PER_MAC * size * count_macs(model, example)))
        num_steps = min(max(affordable, _LEAST_STEPS), _MOST_STEPS, programs.num_steps)
    rows = np.arange(num_steps * size) % len(programs.data.y)
    examples = Examples(programs.data.x[rows], programs.data.y[rows])
    few = Examples(examples.x[:2], examples.y[:2])
    short = recipe.replace(epochs=1, warmup=0.0, batch_size=size)
    trainer = Trainer(model, short, examples, few, **batching._asdict())
    order = np.arange(num_steps * size, dtype=np.int32).reshape(num_steps, size)
    job = Job(split_network(model)[1], order, jax.random.key(0))
    chunk, is_vmapped = trainer.batching.chunk or 1, trainer.chosen == "vmap"
    jobs = [job] * (row_size(chunk) if is_vmapped else default_workers())

    def run() -> float:
        start = time.perf_counter()
        if is_vmapped:
            list(trainer.run(jobs))
        else:
            list(map_in_order(lambda job: next(trainer.run([job])), jobs))
        return time.perf_counter() - start

    first = run()
    seconds = min(run() for _ in range(repeats)) * programs.num_steps / num_steps
    return Timing(trainer.batching, len(jobs), seconds, first)


def time_all(
    programs: TaskPrograms, *, chunks: Sequence[int] = CHUNKS, timer: Timer = time_batching
) -> Iterator[Timing]:
    """Times every way to batch the fine-tunings of a task: "scan", "loop", and "vmap" of growing chunks.

    Chunks grow until one is slower, takes too long, or does not fit into memory, with the library's convolution and
    with patches.

    Args:
      programs: the machinery of the task.
      chunks: those that are tried, the smallest first.
      timer: times one way.

    Yields:
      Each timing as soon as it is known.
    """
    one_by_one: tuple[Strategy, ...] = ("scan", "loop")
    for strategy in one_by_one:
        yield timer(programs, Batching(strategy))
    for convolution in _convolutions("auto"):
        best = math.inf
        for chunk in chunks:
            timing = _if_it_fits(timer, programs, Batching("vmap", chunk, convolution))
            if timing is None:
                break
            yield timing
            seconds = timing.member_seconds
            if seconds > SLOWER * best or timing.first_seconds > MOST_SECONDS:
                break
            best = min(best, seconds)


def choose_batching(
    programs: TaskPrograms,
    sizes: Sequence[int],
    on_message: Callable[[str], None] = lambda message: None,
    *,
    timer: Timer = time_batching,
    is_accelerator: bool | None = None,
) -> Batching:
    """Chooses how a new run batches the fine-tunings of a task: as asked, or what is measured to be fastest.

    Only where strategy and chunk are left open, on an accelerator, anything is measured: both convolutions first, then
    other chunks with the faster one, for a minute or so. What counts is the time of a whole generation, in which large
    rows may hold copies.

    Args:
      programs: the machinery of the task, with what was asked for.
      sizes: fine-tunings that a generation runs together, batch by batch.
      on_message: called with what is measured, and what was found.
      timer: times one way.
      is_accelerator: whether JAX computes on an accelerator; by default as it does.

    Returns:
      What was asked for, or the choice.
    """
    asked = programs.asked
    is_accelerator = jax.default_backend() != "cpu" if is_accelerator is None else is_accelerator
    if not is_accelerator or asked.strategy != "auto" or asked.chunk is not None:
        return asked
    name, start = programs.task.name, time.perf_counter()
    on_message(f"Measuring how fine-tunings of {name} are best batched on this machine.")
    first = [
        _if_it_fits(timer, programs, Batching("vmap", 8, convolution))
        for convolution in _convolutions(asked.convolution)
    ]
    timings = [timing for timing in first if timing is not None]
    convolution = (
        min(timings, key=lambda timing: timing.seconds).batching.convolution if timings else "library"
    )
    for chunk in (DEFAULT_CHUNK, 4, 32, 2, 1):
        if time.perf_counter() - start > MOST_SECONDS:
            break
        timing = _if_it_fits(timer, programs, Batching("vmap", chunk, convolution))
        timings += [] if timing is None else [timing]
    if not timings:
        raise MemoryError(
            f"not one network of task {name} can be fine-tuned on this device: its memory is full or too small. Use a "
            "smaller batch size, or end what else uses the device."
        )
    best = min(timings, key=lambda timing: timing.seconds_of(sizes))
    on_message(
        f"{name}: {best.batching} on each device, the best of {len(timings)} measured in "
        f"{time.perf_counter() - start:.0f} s ({best.member_seconds * 1e3:.1f} ms a fine-tuning in a full row)."
    )
    return best.batching


def _if_it_fits(timer: Timer, programs: TaskPrograms, batching: Batching) -> Timing | None:
    """Times one way to batch; None if it does not fit into the device's memory."""
    try:
        return timer(programs, batching)
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        if not isinstance(error, MemoryError) and "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return None


def _convolutions(asked: Convolution) -> tuple[Convolution, ...]:
    """The convolutions that are tried."""
    return ("library", "patches") if asked == "auto" else (asked,)

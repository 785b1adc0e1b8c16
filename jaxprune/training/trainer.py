"""Trains many networks of one shape with one compiled program: base networks, slim ones, masked ones.

Networks with equal kept counts have equal shapes, so all candidates and base networks of a task are members of one
program. A strategy says how members are batched, which only matters for speed:

- "scan": one compiled loop over the steps of one member, members distributed over threads (`map_in_order`);
  fastest on a CPU when every convolution runs as shifted views (`convolve_by_patches`).
- "loop": a Python loop around one jitted step that reuses its input's memory; for networks whose convolutions must
  stay the library's, which a CPU runs 5 to 8 times slower inside a compiled loop.
- "vmap": rows of one chunk of members under `jax.vmap` on each local device, the last row padded; for accelerators.

docs/fine_tuning.md holds the measurements behind the choice.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import islice
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxprune.nets.blocks import with_patch_convolutions
from jaxprune.pruning.masking import apply_masks
from jaxprune.structure.model_state import FlatState
from jaxprune.training.batching import DEFAULT_CHUNK, Batching, Convolution, Strategy
from jaxprune.training.local_devices import on_all_devices, over_devices, row_size, stack_row, unstack_row
from jaxprune.training.loop import (
    Examples,
    Network,
    StepState,
    count_correct,
    make_step,
    segments,
    split_network,
    train,
)
from jaxprune.training.recipes import Recipe

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


class Job(NamedTuple):
    """The inputs of one training run."""

    weights: FlatState
    """Path -> array, the weights to start from."""
    order: np.ndarray
    """[steps, batch] example indices from `batch_order`, of equal shape for all jobs of a trainer."""
    key: jax.Array
    """Seeds dropout and augmentation."""
    masks: FlatState | None = None
    """Path -> booleans, False where weights stay zero; given for all jobs of a trainer or for none."""


class Trained(NamedTuple):
    """The result of one training run."""

    weights: FlatState
    accuracies: np.ndarray
    """[evaluations] validation accuracies in percent, the last one after the last step."""
    seconds: float


class Row(NamedTuple):
    """How one row of "vmap" was used."""

    program: int
    """A number that only rows of the same compiled program share."""
    num_members: int
    """Members that were jobs; the others were copies."""
    size: int
    seconds: float


@dataclass(frozen=True, eq=False)
class Trainer:
    """Trains networks of one shape on one dataset with one recipe; it compiles once, at the first job.

    Args:
      model: any network of this shape; its weights are not read and it is not changed.
      recipe: optimiser, number of epochs, batch size.
      data: training examples.
      validation: examples held out of the training set.
      evaluations: number of evaluations in a run, evenly spread over its steps.
      strategy: how members are batched, see above; "auto" chooses by backend and network.
      chunk: members on each device with "vmap", by default `DEFAULT_CHUNK`; a row that is not full is padded, so that
        nothing recompiles.
      convolution: "library", or "patches" for those that can be computed as patches; "auto" takes patches on a CPU and
        wherever members are trained by "scan", but not where "loop" was asked for.
      rows: gets an entry for every row of "vmap".

    Raises:
      ValueError: if a setting is out of range.

    Example:
      >>> from jaxprune.nets import PlainConvNet
      >>> from jaxprune.training.loop import batch_order
      >>> from jaxprune.training.recipes import RECIPES
      >>> model = PlainConvNet(nnx.Rngs(0), widths=(2, 2, 4))
      >>> examples = Examples(jnp.zeros((50, 8, 8, 1)), jnp.zeros(50, jnp.int32))
      >>> recipe = RECIPES["adam_short"].replace(epochs=1)
      >>> trainer = Trainer(model, recipe, examples, examples)
      >>> weights = split_network(model)[1]
      >>> job = Job(weights, batch_order(jax.random.key(0), 50, recipe), jax.random.key(1))
      >>> [trained.accuracies.shape for trained in trainer.run([job, job])]
      [(1,), (1,)]
    """

    model: nnx.Module
    recipe: Recipe
    data: Examples
    validation: Examples
    evaluations: int = 1
    strategy: Strategy = "auto"
    chunk: int | None = None
    convolution: Convolution = "auto"
    rows: list[Row] = field(default_factory=list)

    def __post_init__(self) -> None:
        Batching(self.strategy, self.chunk, self.convolution).checked()

    @property
    def chosen(self) -> Strategy:
        """The strategy in use, never "auto"."""
        return self.batching.strategy

    @cached_property
    def batching(self) -> Batching:
        """The batching in use, with nothing left open."""
        convolution: Convolution = "patches" if self._uses_patches else "library"
        if is_vmapped(self.strategy):
            return Batching("vmap", self.chunk or DEFAULT_CHUNK, convolution)
        if self.strategy != "auto":
            return Batching(self.strategy, 1, convolution)
        return Batching("loop" if self._has_library_convolutions() else "scan", 1, convolution)

    @cached_property
    def network(self) -> Network:
        """The network without weights, with the convolutions in use."""
        return split_network(with_patch_convolutions(self.model) if self._uses_patches else self.model)[0]

    @property
    def _uses_patches(self) -> bool:
        """Whether convolutions run as matrix products where they can, see `convolution`."""
        if self.convolution != "auto":
            return self.convolution == "patches"
        return self.strategy != "loop" and (jax.default_backend() == "cpu" or self.strategy == "scan")

    def run(self, jobs: Iterable[Job]) -> Iterator[Trained]:
        """Trains every job.

        Several threads may call this at once; this is how "scan" and "loop" use more than one core.

        Args:
          jobs: the training runs, taken one by one (or in rows) as they are needed.

        Yields:
          The result of each job, in the order of the jobs.
        """
        yield from self._run_rows(iter(jobs)) if self.chosen == "vmap" else map(self._run_one, jobs)

    def _run_one(self, job: Job) -> Trained:
        """Runs one job by "scan" or "loop"."""
        start = time.perf_counter()
        weights, counts = (
            self._loop(job) if self.chosen == "loop" else self._jitted(job, self.data, self.validation)
        )
        jax.block_until_ready(counts)
        return Trained(weights, self._percent(counts), time.perf_counter() - start)

    def _run_rows(self, jobs: Iterator[Job]) -> Iterator[Trained]:
        """Runs jobs by "vmap"."""
        assert self.batching.chunk is not None
        size = row_size(self.batching.chunk)
        while members := list(islice(jobs, size)):
            start = time.perf_counter()
            row = self._vmapped(stack_row(members, size), *self._placed)
            weights, counts = jax.block_until_ready(row)
            seconds = time.perf_counter() - start
            self.rows.append(Row(id(self), len(members), size, seconds))
            for member_weights, member_counts in unstack_row((weights, counts), len(members)):
                yield Trained(member_weights, self._percent(member_counts), seconds / len(members))

    def _program(self, job: Job, data: Examples, validation: Examples) -> tuple[FlatState, jax.Array]:
        """The training run as a pure function of arrays, to be jitted."""
        return train(
            self.network, self.recipe, job.weights, data, validation, jnp.asarray(job.order), job.key,
            masks=job.masks, evaluations=self.evaluations,
        )  # fmt: skip

    @cached_property
    def _jitted(self) -> Callable[[Job, Examples, Examples], tuple[FlatState, jax.Array]]:
        """The program of "scan"."""
        return jax.jit(self._program)

    @cached_property
    def _vmapped(self) -> Callable[[Job, Examples, Examples], tuple[FlatState, jax.Array]]:
        """The program of "vmap"; jobs have a leading member axis."""
        return over_devices(self._program)

    @cached_property
    def _placed(self) -> tuple[Examples, Examples]:
        """The examples on every device that "vmap" uses."""
        return on_all_devices((self.data, self.validation))

    @cached_property
    def _loop_parts(
        self,
    ) -> tuple[Callable[[FlatState], StepState], Callable[..., StepState], Callable[..., jax.Array]]:
        """Jitted initialisation, step and evaluation of "loop"; the step reuses the memory of the old state."""
        init, step = make_step(self.network, self.recipe, self.recipe.num_steps(self.data.x.shape[0]))

        def numbered_step(
            state: StepState,
            number: int,
            rows: jax.Array,
            key: jax.Array,
            masks: FlatState | None,
            data: Examples,
        ) -> StepState:
            return step(state, data.x[rows], data.y[rows], jax.random.fold_in(key, number), masks)

        count = jax.jit(partial(count_correct, self.network))
        return jax.jit(init), jax.jit(numbered_step, donate_argnums=0), count

    def _loop(self, job: Job) -> tuple[FlatState, jax.Array]:
        """The training run as a Python loop; returns what `train` returns."""
        init, step, count = self._loop_parts
        weights = job.weights if job.masks is None else apply_masks(job.weights, job.masks)
        state = init(jax.tree.map(jnp.copy, weights))  # the first step must not reuse the caller's arrays
        counts = []
        for first, last in segments(len(job.order), self.evaluations):
            for number in range(first, last):
                state = step(state, number, jnp.asarray(job.order[number]), job.key, job.masks, self.data)
            counts.append(count(state.result, self.validation))
        return state.result, jnp.stack(counts)

    def _percent(self, counts: jax.Array) -> np.ndarray:
        """Accuracies in percent from counts of rightly classified validation examples."""
        return np.asarray(counts, np.float64) * 100.0 / self.validation.x.shape[0]

    def _has_library_convolutions(self) -> bool:
        """Whether the network still calls the library's convolution after patches replaced it where they can."""
        weights = split_network(self.model)[1]
        image = jax.ShapeDtypeStruct((2, *self.data.x.shape[1:]), self.data.x.dtype)
        return "conv_general_dilated" in str(jax.make_jaxpr(self.network.logits)(weights, image))


def is_vmapped(strategy: Strategy) -> bool:
    """Tells whether a strategy trains many members at once, which "auto" does on accelerators."""
    return strategy == "vmap" or (strategy == "auto" and jax.default_backend() != "cpu")


def default_workers() -> int:
    """Returns the number of training threads: one per core on a CPU, where a small network cannot fill all; else 1."""
    return (
        len(os.sched_getaffinity(0))
        if jax.default_backend() == "cpu" and hasattr(os, "sched_getaffinity")
        else 1
    )


def map_in_order(
    function: Callable[[_Item], _Result], items: Iterable[_Item], *, workers: int | None = None
) -> Iterator[_Result]:
    """Calls a function on every item on several threads and yields the results in the order of the items.

    Items are taken as they are needed: at most twice as many as there are threads are submitted at a time. Closing
    the iterator drops those not yet begun.

    Args:
      function: called once for each item, on any thread.
      items: arguments of the calls.
      workers: number of threads; None for `default_workers()`. With 1, calls run in the caller's thread.

    Yields:
      `function(item)` for each item in turn.

    Raises:
      ValueError: if `workers` is below 1.

    Example:
      >>> list(map_in_order(abs, [-2, 1], workers=2))
      [2, 1]
    """
    workers = default_workers() if workers is None else workers
    if workers < 1:
        raise ValueError(f"workers must be at least 1, got {workers}.")
    if workers == 1:
        yield from map(function, items)
        return
    futures: deque[Future[_Result]] = deque()
    source = iter(items)
    with ThreadPoolExecutor(workers) as executor:
        try:
            futures.extend(executor.submit(function, item) for item in islice(source, 2 * workers))
            while futures:
                yield futures.popleft().result()
                futures.extend(executor.submit(function, item) for item in islice(source, 1))
        finally:
            for future in futures:
                future.cancel()

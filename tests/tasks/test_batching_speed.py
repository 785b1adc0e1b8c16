"""Timing ways to batch fine-tunings, and choosing the one with which a generation takes the least time."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from tiny_task import tiny_programs

from jaxprune.tasks.batching_speed import Timing, choose_batching, time_all, time_batching
from jaxprune.tasks.task_programs import TaskPrograms
from jaxprune.training.batching import Batching

DEVICES = 8


class Clock:
    """Times rows on eight devices from a table of seconds per row; a chunk that is not in it needs too much memory."""

    def __init__(self, seconds: Mapping[int, float], patches: float = 2.0) -> None:
        self.seconds, self.patches, self.asked = seconds, patches, list[Batching]()

    def __call__(self, programs: TaskPrograms, batching: Batching) -> Timing:
        self.asked.append(batching)
        if batching.chunk is None:
            return Timing(batching, 1, 1.0, 2.0)
        if batching.chunk not in self.seconds:
            raise MemoryError
        factor = self.patches if batching.convolution == "patches" else 1.0
        return Timing(batching, DEVICES * batching.chunk, factor * self.seconds[batching.chunk], 2.0)


FLAT_FROM_8 = {1: 1.0, 2: 1.2, 4: 1.8, 8: 3.2, 16: 6.4, 32: 13.0}


@pytest.mark.parametrize(
    ("sizes", "chunk"), [((800,), 8), ((16, 22), 2), ((8, 8), 1)], ids=["bank", "generation", "small"]
)
def test_the_time_of_a_generation_decides(sizes: tuple[int, ...], chunk: int) -> None:
    messages: list[str] = []
    clock = Clock(FLAT_FROM_8)
    found = choose_batching(tiny_programs(), sizes, messages.append, timer=clock, is_accelerator=True)
    assert found == Batching("vmap", chunk, "library")
    assert clock.asked == [
        Batching("vmap", 8, "library"),
        Batching("vmap", 8, "patches"),
        *(Batching("vmap", chunk, "library") for chunk in (16, 4, 32, 2, 1)),
    ]
    assert messages[0] == "Measuring how fine-tunings of tiny are best batched on this machine."
    assert f"tiny: vmap of {chunk}, convolutions of the library on each device, the best of 7" in messages[1]


def test_the_faster_convolution_is_chosen_unless_one_was_asked_for() -> None:
    clock = Clock(FLAT_FROM_8, patches=0.5)
    found = choose_batching(tiny_programs(), (800,), timer=clock, is_accelerator=True)
    assert found == Batching("vmap", 8, "patches")
    asked = TaskPrograms(tiny_programs().task, convolution="library")
    found = choose_batching(asked, (800,), timer=clock, is_accelerator=True)
    assert found == Batching("vmap", 8, "library")


def test_nothing_is_measured_on_a_cpu_or_where_it_was_asked_for() -> None:
    clock = Clock({})
    assert choose_batching(tiny_programs(), (8,), timer=clock) == Batching()
    asked = TaskPrograms(tiny_programs().task, strategy="vmap", chunk=3)
    assert choose_batching(asked, (8,), timer=clock, is_accelerator=True) == Batching("vmap", 3)
    assert not clock.asked


def test_chunks_that_need_too_much_memory_are_left_out() -> None:
    clock = Clock({2: 1.2, 1: 1.0})
    assert choose_batching(tiny_programs(), (800,), timer=clock, is_accelerator=True).chunk == 2
    with pytest.raises(MemoryError, match="not one network of task tiny can be fine-tuned on this device"):
        choose_batching(tiny_programs(), (800,), timer=Clock({}), is_accelerator=True)


def test_chunks_grow_until_one_is_slower_or_too_large() -> None:
    clock = Clock({1: 1.0, 2: 1.2, 4: 3.0, 8: 4.0})
    batchings = [timing.batching for timing in time_all(tiny_programs(), timer=clock)]
    vmapped = [Batching("vmap", chunk, kind) for kind in ("library", "patches") for chunk in (1, 2, 4)]
    assert batchings == [Batching("scan"), Batching("loop"), *vmapped]
    clock = Clock({1: 1.0, 2: 1.2})
    chunks = [timing.batching.chunk for timing in time_all(tiny_programs(), timer=clock)]
    assert chunks == [None, None, 1, 2, 1, 2]


def test_a_way_is_timed_for_whole_fine_tunings() -> None:
    programs = tiny_programs()
    one, all_steps = (
        time_batching(programs, Batching("vmap", 2), num_steps=steps) for steps in (1, programs.num_steps)
    )
    for timing in (one, all_steps):
        assert timing.batching == Batching("vmap", 2, "patches") and timing.num_members % 2 == 0
        assert 0 < timing.member_seconds < timing.seconds
        assert timing.first_seconds > 0
    # One step is scaled to all of them, so that it seems to take longer for its share of starting the program.
    assert one.seconds * 10 > all_steps.seconds

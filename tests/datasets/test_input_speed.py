"""What a training loop waits for: shares of the time, and the sentence about them."""

from __future__ import annotations

import pytest

from jaxprune.datasets.input_speed import InputSpeed, SpeedFacts


class Clock:
    """Tells the time that a test sets."""

    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def test_waits_are_added_up_by_kind(clock):
    speed = InputSpeed(clock)
    for seconds in (1, 2):
        with speed.input(images=10):
            clock.now += seconds
        with speed.device():
            clock.now += 5
        clock.now += 1
    assert speed.take() == SpeedFacts(images=20, seconds=15, input_seconds=3, device_seconds=10)


def test_taking_the_facts_starts_anew(clock):
    speed = InputSpeed(clock)
    with speed.input(images=10):
        clock.now += 1
    speed.take()
    clock.now += 4
    assert speed.take() == SpeedFacts(images=0, seconds=4, input_seconds=0, device_seconds=0)


@pytest.mark.parametrize(
    ("facts", "sentence"),
    [
        (
            SpeedFacts(5000, 2.0, 1.5, 0.2),
            "2,500 images/s, 75% of the time waiting for input and 10% for the device: the input is the bottleneck: "
            "give it more workers or smaller images.",
        ),
        (
            SpeedFacts(100, 2.0, 0.0, 1.5),
            "50 images/s, 0% of the time waiting for input and 75% for the device: the device is the bottleneck.",
        ),
        (
            SpeedFacts(100, 2.0, 0.2, 0.2),
            "50 images/s, 10% of the time waiting for input and 10% for the device: the code between input and device "
            "is the bottleneck.",
        ),
        (SpeedFacts(0, 0.0, 0.0, 0.0), "no images yet."),
    ],
    ids=["input", "device", "host", "nothing"],
)
def test_one_sentence_says_what_holds_training_up(facts, sentence):
    assert str(facts) == sentence


def test_no_time_has_no_rates():
    facts = SpeedFacts(0, 0.0, 0.0, 0.0)
    assert (facts.images_per_second, facts.input_share, facts.device_share) == (0, 0, 0)

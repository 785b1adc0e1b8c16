"""How fast training goes, and whether it waits for its input or for the device."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple


class SpeedFacts(NamedTuple):
    """What was measured over some time.

    Attributes:
      images: number of images of all batches.
      seconds: how long it took, >= 0.
      input_seconds: how much of it went by waiting for the next batch.
      device_seconds: how much of it went by waiting for results of the device.
    """

    images: int
    seconds: float
    input_seconds: float
    device_seconds: float

    @property
    def images_per_second(self) -> float:
        """Images per second, 0 where no time has passed."""
        return self.images / self.seconds if self.seconds > 0 else 0.0

    @property
    def input_share(self) -> float:
        """Share of the time that was spent waiting for input, in [0, 1]."""
        return self.input_seconds / self.seconds if self.seconds > 0 else 0.0

    @property
    def device_share(self) -> float:
        """Share of the time that was spent waiting for the device, in [0, 1]."""
        return self.device_seconds / self.seconds if self.seconds > 0 else 0.0

    @property
    def bottleneck(self) -> str:
        """What was waited for longest: "input", "device", or "host", the Python code between the two."""
        host = 1 - self.input_share - self.device_share
        shares = {"device": self.device_share, "input": self.input_share, "host": host}
        return max(shares, key=shares.__getitem__)

    def __str__(self) -> str:
        """Says in one sentence how fast it is and what holds it up."""
        if not self.images:
            return "no images yet."
        reasons = {
            "input": "the input is the bottleneck: give it more workers or smaller images.",
            "device": "the device is the bottleneck.",
            "host": "the code between input and device is the bottleneck.",
        }
        return (
            f"{self.images_per_second:,.0f} images/s, {self.input_share:.0%} of the time waiting for input and "
            f"{self.device_share:.0%} for the device: {reasons[self.bottleneck]}"
        )


class InputSpeed:
    """Measures waiting times of a training loop; an input pipeline has one and reports its own waits to it.

    JAX returns before the device has finished, so a loop has to wait somewhere, or it only seems to wait for input:
    wait for the result of the step before last, inside `device()`.

    Args:
      clock: tells seconds.

    Example:
      >>> ticks = iter([0.0, 0.0, 1.0, 1.0, 4.0, 4.0])
      >>> speed = InputSpeed(clock=lambda: next(ticks))
      >>> with speed.input(images=200):
      ...     pass  # the next batch
      >>> with speed.device():
      ...     pass  # jax.block_until_ready(loss)
      >>> print(speed.take())
      50 images/s, 25% of the time waiting for input and 75% for the device: the device is the bottleneck.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._start = clock()
        self._images, self._input_seconds, self._device_seconds = 0, 0.0, 0.0

    @contextmanager
    def input(self, images: int) -> Iterator[None]:
        """Measures a wait for a batch of so many images."""
        start = self._clock()
        yield
        self._input_seconds += self._clock() - start
        self._images += images

    @contextmanager
    def device(self) -> Iterator[None]:
        """Measures a wait for results of the device."""
        start = self._clock()
        yield
        self._device_seconds += self._clock() - start

    def take(self) -> SpeedFacts:
        """Returns what was measured since the last call, or since the beginning, and starts anew."""
        now = self._clock()
        facts = SpeedFacts(self._images, now - self._start, self._input_seconds, self._device_seconds)
        self._start = now
        self._images, self._input_seconds, self._device_seconds = 0, 0.0, 0.0
        return facts

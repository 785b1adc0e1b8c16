"""Whole numbers that JAX would cut down to 32 bits are refused by `observe`, and so are examples that are none."""

from __future__ import annotations

import numpy as np
import pytest
from flax import nnx

from jaxprune.observation.observer import observe
from jaxprune.scoring.metrics import metrics
from jaxprune.scoring.ranking import score


class Net(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.first, self.second = nnx.Linear(3, 4, rngs=rngs), nnx.Linear(4, 2, rngs=rngs)

    def __call__(self, x):
        return self.second(nnx.relu(self.first(x.astype("float32"))))


X, Y = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32), np.arange(8) % 2


@pytest.mark.parametrize("value", [2**32, 2**31, -(2**40)])
def test_images_of_64_bits_are_refused_where_they_would_wrap(value: int) -> None:
    images = np.arange(24).reshape(8, 3)
    assert observe(Net(nnx.Rngs(0)), images, Y)
    images[3, 1] = value
    with pytest.raises(ValueError, match=rf"needs whole numbers that fit int32, got .*{value}"):
        observe(Net(nnx.Rngs(0)), images, Y)


def test_complex_images_and_no_images_are_refused() -> None:
    with pytest.raises(ValueError, match="needs images that hold real numbers, got dtype complex64"):
        observe(Net(nnx.Rngs(0)), X * np.complex64(1j), Y)
    with pytest.raises(ValueError, match="needs at least two classes, got no labels"):
        observe(Net(nnx.Rngs(0)), X[:0], Y[:0])


def test_classes_of_any_size_are_numbered_but_no_loss_reads_cut_labels() -> None:
    labels = np.where(Y == 1, 2**32, 0)
    observed = observe(Net(nnx.Rngs(0)), X, labels, loss=lambda outputs, labels: outputs[:, 0] * labels)
    (operands,) = observed.values()
    assert operands.num_classes == 2
    with pytest.raises(ValueError, match=r"need labels that fit int32, got 0 \.\. 4294967296"):
        score(metrics["taylor"], observed)

"""Complex weights and activations: refused by name where functions read them, while masking and slimming take them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxprune.observation.observer import observe
from jaxprune.pruning.masking import mask
from jaxprune.pruning.planning import plan
from jaxprune.pruning.slimming import slim

IMAGES = np.random.default_rng(0).normal(size=(12, 4)).astype(np.float32)
LABELS = np.arange(12) % 3
KINDS = {False: jnp.float32, True: jnp.complex64}


class Net(nnx.Module):
    """Two layers, each real or complex, and what is done between and after them."""

    def __init__(self, *is_complex, between=lambda x: x, after=jnp.real):
        rngs = nnx.Rngs(0)
        first, second = (KINDS[flag] for flag in is_complex)
        self.first = nnx.Linear(4, 6, rngs=rngs, param_dtype=first)
        self.second = nnx.Linear(6, 3, rngs=rngs, param_dtype=second)
        self.between, self.after = nnx.static(between), nnx.static(after)

    def __call__(self, x):
        return self.after(self.second(self.between(self.first(x))))


REFUSED = {
    "a complex producer": (Net(True, False, between=jnp.abs), r"ones: first.kernel \(complex64\)\. Give"),
    "a complex consumer": (Net(False, True), r"second.kernel \(complex64\)"),
    "complex activations": (
        Net(True, True),
        r"first.kernel .*second.kernel .*the activations of first.kernel \(complex64\)",
    ),
    "real weights, complex activations": (
        Net(False, False, between=lambda x: x * 1j),
        r"ones: the activations of first.kernel \(complex64\)\. Give plan.* scores of your own",
    ),
}


@pytest.mark.parametrize(("net", "message"), REFUSED.values(), ids=REFUSED)
def test_what_is_complex_is_named_before_it_is_scored(net, message):
    with pytest.raises(ValueError, match="needs real weights and activations, got complex.*" + message):
        observe(net, IMAGES, LABELS)


@pytest.mark.parametrize("net", [Net(True, False, between=jnp.abs), Net(True, True)], ids=["one", "both"])
def test_complex_networks_are_pruned_by_scores_of_ones_own(net):
    kernel = np.asarray(net.first.kernel[...])
    chosen = plan(net, {"first.kernel": np.abs(kernel).sum(axis=0)}, IMAGES[:2], kept_fraction=0.5)
    masked, smaller = mask(net, chosen), slim(net, chosen)
    assert smaller.first.kernel.shape == (4, 3) and smaller.first.kernel.dtype == jnp.complex64
    np.testing.assert_allclose(jax.jit(masked)(IMAGES), jax.jit(smaller)(IMAGES), atol=1e-5)

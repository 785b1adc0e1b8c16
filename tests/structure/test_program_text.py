"""What stands for a network's program in a fingerprint."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxprune.structure.model_state import split_model
from jaxprune.structure.program import trace_program
from jaxprune.structure.program_text import program_text

TABLE = np.arange(10_000, dtype=np.float32)


class Shifted(nnx.Module):
    """A network with a large array in its code."""

    def __init__(self, table):
        self.read = lambda: table
        self.layer = nnx.Linear(len(table), 2, rngs=nnx.Rngs(0))

    def __call__(self, x):
        return self.layer(x + self.read()[None])


def text_of(table):
    example = jax.ShapeDtypeStruct((2, len(table)), jnp.float32)
    return program_text(trace_program(*split_model(Shifted(table)), example))


def test_large_constants_are_hashed():
    assert len(text_of(TABLE)) < 1000


@pytest.mark.parametrize(
    "make", [np.copy, lambda table: table[::-1].copy()[::-1]], ids=["copied", "backwards"]
)
def test_equal_constants_have_equal_text(make):
    assert text_of(make(TABLE)) == text_of(TABLE)


@pytest.mark.parametrize("other", [np.where(TABLE == 9000, -1, TABLE), TABLE[:-1], TABLE.astype(np.float16)])
def test_another_entry_size_or_type_is_another_text(other):
    assert text_of(other) != text_of(TABLE)

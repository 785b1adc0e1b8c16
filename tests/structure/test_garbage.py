"""The garbage collector while networks are traced."""

from __future__ import annotations

import gc

import jax
import pytest
from flax import nnx

from jaxprune.structure.garbage import only_new_garbage
from jaxprune.structure.tracing import trace_structure


def test_nothing_stays_frozen_when_a_network_cannot_be_traced() -> None:
    with pytest.raises(ValueError, match="needs a network that runs on"):
        trace_structure(nnx.Linear(3, 4, rngs=nnx.Rngs(0)), jax.ShapeDtypeStruct((2, 5), "float32"))
    assert gc.get_freeze_count() == 0


def test_what_the_caller_froze_stays_frozen() -> None:
    gc.freeze()
    try:
        with only_new_garbage():
            pass
        assert gc.get_freeze_count() > 0
    finally:
        gc.unfreeze()


def test_garbage_that_is_made_meanwhile_is_found() -> None:
    class Node:
        count = 0

        def __del__(self) -> None:
            Node.count += 1

    with only_new_garbage():
        node = Node()
        node.itself = node  # type: ignore[attr-defined]
        del node
        gc.collect()
        assert Node.count == 1

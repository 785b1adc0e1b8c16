"""Slimming to ever new sizes: nothing is compiled for them, so nothing piles up."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from compilations import counted_compilations
from flax import nnx
from pruned_nets import IMAGES, NETWORKS

from jaxprune.pruning.masking import mask
from jaxprune.pruning.planning import make_plan
from jaxprune.pruning.slimming import slim
from jaxprune.structure.tracing import trace_structure


@pytest.mark.parametrize("name", NETWORKS)
def test_new_counts_compile_nothing(name: str) -> None:
    net: nnx.Module = NETWORKS[name]()
    structure = trace_structure(net, IMAGES)
    plans = [
        make_plan(
            structure,
            {group: tuple(range(max(1, width - less))) for group, width in structure.widths.items()},
        )
        for less in (1, 2, 3)
    ]
    mask(net, plans[0])  # masks have the shapes of the network, so one compilation may serve all of them
    with counted_compilations() as seen:
        smaller = [slim(net, chosen) for chosen in plans]
        masked = [mask(net, chosen) for chosen in plans]
    assert not seen
    assert len({str(jax.tree.map(np.shape, nnx.state(model))) for model in smaller}) > 1
    assert len({str(jax.tree.map(np.shape, nnx.state(model))) for model in masked}) == 1

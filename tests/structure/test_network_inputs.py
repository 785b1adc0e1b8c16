"""Networks with several inputs, dicts, keywords and tokens prune as exactly as those that take images."""

from __future__ import annotations

import copy
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxprune.nets.cost import count_macs, count_parameters
from jaxprune.nets.inputs import Inputs
from jaxprune.pruning.masking import mask
from jaxprune.pruning.planning import Plan, plan
from jaxprune.pruning.slimming import slim
from jaxprune.structure.tracing import trace_structure

RNG = np.random.default_rng(0)
LEFT, RIGHT = (RNG.normal(size=(4, 8, 8, 1)).astype(np.float32) for _ in range(2))
EXTRA = RNG.normal(size=(4, 5)).astype(np.float32)
TOKENS = RNG.integers(0, 9, (4, 6)).astype(np.int32)


class Siamese(nnx.Module):
    """Two images and a vector; `form` says how they come."""

    def __init__(self, form):
        rngs = nnx.Rngs(0)
        self.form = form
        self.conv = nnx.Conv(1, 6, (3, 3), rngs=rngs)
        self.extra = nnx.Linear(5, 4, rngs=rngs)
        self.head = nnx.Linear(10, 2, rngs=rngs)

    def run(self, left, right, extra):
        first, second = (nnx.relu(self.conv(image)).mean((1, 2)) for image in (left, right))
        joined = jnp.concatenate([jnp.abs(first - second), nnx.relu(self.extra(extra))], -1)
        return {"scores": self.head(joined), "distance": (first - second).sum(-1)}

    def __call__(self, *args, **kwargs):
        if self.form == "dict":
            return self.run(**args[0])
        return self.run(*args[0]) if self.form == "tuple" else self.run(*args, **kwargs)


class Tokens(nnx.Module):
    """A language model with a table of positions and a mask, and a switch that its code reads."""

    def __init__(self):
        rngs = nnx.Rngs(0)
        self.embed = nnx.Embed(9, 6, rngs=rngs)
        self.up, self.down = nnx.Linear(6, 10, rngs=rngs), nnx.Linear(10, 6, rngs=rngs)
        self.head = nnx.Linear(6, 9, rngs=rngs)

    def __call__(self, tokens, positions, *, mask=None, wide=False):
        x = self.embed(tokens) + self.embed(positions)[None]
        x = x + self.down(nnx.gelu(self.up(x)))
        assert wide, "the switch has to be a Python value"
        return self.head(x if mask is None else x * mask[..., None])


CASES = {
    "dict": (Siamese("dict"), {"left": LEFT, "right": RIGHT, "extra": EXTRA}, lambda net, x: net(x)),
    "tuple": (Siamese("tuple"), (LEFT, RIGHT, EXTRA), lambda net, x: net(x)),
    "positional": (Siamese("positional"), (LEFT, RIGHT, EXTRA), lambda net, x: net(*x)),
    "keywords": (
        Siamese("positional"),
        Inputs(LEFT, extra=EXTRA, right=RIGHT),
        lambda net, x: net(*x.args, **x.kwargs),
    ),
    "tokens": (
        Tokens(),
        Inputs(TOKENS, np.arange(6), mask=np.ones((4, 6), np.float32), wide=True),
        lambda net, x: net(*x.args, **x.kwargs),
    ),
}


def scores_of(structure):
    return {name: np.random.default_rng(1).random(size) for name, size in structure.widths.items()}


@pytest.mark.parametrize("name", CASES)
def test_slim_equals_masked_and_counts_are_exact(name):
    model, batch, call = CASES[name]
    structure = trace_structure(model, batch)
    assert len(structure.groups) == 2
    chosen = plan(model, scores_of(structure), batch, kept_fraction=0.5)
    chosen = Plan.from_json(chosen.to_json())
    smaller, masked = slim(model, chosen), mask(model, chosen)
    outputs = (jax.tree.leaves(nnx.jit(lambda net: call(net, batch))(net)) for net in (smaller, masked))
    for got, expected in zip(*outputs, strict=True):
        np.testing.assert_allclose(got, expected, atol=1e-5)
    assert count_parameters(smaller) == structure.count_parameters(chosen.kept_counts)
    assert count_macs(model, batch) == structure.count_macs()
    assert count_macs(smaller, batch) == structure.count_macs(chosen.kept_counts)


def test_all_forms_of_one_network_have_the_same_groups():
    found = {
        name: trace_structure(*CASES[name][:2]).groups for name in ("dict", "tuple", "positional", "keywords")
    }
    assert len({str(groups) for groups in found.values()}) == 1


def test_a_plan_of_several_inputs_is_of_format_2_and_survives_copies():
    model, batch, _ = CASES["keywords"]
    chosen = plan(model, scores_of(trace_structure(model, batch)), batch, kept_fraction=0.5)
    record = json.loads(chosen.to_json())
    assert record["format"] == 2 and set(record["example"]["batch"]["kwargs"]) == {"extra", "right"}
    assert copy.deepcopy(chosen) == chosen and chosen.inputs == chosen.example
    damaged = json.dumps({**record, "example": {"call": "inputs", "batch": {}}})
    with pytest.raises(
        ValueError, match=r"needs a plan as Plan\.to_json writes it, but a part of the inputs"
    ):
        Plan.from_json(damaged)
    with pytest.raises(ValueError, match="needs a plan of format 2 or older, got 3"):
        Plan.from_json(json.dumps({**record, "format": 3}))


def test_a_plan_of_one_array_stays_of_format_1():
    model = nnx.Sequential(nnx.Linear(5, 4, rngs=nnx.Rngs(0)), nnx.Linear(4, 2, rngs=nnx.Rngs(1)))
    chosen = plan(model, {"layers.0.kernel": np.arange(4.0)}, EXTRA, kept_fraction=0.5)
    assert json.loads(chosen.to_json())["format"] == 1 and chosen.inputs is None


def test_a_failure_names_all_inputs():
    with pytest.raises(
        ValueError, match=r"runs on inputs of shapes left \(2, 8, 8, 1\) float32, but it failed"
    ):
        trace_structure(Siamese("dict"), {"left": LEFT})


def test_a_scalar_is_refused():
    with pytest.raises(ValueError, match="needs an example with a batch axis, got a scalar"):
        trace_structure(Siamese("dict"), np.float32(1.0))

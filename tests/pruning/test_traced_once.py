"""A network is traced once, whatever is done with it, and whatever it stores."""

import copy
import dataclasses
import gc

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxprune as jp
from jaxprune.structure import tracing

LABELS = np.arange(4) % 2


@dataclasses.dataclass
class Config:
    """Equal by value, and so without a hash."""

    hidden: int = 6
    tags: object = None


class Net(nnx.Module):
    def __init__(self, config=None):
        rngs = nnx.Rngs(0)
        self.hidden, self.head, self.config = nnx.Linear(4, 6, rngs=rngs), nnx.Linear(6, 2, rngs=rngs), config

    def __call__(self, x):
        return self.head(nnx.relu(self.hidden(x)))


class NetOfDict(Net):
    def __call__(self, batch):
        return super().__call__(batch["left"] + batch["right"])


class NetOfTwo(Net):
    def __call__(self, left, right):
        return super().__call__(left + right)


X = jax.random.normal(jax.random.key(0), (4, 4))
NETWORKS = {
    "hashable": (Net, X),
    "a plain dataclass": (lambda: Net(Config(tags=["a", {"b": 1}])), X),
    "a dictionary in a dictionary": (lambda: Net({"sizes": {"hidden": 6}, "all": [6, 2]}), X),
    "a dict of inputs": (lambda: NetOfDict(Config()), {"left": X, "right": X}),
    "two inputs": (lambda: NetOfTwo(Config()), (X, X)),
}


@pytest.fixture
def traced(monkeypatch):
    """How often the groups of a network were found."""
    tracing.clear_structures()
    calls, trace_anew = [], tracing._trace_anew
    monkeypatch.setattr(tracing, "_trace_anew", lambda *args: calls.append(1) or trace_anew(*args))
    return calls


@pytest.mark.parametrize(("make", "inputs"), NETWORKS.values(), ids=NETWORKS)
def test_all_that_is_done_with_a_network_takes_one_trace(make, inputs, traced):
    network = make()
    structure = jp.trace_structure(network, inputs)
    observed = jp.observe(network, inputs, LABELS)
    scores = jp.score(jp.library["l2"], observed)
    jp.sensitivity(network, scores, (inputs, LABELS), fractions=[0.5])
    plan = jp.plan(network, scores, inputs, kept_fraction=0.5)
    jp.mask(network, plan)
    smaller = jp.slim(network, plan)
    jp.export(smaller, inputs)
    assert len(traced) == 1
    jp.mask(make(), jp.Plan.from_json(plan.to_json()))  # another network of this kind, and a plan from a file
    assert len(traced) == 1
    assert structure.widths == plan.widths and smaller.hidden.out_features == 3


def test_a_plan_from_a_file_is_traced_once_in_a_new_process(traced):
    network = Net(Config())
    text = jp.plan(network, {"hidden.kernel": np.arange(6.0)}, X, kept_fraction=0.5).to_json()
    tracing.clear_structures()
    plan = jp.Plan.from_json(text)
    traced.clear()
    jp.mask(network, plan)
    jp.slim(network, plan)
    assert len(traced) == 1


def many_others():
    """Traces more networks than are remembered by themselves."""
    for width in range(2, 8):
        jp.trace_structure(
            nnx.Linear(width, 3, rngs=nnx.Rngs(0)), jax.ShapeDtypeStruct((2, width), "float32")
        )
    gc.collect()


@pytest.mark.parametrize("keep", ["plan", "observed", "nothing"])
def test_plans_and_what_was_observed_keep_the_structure(keep, traced):
    network = Net(Config())
    if keep == "observed":
        kept = jp.observe(network, X, LABELS)
    elif keep == "plan":
        kept = jp.plan(network, {"hidden.kernel": np.arange(6.0)}, X, kept_fraction=0.5)
    else:
        kept = jp.trace_structure(network, X).widths
    many_others()
    traced.clear()
    jp.trace_structure(network, X)
    assert len(traced) == (keep == "nothing") and kept


def test_observing_again_does_not_trace_again(monkeypatch):
    network = Net(Config())
    observed = jp.observe(network, X, LABELS)
    programs, trace_program = [], tracing.trace_program
    monkeypatch.setattr(tracing, "trace_program", lambda *args: programs.append(1) or trace_program(*args))
    again = jp.observe(network, X, LABELS)
    assert not programs
    jax.tree.map(np.testing.assert_array_equal, again, observed)


def test_copies_of_a_plan_leave_the_structure_out():
    plan = jp.plan(Net(), {"hidden.kernel": np.arange(6.0)}, X, kept_fraction=0.5)
    assert plan.structure is jp.trace_structure(Net(), X)
    for other in (copy.deepcopy(plan), jp.Plan.from_json(plan.to_json())):
        assert other == plan and other.structure is None


def test_a_config_that_changes_is_traced_anew(traced):
    network = Net(Config())
    before = jp.trace_structure(network, X)
    network.config.tags = jnp.float32
    assert jp.trace_structure(network, X) is not before

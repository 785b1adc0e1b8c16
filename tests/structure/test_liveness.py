"""Code whose results are not used freezes nothing, and a rule that fails freezes what it reads."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from pruned_nets import Net, linear

from jaxprune.pruning.planning import make_plan
from jaxprune.pruning.slimming import slim
from jaxprune.structure import rules
from jaxprune.structure.tracing import clear_structures, trace_structure

X = np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32)


def net(between, **layers):
    """`between` sees the net and eight hidden channels, and returns what the head reads."""
    layers = {"a": linear(6, 8), "head": linear(8, 3, 1), **layers}
    return Net(layers, lambda net, x: net.head(between(net, nnx.relu(net.a(x)))))


def used(h, *unused):
    return h


KEPT = {"a.kernel": (1, 3, 5, 7)}


def in_a_scan(net, h):
    def turn(carry, _):
        h, q = carry
        return (h * 0.5, jnp.sort(q)), jnp.linalg.svd(q)[1]

    (h, _), _ = jax.lax.scan(turn, (h, h), None, 2)
    return h


UNUSED = {
    "an operation without a rule": lambda net, h: used(h, jnp.linalg.qr(h)),
    "the place of the largest channel": lambda net, h: used(h, jnp.argmax(h, -1), h[:, 3]),
    "what meets a frozen result": lambda net, h: used(h, h * jnp.linalg.qr(h.T @ h)[0][:1] * jnp.sort(h)),
    "what is carried through a loop": in_a_scan,
    "a branch that takes no part": lambda net, h: jax.lax.cond(
        True, lambda h: (h, h[:, 0]), lambda h: (h, jnp.sort(h)[:, 0]), h
    )[0],
    "what is printed": lambda net, h: used(h, jax.debug.callback(lambda q: None, jnp.linalg.qr(h)[0])),
    "what is joined but has no entries": lambda net, h: jnp.concatenate([jnp.sort(h)[:0], h]),
}


@pytest.mark.parametrize("case", UNUSED)
def test_what_is_not_used_freezes_nothing(case):
    model = net(UNUSED[case])
    structure = trace_structure(model, X)
    assert structure.widths == {"a.kernel": 8}
    assert structure.count_macs() == 6 * 8 + 8 * 3
    smaller = slim(model, make_plan(structure, KEPT))
    assert smaller.a.kernel.shape == (6, 4)
    assert smaller(X).shape == (4, 3)


def test_a_layer_whose_result_is_not_used_is_cut_along_with_what_it_reads():
    model = net(lambda net, h: used(h, net.aux(h)), aux=linear(8, 5, 2))
    structure = trace_structure(model, X)
    (group,) = structure.groups.values()
    assert "aux.kernel axis 0" in map(str, group.members)
    assert group.consumers == ("head.kernel",)
    assert structure.frozen["aux.kernel[1]"] == "no output of the network depends on these weights"
    smaller = slim(model, make_plan(structure, KEPT))
    hidden = np.maximum(np.asarray(model.a(X)), 0)
    expected = hidden[:, 1::2] @ np.asarray(model.head.kernel[...])[1::2]  # biases are zero
    np.testing.assert_allclose(smaller(X), expected, atol=1e-5)


def test_a_layer_that_makes_the_same_channels_but_is_not_used_is_cut_and_not_scored():
    structure = trace_structure(net(lambda net, h: used(h, h + net.aux(h)), aux=linear(8, 8, 2)), X)
    (group,) = structure.groups.values()
    assert (group.producers, list(structure.sites)) == (("a.kernel",), ["a.kernel"])
    members = [str(member) for member in group.members]
    assert {"aux.bias axis 0", "aux.kernel axis 0", "aux.kernel axis 1"} < set(members)


def test_an_array_that_is_not_used_is_split_as_what_it_meets():
    def by_blocks(net, h):
        made = jnp.einsum("nbi,bij->nbj", h.reshape(h.shape[0], 2, -1), net.blocks[...]).reshape(
            h.shape[0], -1
        )
        return used(made, made * net.vector[...][None])

    vector, blocks = nnx.Param(np.ones(8, np.float32)), nnx.Param(np.ones((2, 4, 4), np.float32))
    structure = trace_structure(net(by_blocks, vector=vector, blocks=blocks), X)
    assert structure.widths == {"a.kernel": 4, "blocks": 4}
    members = set(map(str, structure.groups["blocks"].members))
    assert members == {
        "blocks axis 2",
        "head.kernel axis 0 as 2 x channel x 1",
        "vector axis 0 as 2 x channel x 1",
    }


def test_a_fixed_array_keeps_what_it_meets_even_where_that_is_not_used():
    structure = trace_structure(net(lambda net, h: used(h, h * np.arange(8.0, dtype=np.float32)[None])), X)
    assert not structure.groups  # without these channels the network would not run
    assert "fixed size" in structure.frozen["a.kernel[1]"]


def test_what_is_written_into_an_array_is_used():
    def through_an_array(net, h):
        array = jax.new_ref(jnp.zeros(h.shape))
        array[...] = h
        return array[...]

    structure = trace_structure(net(through_an_array), X)
    assert "no rule for swap" in structure.frozen["a.kernel[1]"]
    assert "changes an array in place" in structure.frozen["a.kernel[1]"]


def broken(trace, operation, inputs):
    raise KeyError("made up")


@pytest.fixture
def with_a_broken_rule(monkeypatch):
    monkeypatch.setattr(rules, "RULES", {**rules.RULES, "tanh": broken, "exp": lambda *_: []})
    clear_structures()
    yield
    clear_structures()


@pytest.mark.parametrize(("function", "error"), [(jnp.tanh, "KeyError"), (jnp.exp, "ValueError")])
def test_a_rule_that_fails_freezes_what_it_reads_and_names_the_line(with_a_broken_rule, function, error):
    model = Net(
        {"a": linear(6, 8), "first": linear(8, 3, 1), "b": linear(6, 5, 2), "second": linear(5, 3, 3)},
        lambda net, x: net.first(function(net.a(x))) + net.second(nnx.relu(net.b(x))),
    )
    with pytest.warns(RuntimeWarning, match="What it reads stays whole. This is a fault of jaxprune"):
        structure = trace_structure(model, X)
    assert structure.widths == {"b.kernel": 5}  # the rest is cut as ever
    reason = structure.frozen["a.kernel[1]"]
    assert f"the rule failed with {error} for {function.__name__} at " in reason
    assert "test_liveness.py:" in reason


def test_the_test_suite_sees_a_rule_that_fails(with_a_broken_rule):
    with pytest.raises(RuntimeWarning, match="the rule failed with KeyError for tanh"):
        trace_structure(
            net(lambda net, h: jax.checkpoint(lambda h: jax.lax.cond(True, jnp.tanh, jnp.cos, h))(h)), X
        )

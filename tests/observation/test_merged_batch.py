"""Observation of networks in which no axis counts the examples alone: each example is then run by itself."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from pruned_nets import Net, linear

from jaxprune.language.library import library
from jaxprune.language.parsing import parse
from jaxprune.observation.activations import activation_sites
from jaxprune.observation.observer import observe
from jaxprune.scoring.ranking import score
from jaxprune.structure.tracing import trace_structure

MAPS = np.random.default_rng(0).normal(size=(6, 4, 4, 3)).astype(np.float32)
TOKENS = np.random.default_rng(1).normal(size=(6, 5, 3)).astype(np.float32)
LABELS = np.array([0, 2, 1, 0, 1, 2])


def hidden(net, x):
    return net.down(nnx.relu(net.up(x)))


def as_windows(x):
    """[B, 4, 4, C] as four windows of 2 x 2: [B, 4, 4, C]."""
    split = x.reshape(x.shape[0], 2, 2, 2, 2, x.shape[-1]).transpose(0, 1, 3, 2, 4, 5)
    return split.reshape(x.shape[0], 4, 4, x.shape[-1])


def merged(net, x):
    batch, *space, channels = x.shape
    return hidden(net, x.reshape(-1, space[-1], channels)).reshape(batch, *space, -1)


def flat(net, x):
    return hidden(net, x.reshape(-1, x.shape[-1])).reshape(*x.shape[:-1], -1)


def space_major(way):
    return lambda net, x: jnp.moveaxis(way(net, jnp.moveaxis(x, 0, -2)), -2, 0)


WAYS = {
    "windows": merged,
    "flat": flat,
    "space-major": space_major(flat),
    "one at a time": lambda net, x: jax.lax.map(lambda own: hidden(net, own), x),
    "two at a time": lambda net, x: jax.lax.map(lambda own: hidden(net, own), x, batch_size=2),
}
SLOW = ("flat", "two at a time")


def windowed(way):
    """A residual network over windows, in which `way` applies the hidden layers."""

    def forward(net, x):
        x = as_windows(nnx.relu(net.stem(x)))
        return net.head((x + way(net, x)).mean((1, 2)))

    layers = {"stem": linear(3, 4), "up": linear(4, 6, 1), "down": linear(6, 4, 2), "head": linear(4, 3, 3)}
    return Net(layers, forward)


def class_means(operands):
    return np.asarray(operands.moments.pivot)[None] + np.asarray(operands.moments.offset)


@pytest.fixture(scope="module")
def plain():
    return observe(windowed(hidden), MAPS, LABELS).with_gradients()


@pytest.mark.parametrize(
    "way", [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in WAYS]
)
def test_operands_are_those_of_the_network_that_does_not_merge(way, plain):
    found = observe(windowed(WAYS[way]), MAPS, LABELS).with_gradients()
    if way == "space-major":
        plain = observe(windowed(space_major(hidden)), MAPS, LABELS).with_gradients()
    assert (
        found.groups
        == plain.groups
        == {"stem.kernel": ("stem.kernel", "down.kernel"), "up.kernel": ("up.kernel",)}
    )
    for name, expected in plain.items():
        own = found[name]
        assert own.samples.shape == expected.samples.shape, name
        for left, right in [
            (own.samples, expected.samples),
            (class_means(own), class_means(expected)),
            (own.moments.m2, expected.moments.m2),
            (own.moments.active, expected.moments.active),
            *zip(own.gradients, expected.gradients, strict=True),
        ]:
            np.testing.assert_allclose(left, right, rtol=1e-4, atol=1e-6, err_msg=name)


def test_batches_and_budgets_do_not_change_what_is_found(plain):
    net, few = windowed(merged), {"num_samples": 3, "batch_size": 4}
    for options in (few, few | {"max_bytes": 1 << 20}):
        found = observe(net, MAPS, LABELS, **options)
        for name, expected in plain.items():
            own = found[name]
            np.testing.assert_allclose(class_means(own), class_means(expected), atol=1e-5)
            np.testing.assert_array_equal(own.moments.count, [2, 2, 2])
            np.testing.assert_allclose(own.samples, np.asarray(expected.samples)[[0, 2, 4]], atol=1e-6)


def test_gradients_at_what_a_loop_reads_are_those_without_the_loop():
    def chain(way):
        layers = {
            "stem": linear(3, 4),
            "up": linear(4, 6, 1),
            "down": linear(6, 4, 2),
            "head": linear(4, 3, 3),
        }
        return Net(layers, lambda net, x: net.head(way(net, nnx.relu(net.stem(x))).mean(1)))

    def loop(net, x):
        return jax.lax.map(lambda step: hidden(net, step), x.swapaxes(0, 1)).swapaxes(0, 1)

    found, expected = (
        observe(chain(way), TOKENS, LABELS).with_gradients()["stem.kernel"] for way in (loop, hidden)
    )
    np.testing.assert_allclose(found.samples, expected.samples, rtol=1e-5, atol=1e-6)
    assert np.abs(expected.gradients.samples).max() > 0.01
    np.testing.assert_allclose(found.gradients.samples, expected.gradients.samples, rtol=1e-4, atol=1e-7)


def attention(merge):
    """Attention with heads of an axis of their own, or merged into the batch."""

    def forward(net, x):
        x = net.stem(x)
        batch, length, _ = x.shape

        def split(y):
            heads = y.reshape(batch, length, 2, -1).transpose(0, 2, 1, 3)
            return heads.reshape(batch * 2, length, -1) if merge else heads

        q, k, v = split(net.q(x)), split(net.k(x)), split(net.v(x))
        y = nnx.softmax(q @ k.swapaxes(-1, -2)) @ v
        y = y.reshape(batch, 2, length, -1).transpose(0, 2, 1, 3).reshape(batch, length, -1)
        return net.head((x + net.o(y)).mean(1))

    layers = {name: linear(8, 8, seed) for seed, name in enumerate("qkvo")}
    return Net({"stem": linear(3, 8), **layers, "head": linear(8, 3, 9)}, forward)


def test_heads_merged_into_the_batch_are_found_and_observed():
    structure = trace_structure(attention(True), TOKENS)
    assert structure.widths == {"stem.kernel": 8, "q.kernel": 4, "v.kernel": 4}  # their number is in the code
    assert trace_structure(attention(False), TOKENS).widths == structure.widths
    assert [site.batch_axis for site in activation_sites(structure).values()] == [0, 0, 0, 0, None]
    merged_heads, heads = (observe(attention(merge), TOKENS, LABELS) for merge in (True, False))
    expected = np.asarray(heads["v.kernel"].samples)
    assert expected.shape == (6, 2 * 5, 4)
    np.testing.assert_allclose(merged_heads["v.kernel"].samples, expected, rtol=1e-5, atol=1e-6)


def queries(net, x):
    """Learned queries, which all examples share, attend to the tokens."""
    x, shared = net.stem(x), net.up(net.tokens.embedding[None])
    rows = jnp.broadcast_to(shared, (x.shape[0], *shared.shape[1:]))
    y = net.down(jnp.concatenate([nnx.relu(rows), nnx.relu(net.up(x))], axis=1))
    return net.head(y.mean(1))


def test_queries_that_all_examples_share_count_in_each_of_them():
    layers = {"stem": linear(3, 4), "up": linear(4, 6, 1), "down": linear(6, 5, 2), "head": linear(5, 3, 3)}
    net = Net({**layers, "tokens": nnx.Embed(2, 4, rngs=nnx.Rngs(0))}, queries)
    found = observe(net, TOKENS, LABELS)["up.kernel"]
    of_queries = nnx.relu(net.up(net.tokens.embedding[...]))
    np.testing.assert_allclose(found.samples[:, :2], np.tile(of_queries, (6, 1, 1)), rtol=1e-5, atol=1e-6)


def looping(net, x):
    """Hidden layers in a loop that stops by a condition: what is in it cannot be observed."""
    x = net.stem(x)
    state = jax.lax.while_loop(lambda s: s[0] < 2, lambda s: (s[0] + 1, s[1] + hidden(net, s[1])), (0, x))
    return state[1].mean(1) @ np.eye(4, 3, dtype=np.float32)


def test_without_activations_there_are_no_clusters_of_classes_and_budgets_hold():
    net = Net({"stem": linear(3, 4), "up": linear(4, 6, 1), "down": linear(6, 4, 2)}, looping)
    with pytest.raises(
        ValueError, match="classes=2 needs activations to find clusters of classes, but none can be"
    ):
        observe(net, TOKENS, LABELS, classes=2)
    found = observe(net, TOKENS, LABELS, max_bytes=10_000)
    assert {name: operands.has_activations for name, operands in found.items()} == {"up.kernel": False}


def only_two_or_more(net, x):
    assert x.shape[0] > 1
    return net.head(flat(net, net.stem(x)).mean(1))


@pytest.mark.parametrize(("forward", "blind"), [(looping, "up.kernel"), (only_two_or_more, "up.kernel")])
def test_what_cannot_be_observed_is_a_group_for_functions_of_weights(forward, blind):
    layers = {"stem": linear(3, 4), "up": linear(4, 6, 1), "down": linear(6, 4, 2), "head": linear(4, 3, 3)}
    observed = observe(Net(layers, forward), TOKENS, LABELS)
    operands = observed[blind]
    assert blind in observed.groups and not operands.has_activations
    assert np.isnan(operands.samples).all() and operands.class_counts == (2, 2, 2)
    norms = np.sqrt(np.square(layers["up"].kernel[...]).sum(0))
    np.testing.assert_allclose(
        score(library["l2"], observed.group(blind))[blind], norms / norms.mean(), rtol=1e-5
    )
    with pytest.raises(
        ValueError,
        match=r"X, which producer up.kernel does not have: its activations cannot be observed.*operand mP, which",
    ):
        score(parse("sum(mP) * mean(X)"), observed.group(blind))

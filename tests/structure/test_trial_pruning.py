"""What `plan` offers, `slim` does, also where code reads sizes elsewhere: attention, configurations, carries, Linen."""

from __future__ import annotations

import dataclasses
import re
from types import SimpleNamespace
from typing import NamedTuple

import flax.linen
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from pruned_nets import INITIALISERS, linear, relative_error, run

from jaxprune.nets.function_network import FunctionNetwork
from jaxprune.pruning.masking import mask
from jaxprune.pruning.planning import plan
from jaxprune.pruning.slimming import slim
from jaxprune.structure.tracing import trace_structure

TOKENS = np.random.default_rng(0).normal(size=(2, 5, 6)).astype(np.float32)
OPTIONS = {"rngs": nnx.Rngs(0), **INITIALISERS}


class Net(nnx.Module):
    """A block with a layer before and behind it."""

    def __init__(self, block, *, is_residual=False):
        self.stem, self.block, self.head = linear(6, 16, 7), block, linear(16, 3, 8)
        self.is_residual = is_residual

    def __call__(self, x):
        x = self.stem(x)
        return self.head(x + self.block(x) if self.is_residual else self.block(x))


def assert_slim_is_masked(net, *, is_equal=True, **budget):
    """Plans at random, with attributes that follow; returns the slim network."""
    structure = trace_structure(net, TOKENS)
    rng = np.random.default_rng(1)
    scores = {name: rng.random(width) for name, width in structure.widths.items()}
    chosen = plan(net, scores, TOKENS, **{"kept_fraction": 0.5, "factor": "both", **budget})
    smaller = slim(net, chosen, attributes=structure.attributes_for(chosen.kept_counts))
    if is_equal:
        assert relative_error(run(mask(net, chosen), TOKENS), run(smaller, TOKENS)) < 1e-5
    return smaller


def by_hand(q, k, v):
    weights = jax.nn.softmax(jnp.einsum("bthd,bshd->bhts", q, k) / 2)
    return jnp.einsum("bhts,bshd->bthd", weights, v)


def by_jax(q, k, v):
    return jax.nn.dot_product_attention(q, k, v, scale=0.5)


def rotated(x):
    half = x.shape[-1] // 2
    angle = jnp.arange(x.shape[1])[:, None] / 100 ** (jnp.arange(half)[None] / half)
    sin, cos = jnp.sin(angle)[None, :, None], jnp.cos(angle)[None, :, None]
    a, b = jnp.split(x, 2, -1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1)


class General(nnx.Module):
    """Two heads of eight places, by layers whose kernels have an axis for each."""

    def __init__(self, attend, turn=lambda x: x):
        self.q, self.k, self.v = (nnx.LinearGeneral(16, (2, 8), **OPTIONS) for _ in range(3))
        self.o = nnx.LinearGeneral((2, 8), 16, axis=(-2, -1), **OPTIONS)
        self.attend, self.turn = attend, turn

    def __call__(self, x):
        return self.o(self.attend(self.turn(self.q(x)), self.turn(self.k(x)), self.v(x)))


class ByEinsum(nnx.Module):
    """The same by `nnx.Einsum`."""

    def __init__(self, attend):
        self.q, self.k, self.v = (
            nnx.Einsum("btd,dnh->btnh", (16, 2, 8), rngs=OPTIONS["rngs"], kernel_init=OPTIONS["kernel_init"])
            for _ in range(3)
        )
        self.o = nnx.Einsum(
            "btnh,nhd->btd", (2, 8, 16), rngs=OPTIONS["rngs"], kernel_init=OPTIONS["kernel_init"]
        )
        self.attend = attend

    def __call__(self, x):
        return self.o(self.attend(self.q(x), self.k(x), self.v(x)))


@pytest.mark.parametrize("layers", [General, ByEinsum])
def test_values_are_cut_with_the_keys_where_the_call_wants_equal_sizes(layers):
    """jax.nn.dot_product_attention refuses other values, though no operation combines them with keys."""
    net = Net(layers(by_jax))
    structure = trace_structure(net, TOKENS)
    places, heads = structure.groups["block.q.kernel:axis2"], structure.groups["block.q.kernel:axis1"]
    assert (places.size, heads.size) == (8, 2)
    kernels = {f"block.{name}.kernel" for name in "qkv"}
    for group in (places, heads):
        assert {".".join(member.path) for member in group.members} >= {*kernels, "block.o.kernel"}
    smaller = assert_slim_is_masked(net)
    assert smaller.block.v.kernel.shape == (8, 1, 4)


def test_values_alone_get_thinner_where_code_lets_them():
    widths = trace_structure(Net(General(by_hand)), TOKENS).widths
    assert (widths["block.q.kernel:axis2"], widths["block.v.kernel"]) == (8, 8)


def test_values_stay_where_the_keys_stay_and_the_call_wants_equal_sizes():
    net = Net(General(nnx.dot_product_attention, rotated))
    structure = trace_structure(net, TOKENS)
    assert structure.widths == {"stem.kernel": 16, "block.q.kernel": 2, "block.o.kernel": 16}
    assert "value shape should be" in structure.why_frozen("block.v.kernel")
    assert_slim_is_masked(net)


class ReadsOutput(General):
    """The size of a head is read from another projection than the one that it is used for."""

    def __init__(self):
        super().__init__(by_hand)

    def __call__(self, x):
        size = self.o.kernel.shape[1]
        angle = jnp.arange(size // 2, dtype=jnp.float32)[None, None, None]
        q, k = (jnp.split(layer(x), 2, axis=-1) for layer in (self.q, self.k))
        q, k = (jnp.concatenate([a * angle, b * angle], -1) for a, b in (q, k))
        return self.o(self.attend(q, k, self.v(x)))


def test_a_size_that_is_read_from_another_projection_is_tried():
    net = Net(ReadsOutput())
    structure = trace_structure(net, TOKENS)
    assert structure.widths == {"stem.kernel": 16, "block.q.kernel": 2, "block.o.kernel": 16}
    assert re.search(
        r"counts on their number: .* incompatible shapes for broadcasting.* at .*test_trial_pruning.py",
        structure.why_frozen("block.v.kernel"),
    )
    assert_slim_is_masked(net)


class LaidOutLikeInput(nnx.Module):
    def __init__(self):
        self.q, self.k, self.v, self.o = (linear(16, 16, seed) for seed in range(4))

    def __call__(self, x):
        q, k, v = (layer(x).reshape(*x.shape[:2], 4, -1) for layer in (self.q, self.k, self.v))
        return self.o(by_hand(q, k, v).reshape(x.shape))


def test_a_result_laid_out_like_the_input_keeps_the_residual_stream():
    structure = trace_structure(Net(LaidOutLikeInput(), is_residual=True), TOKENS)
    assert "stem.kernel" not in structure.groups
    assert re.search(
        r"counts on their number: .* cannot reshape array of shape .* at .*test_trial_pruning.py:\d+ \(__call__\)",
        structure.why_frozen("stem.kernel"),
    )


class PartOfHead(nnx.Module):
    """Uses eight of twelve places of each head."""

    def __init__(self, way):
        self.q, self.up, self.way = linear(16, 24, 1), linear(16, 16, 2), way

    def __call__(self, x):
        y = self.q(x).reshape(*x.shape[:2], 2, 12)
        if "slice" in self.way:
            y = y[..., :8]
        if "pairs" in self.way:
            y = y.reshape(*y.shape[:-1], -1, 2)[..., 0]
        if "tile" in self.way:
            y = y * jnp.tile(jnp.arange(y.shape[-1] // 2.0), 2)[None, None, None]
        return nnx.relu(self.up(x)) + jnp.einsum("bthd,bshd->bhts", y, y).mean()


@pytest.mark.parametrize("way", ["slice", "pairs", "slice pairs", "slice tile"])
def test_partial_use_of_a_head_does_not_keep_other_layers_from_being_cut(way):
    net = Net(PartOfHead(way))
    structure = trace_structure(net, TOKENS)
    assert structure.widths == {"stem.kernel": 16, "block.up.kernel": 16}
    smaller = assert_slim_is_masked(net)
    assert smaller.block.up.kernel.shape == (8, 8)


class Grouped(nnx.Module):
    """Four query heads, two heads of keys and values, each repeated for two of the former."""

    def __init__(self, way, *, layers="linear"):
        self.heads, self.kv_heads, self.way, self.layers = 4, 2, way, layers
        if layers == "linear":
            self.q, self.k, self.v, self.o = (linear(16, n, n) for n in (16, 8, 8, 16))
        else:
            self.q, self.k, self.v = (nnx.LinearGeneral(16, (n, 4), **OPTIONS) for n in (4, 2, 2))
            self.o = nnx.LinearGeneral((4, 4), 16, axis=(-2, -1), **OPTIONS)

    def __call__(self, x):
        q, k, v = self.q(x), self.k(x), self.v(x)
        if self.layers == "linear":
            q = q.reshape(*x.shape[:2], self.heads, -1)
            k, v = (each.reshape(*x.shape[:2], self.kv_heads, -1) for each in (k, v))
        n = q.shape[2] // k.shape[2]
        if self.way == "repeat":
            y = by_hand(q, jnp.repeat(k, n, axis=2), jnp.repeat(v, n, axis=2))
        elif self.way == "broadcast":
            k, v = (jnp.broadcast_to(a[:, :, :, None], (*a.shape[:3], n, a.shape[3])) for a in (k, v))
            y = by_hand(q, *(a.reshape(*a.shape[:2], -1, a.shape[-1]) for a in (k, v)))
        elif self.way == "grouped":
            q = q.reshape(*q.shape[:2], k.shape[2], -1, q.shape[-1])
            weights = jax.nn.softmax(jnp.einsum("btkgd,bskd->bkgts", q, k) / 2)
            y = jnp.einsum("bkgts,bskd->btkgd", weights, v)
            y = y.reshape(*y.shape[:2], -1, y.shape[-1])
        else:
            y = by_jax(q, k, v)
        return self.o(y.reshape(*x.shape[:2], -1) if self.layers == "linear" else y)


@pytest.mark.parametrize(
    ("way", "layers", "num_groups"),
    [
        ("repeat", "linear", 5),
        ("broadcast", "linear", 5),
        ("grouped", "linear", 6),
        ("jax", "linear", 5),
        ("repeat", "general", 5),
        ("jax", "general", 5),
    ],
)
def test_heads_of_grouped_queries_go_with_the_keys_that_they_read(way, layers, num_groups):
    net = Net(Grouped(way, layers=layers))
    structure = trace_structure(net, TOKENS)
    assert len(structure.groups) == num_groups
    axis, size = (1, 1) if layers == "general" else (1, 4)
    heads = next(
        group
        for group in structure.groups.values()
        if {".".join(member.path) for member in group.members} >= {"block.q.kernel", "block.k.kernel"}
        and any(
            member.path[1] == "k"
            and member.axis == axis
            and np.all(np.diff(member.channels[:size]) == 0)
            and member.channels[0] != member.channels[-1]
            and group.size == 2
            for member in group.members
        )
    )
    assert heads.size == 2
    if layers == "linear":
        assert set(structure.attributes[heads.name]) == {"block.heads", "block.kv_heads"}
        assert structure.attributes_for({heads.name: 1}) == {"block.heads": 2, "block.kv_heads": 1}
    smaller = assert_slim_is_masked(net, kept_fraction=None, kept_counts={heads.name: 1})
    assert smaller.block.k.kernel.size == 16 * 4


@dataclasses.dataclass(frozen=True)
class Sizes:
    width: int = 16
    heads: int = 4


@dataclasses.dataclass
class Config:
    sizes: Sizes = dataclasses.field(default_factory=Sizes)
    __hash__ = object.__hash__


class Names(NamedTuple):
    width: int = 16
    heads: int = 4


CONFIGS = {
    "own": lambda: Sizes(),
    "dataclass": lambda: Sizes(),
    "nested": lambda: Config(),
    "named tuple": lambda: Names(),
    "plain object": lambda: SimpleNamespace(width=16, heads=4),
}


class Configured(nnx.Module):
    """Heads of `width // heads` places, as a configuration says."""

    def __init__(self, kind, config):
        self.q, self.k, self.v, self.o = (linear(16, 16, seed) for seed in range(4))
        self.kind = kind
        if kind == "own":
            self.width, self.heads = config.width, config.heads
        else:
            self.config = nnx.static(config)

    def __call__(self, x):
        sizes = self if self.kind == "own" else getattr(self.config, "sizes", self.config)
        shape = (*x.shape[:2], sizes.heads, sizes.width // sizes.heads)
        q, k, v = (layer(x).reshape(shape) for layer in (self.q, self.k, self.v))
        return self.o(by_jax(q, k, v).reshape(*x.shape[:2], -1))


@pytest.mark.parametrize("kind", CONFIGS)
def test_sizes_in_a_configuration_follow_in_a_copy_of_it(kind):
    config = CONFIGS[kind]()
    before = repr(config)
    net = Net(Configured(kind, config))
    structure = trace_structure(net, TOKENS)
    owner = {"own": "block", "nested": "block.config.sizes"}.get(kind, "block.config")
    heads, places = "block.q.kernel:outer", "block.q.kernel:inner"
    assert structure.attributes == {
        heads: (f"{owner}.width", f"{owner}.heads"),
        places: (f"{owner}.width",),
    }
    needed = {f"{owner}.width": 6, f"{owner}.heads": 3}
    assert structure.attributes_for({heads: 3, places: 2}) == needed
    smaller = assert_slim_is_masked(
        net, kept_fraction=None, kept_counts={heads: 3, places: 2}, is_equal=kind in ("own", "nested")
    )
    assert repr(config) == before
    assert smaller.block.q.kernel.shape == (16, 6)
    if kind == "nested":
        assert smaller.block.config.sizes == Sizes(6, 3) and smaller.block.config is not config


def test_a_number_in_a_configuration_is_named_with_the_value_it_needs():
    net = Net(Configured("dataclass", Sizes()))
    counts = {"block.q.kernel:outer": 2}
    scores = {"block.q.kernel:outer": np.arange(4.0)}
    chosen = plan(net, scores, TOKENS, kept_counts=counts)
    with pytest.raises(ValueError, match=r"attributes=\{'block.config.width': 8, 'block.config.heads': 2\}"):
        slim(net, chosen)


def test_a_configuration_may_refuse_a_number():
    @dataclasses.dataclass(frozen=True)
    class Even(Sizes):
        def __post_init__(self):
            if self.heads % 2:
                raise ValueError("odd numbers of heads are not supported")

    net = Net(Configured("dataclass", Even()))
    chosen = plan(net, {"stem.kernel": np.arange(16.0)}, TOKENS, kept_counts={"stem.kernel": 8})
    message = "with block.config.heads=3 it raised ValueError: odd numbers of heads are not supported"
    with pytest.raises(ValueError, match=message):
        slim(net, chosen, attributes={"block.config.heads": 3})


class Recurrent(nnx.Module):
    def __init__(self, hidden=None):
        self.read, self.turn, self.hidden = linear(16, 8, 1), linear(8, 8, 2), hidden
        self.write = linear(8, 16, 3)

    def __call__(self, x):
        state = jnp.zeros((x.shape[0], self.hidden or 8))
        for step in range(x.shape[1]):
            state = nnx.tanh(self.read(x[:, step]) + self.turn(state))
        return self.write(state)


def test_the_carry_of_a_recurrent_network_follows_or_stays():
    net = Net(Recurrent(8))
    assert trace_structure(net, TOKENS).attributes == {"block.read.kernel": ("block.hidden",)}
    smaller = assert_slim_is_masked(net)
    assert (smaller.block.hidden, net.block.hidden) == (4, 8)
    structure = trace_structure(Net(Recurrent()), TOKENS)
    assert structure.widths == {"stem.kernel": 16, "block.write.kernel": 16}
    assert "counts on their number" in structure.why_frozen("block.turn.kernel")
    assert_slim_is_masked(Net(Recurrent()))


class Declared(flax.linen.Module):
    """Linen code that declares the shape of a parameter, and a layer that Linen can be told the size of."""

    @flax.linen.compact
    def __call__(self, x):
        x = flax.linen.Dense(8)(x)
        scale = self.param("scale", flax.linen.initializers.ones, (1, 1, 8))
        return flax.linen.Dense(3)(flax.linen.Dense(12)(x * scale))


def test_shapes_that_linen_declares_stay_and_the_reason_says_what_to_build():
    module = Declared()
    params = jax.eval_shape(lambda: module.init(jax.random.key(0), TOKENS))
    structure = trace_structure(FunctionNetwork(module.apply, params), TOKENS)
    assert structure.widths == {"params.Dense_2.kernel": 12}
    assert re.search(
        r"scale.*declares the shapes of its parameters, so that only a module that is built with the smaller sizes",
        structure.why_frozen("params.Dense_0.kernel"),
    )


class Bridged(nnx.Module):
    def __init__(self):
        self.inner = linear(16, 8, 1)
        self.dense = nnx.bridge.ToNNX(flax.linen.Dense(16), rngs=nnx.Rngs(0)).lazy_init(jnp.zeros((1, 8)))

    def __call__(self, x):
        return self.dense(self.inner(x))


def test_a_layer_of_linen_through_the_bridge_keeps_what_it_declares():
    structure = trace_structure(nnx.eval_shape(lambda: Net(Bridged())), TOKENS)
    assert structure.widths == {"stem.kernel": 16, "block.inner.kernel": 8}
    assert "declares the shapes of its parameters" in structure.why_frozen("block.dense.kernel")


class SquareHeads(nnx.Module):
    """Four heads, a number in the code, of four channels each: two heads of four pass for four heads of two."""

    def __init__(self):
        self.q, self.k, self.v, self.o = (linear(16, 16, seed) for seed in range(4))

    def __call__(self, x):
        q, k, v = (layer(x).reshape(*x.shape[:2], 4, -1) for layer in (self.q, self.k, self.v))
        return self.o(by_hand(q, k, v).reshape(*x.shape[:2], -1))


def test_heads_that_code_counts_do_not_keep_their_channels_where_both_are_as_many():
    net = Net(SquareHeads())
    widths = {"stem.kernel": 16, "block.q.kernel": 4, "block.v.kernel": 4, "block.o.kernel": 16}
    assert trace_structure(net, TOKENS).widths == widths
    assert assert_slim_is_masked(net).block.q.kernel.shape == (8, 8)


class HeadsInBatch(nnx.Module):
    """Heads join the batch, behind the positions, which would take in heads if the number of these stayed."""

    def __init__(self):
        self.q, self.k, self.v, self.o = (linear(16, 16, seed) for seed in range(4))
        self.heads, self.width = 4, 16

    def __call__(self, x):
        batch, length, _ = x.shape
        x = x.transpose(1, 0, 2)
        q, k, v = (
            layer(x).reshape(-1, batch * self.heads, 4).transpose(1, 0, 2)
            for layer in (self.q, self.k, self.v)
        )
        y = jax.nn.softmax(q @ k.transpose(0, 2, 1) / 2, -1) @ v
        return self.o(y.transpose(1, 0, 2).reshape(length, batch, self.width)).transpose(1, 0, 2)


def test_heads_merged_into_the_batch_are_not_mixed_with_positions():
    net = Net(HeadsInBatch())
    tokens = np.random.default_rng(0).normal(size=(2, 6, 6)).astype(np.float32)
    structure = trace_structure(net, tokens)
    assert dict(structure.attributes) == {"block.q.kernel": ("block.heads", "block.width")}
    chosen = plan(net, {"block.q.kernel": np.arange(4.0)}, tokens, kept_fraction=0.5, factor="both")
    smaller = slim(net, chosen, attributes={"block.heads": 2, "block.width": 8})
    assert relative_error(run(mask(net, chosen), tokens), run(smaller, tokens)) < 1e-5


class JoinedWithInput(nnx.Module):
    """A recurrent cell that reads the input and the state, zeros at first, side by side."""

    def __init__(self):
        self.cell, self.size = linear(6 + 8, 8, 1), 8
        self.head = linear(8, 3, 2)

    def __call__(self, x):
        state = jnp.zeros((x.shape[0], self.size))
        for turn in range(3):
            state = jnp.tanh(self.cell(jnp.concatenate([x[:, turn], state], -1)))
        return self.head(state)


def test_a_state_that_is_read_beside_the_input_can_be_cut():
    net = JoinedWithInput()
    assert trace_structure(net, TOKENS).widths == {"cell.kernel": 8}
    smaller = assert_slim_is_masked(net)
    assert smaller.cell.kernel.shape == (6 + 4, 4) and smaller.size == 4


class LinearAttention(nnx.Module):
    """Queries, keys and values of one head lie side by side; keys and values meet before the queries do."""

    def __init__(self):
        self.qkv, self.o, self.heads = linear(16, 48, 1), linear(16, 16, 2), 4

    def __call__(self, x):
        joined = self.qkv(x).reshape(*x.shape[:2], self.heads, -1)
        q, k, v = jnp.split(joined, 3, -1)
        state = jnp.einsum("bthd,bthe->bhde", k, v)
        return self.o(jnp.einsum("bthd,bhde->bthe", q, state).reshape(*x.shape[:2], -1))


def test_heads_and_their_channels_are_found_in_linear_attention():
    net = Net(LinearAttention())
    widths = trace_structure(net, TOKENS).widths
    assert widths.pop("stem.kernel") == widths.pop("block.o.kernel") == 16
    assert widths == {"block.qkv.kernel:outer": 4, "block.qkv.kernel:inner": 4}
    assert assert_slim_is_masked(net).block.qkv.kernel.shape == (8, 12)


class SharedHeadSize(nnx.Module):
    """Two attention layers, and one number for the heads of both."""

    def __init__(self):
        self.layers = nnx.List([nnx.List([linear(16, 16, 4 * i + j) for j in range(4)]) for i in range(2)])
        self.heads, self.head_size = 2, 8

    def __call__(self, x):
        for first, second, third, last in self.layers:
            q, k, v = (
                layer(x).reshape(*x.shape[:2], self.heads, self.head_size) for layer in (first, second, third)
            )
            x = x + last(by_hand(q, k, v).reshape(*x.shape[:2], self.heads * self.head_size))
        return x


def test_one_number_for_the_heads_of_several_layers_ties_them():
    net = Net(SharedHeadSize())
    structure = trace_structure(net, TOKENS)
    inner, outer = "block.layers.0.0.kernel:inner", "block.layers.0.0.kernel:outer"
    assert structure.widths == {"stem.kernel": 16, outer: 2, inner: 8}
    assert dict(structure.attributes) == {inner: ("block.head_size",), outer: ("block.heads",)}
    assert assert_slim_is_masked(net, factor="inner").block.layers[1][2].kernel.shape == (8, 8)

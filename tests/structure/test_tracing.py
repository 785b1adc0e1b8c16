"""What is tried out by tracing again, on networks whose code counts on numbers of channels."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from pruned_nets import IMAGES, Net, conv, flat, linear, relative_error, run, scores_of

from jaxprune.nets.cost import count_macs, count_parameters
from jaxprune.pruning.masking import mask
from jaxprune.pruning.planning import make_plan, plan
from jaxprune.pruning.slimming import slim
from jaxprune.structure.model_state import split_model, take_apart
from jaxprune.structure.tracing import structure_of, trace_structure
from jaxprune.structure.verification import find_misfit

TOKENS = IMAGES[..., 0]


class Attention(nnx.Module):
    """Two heads over the rows of an image; what it remembers of its sizes differs from test to test."""

    def __init__(self, forward):
        self.num_heads, self.head_dim, self.forward = 2, 4, forward
        self.query, self.key, self.value = (linear(8, 8, seed) for seed in range(3))
        self.out = linear(8, 3, 3)

    def __call__(self, x):
        q, k, v = (self.forward(self, layer(x)) for layer in (self.query, self.key, self.value))
        weights = jax.nn.softmax(jnp.einsum("bqhd,bkhd->bhqk", q, k) / q.shape[-1] ** 0.5)
        mixed = jnp.einsum("bhqk,bkhd->bqhd", weights, v)
        return self.out(mixed.reshape(*x.shape[:2], -1)).mean(1)


def by_heads():
    return Attention(lambda net, x: x.reshape(*x.shape[:2], net.num_heads, -1))


def by_sizes():
    return Attention(lambda net, x: x.reshape(*x.shape[:2], -1, net.head_dim))


def test_heads_and_places_in_them_are_groups_of_their_own():
    structure = trace_structure(by_heads(), TOKENS)
    assert structure.widths == {"query.kernel:outer": 2, "query.kernel:inner": 4, "value.kernel": 4}
    heads = structure.groups["query.kernel:outer"]
    assert heads.is_of_blocks and set(heads.inner) == {"query.kernel:inner", "value.kernel"}
    assert structure.attributes == {"query.kernel:outer": ("num_heads",)}


@pytest.mark.parametrize("factor", ["outer", "both"])
def test_heads_of_a_fused_projection_are_one_group_too(factor):
    """Values are taken apart in a later walk than queries and keys."""

    def forward(net, x):
        parts = jnp.split(net.qkv(x), 3, axis=-1)
        q, k, v = (part.reshape(*x.shape[:2], net.num_heads, -1) for part in parts)
        weights = jax.nn.softmax(jnp.einsum("bqhd,bkhd->bhqk", q, k))
        return net.out(jnp.einsum("bhqk,bkhd->bqhd", weights, v).reshape(*x.shape[:2], -1)).mean(1)

    net = Net({"qkv": linear(8, 24), "out": linear(8, 3, 3)}, forward)
    net.num_heads = 2
    structure = trace_structure(net, TOKENS)
    assert structure.widths == {"qkv.kernel:outer": 2, "qkv.kernel:inner": 4}
    assert structure.groups["qkv.kernel:outer"].inner == ("qkv.kernel:inner",)
    assert structure.attributes == {"qkv.kernel:outer": ("num_heads",)}
    chosen_plan = plan(net, scores_of(structure), TOKENS, kept_fraction=0.5, factor=factor)
    smaller = slim(net, chosen_plan, attributes={"num_heads": 1})
    assert smaller.qkv.out_features == (12 if factor == "outer" else 6)
    assert relative_error(run(mask(net, chosen_plan), TOKENS), run(smaller, TOKENS)) < 1e-5


def test_whole_heads_stay_unless_asked_for():
    net = by_heads()
    scores = scores_of(trace_structure(net, TOKENS))
    assert plan(net, scores, TOKENS, kept_fraction=0.5).kept_counts == {
        "query.kernel:outer": 2,
        "query.kernel:inner": 2,
        "value.kernel": 2,
    }
    outer = plan(net, scores, TOKENS, kept_fraction=0.5, factor="outer")
    assert outer.kept_counts == {"query.kernel:outer": 1, "query.kernel:inner": 4, "value.kernel": 4}
    both = plan(net, scores, TOKENS, kept_fraction=0.5, factor="both")
    assert both.kept_counts == {"query.kernel:outer": 1, "query.kernel:inner": 2, "value.kernel": 2}


def test_an_attribute_that_holds_an_old_size_is_named_with_the_value_it_needs():
    net = by_heads()
    chosen_plan = plan(
        net, scores_of(trace_structure(net, TOKENS)), TOKENS, kept_fraction=0.5, factor="outer"
    )
    with pytest.raises(ValueError, match=r"pass slim\(..., attributes=\{'num_heads': 1\}\)"):
        slim(net, chosen_plan)
    smaller = slim(net, chosen_plan, attributes={"num_heads": 1})
    assert (smaller.num_heads, net.num_heads) == (1, 2)
    assert relative_error(run(mask(net, chosen_plan), TOKENS), run(smaller, TOKENS)) < 1e-5


def test_an_attribute_that_does_not_exist_is_refused():
    net = by_heads()
    chosen_plan = plan(net, scores_of(trace_structure(net, TOKENS)), TOKENS, kept_fraction=0.5)
    with pytest.raises(ValueError, match=r"needs names of whole numbers in the network, .* got 'num_legs'"):
        slim(net, chosen_plan, attributes={"num_legs": 1})


def test_sizes_that_several_layers_share_are_cut_alike():
    net = by_sizes()
    structure = trace_structure(net, TOKENS)
    places = next(name for name in structure.groups if name.endswith("inner"))
    assert structure.attributes[places] == ("head_dim",)
    assert structure.groups[places].producers == (
        "query.kernel:inner",
        *structure.groups[places].producers[1:],
    )
    chosen_plan = plan(net, scores_of(structure), TOKENS, kept_fraction=0.5)
    with pytest.raises(ValueError, match=r"attributes=\{'head_dim': 2\}"):
        slim(net, chosen_plan)
    smaller = slim(net, chosen_plan, attributes={"head_dim": 2})
    assert smaller.query.out_features == smaller.value.out_features == 4


def halves(net, x):
    left, right = jnp.split(net.a(x), 2, axis=-1)
    return net.head(jnp.concatenate([nnx.relu(left), right * 2], -1).mean((1, 2)))


def test_halves_are_cut_alike():
    net = Net({"a": conv(1, 8), "head": linear(8, 3)}, halves)
    structure = trace_structure(net, IMAGES)
    assert structure.widths == {"a.kernel": 4}
    chosen_plan = plan(net, scores_of(structure), IMAGES, kept_fraction=0.5)
    smaller = slim(net, chosen_plan)
    assert smaller.a.out_features == 4
    assert relative_error(run(mask(net, chosen_plan)), run(smaller)) < 1e-5
    assert structure.count_macs(chosen_plan.kept_counts) == count_macs(smaller, IMAGES[:1])
    assert structure.count_parameters(chosen_plan.kept_counts) == count_parameters(smaller)


def test_a_border_at_a_fixed_place_is_not_let_go():
    def forward(net, x):
        y = net.a(x)
        return net.head(jnp.concatenate([nnx.relu(y[..., :3]), y[..., 3:]], -1).mean((1, 2)))

    net = Net({"a": conv(1, 8), "head": linear(8, 3)}, forward)
    structure = trace_structure(net, IMAGES)
    assert not structure.groups
    assert "counts on their number" in structure.why_frozen("a.kernel")
    with pytest.raises(ValueError, match="needs a network with at least one channel that can be removed"):
        structure.require_groups()


def test_padding_computed_from_shapes_is_kept_even():
    def forward(net, x):
        x, y = net.a(x), net.b(x)
        more = y.shape[-1] - x.shape[-1]
        padded = jnp.pad(x, ((0, 0), (0, 0), (0, 0), (more // 2, more - more // 2)))
        return net.head((padded + y).mean((1, 2)))

    net = Net({"a": conv(1, 4), "b": conv(1, 8, 1), "head": linear(8, 3)}, forward)
    structure = trace_structure(net, IMAGES)
    assert structure.widths == {"a.kernel": 4, "b.kernel": 2}
    chosen_plan = plan(net, scores_of(structure), IMAGES, kept_fraction=0.5)
    assert relative_error(run(mask(net, chosen_plan)), run(slim(net, chosen_plan))) < 1e-5


def test_what_is_cut_in_other_places_than_it_means_is_found_though_all_shapes_fit():
    net = Net({"a": conv(1, 8), "head": linear(8, 3)}, halves)
    structure = trace_structure(net, IMAGES)
    assert find_misfit(take_apart(net), structure, {"a.kernel": np.array([0, 3])}) is None
    by_index = trace_structure(by_heads(), TOKENS)
    misfit = find_misfit(take_apart(by_heads()), by_index, {"query.kernel:outer": np.array([1])})
    assert misfit is not None


def test_networks_of_one_architecture_share_a_structure():
    def net(width, seed):
        return Net({"a": conv(1, width, seed), "head": linear(width, 3)}, halves)

    assert trace_structure(net(8, 0), IMAGES) is trace_structure(net(8, 1), IMAGES[:1])
    assert trace_structure(net(6, 0), IMAGES) is not trace_structure(net(8, 0), IMAGES)


def test_an_architecture_without_a_hash_is_known_by_what_it_stores():
    net = Net({"a": conv(1, 8), "head": linear(8, 3)}, halves)
    net.notes = nnx.static([1, 2])
    structure = trace_structure(net, IMAGES)
    assert structure.widths == {"a.kernel": 4}
    assert trace_structure(net, IMAGES) is structure
    net.notes = nnx.static([1, 3])
    assert trace_structure(net, IMAGES) is not structure


def test_no_weights_are_needed():
    abstract = nnx.eval_shape(
        lambda: Net({"a": conv(1, 4), "head": linear(256, 3)}, lambda n, x: n.head(flat(n.a(x))))
    )
    shape = jax.ShapeDtypeStruct((1, 8, 8, 1), jnp.float32)
    assert trace_structure(abstract, shape).widths == {"a.kernel": 4}


def test_another_batch_size_gives_the_same_groups():
    net = Net({"a": conv(1, 8), "head": linear(8, 3)}, halves)
    structure = trace_structure(net, IMAGES)
    again = structure_of(*split_model(net, "evaluation"), IMAGES, structure, batch=5)
    assert again.groups == structure.groups
    assert again.frozen == structure.frozen


def test_kept_counts_may_name_any_group():
    net = by_heads()
    structure = trace_structure(net, TOKENS)
    chosen_plan = plan(net, scores_of(structure), TOKENS, kept_counts={"query.kernel:outer": 1})
    assert chosen_plan.kept_counts["query.kernel:outer"] == 1


def test_an_unknown_factor_is_refused():
    net = by_heads()
    with pytest.raises(ValueError, match="factor must be 'inner', 'outer' or 'both', got 'heads'"):
        plan(net, scores_of(trace_structure(net, TOKENS)), TOKENS, kept_fraction=0.5, factor="heads")


def test_a_plan_that_leaves_nothing_to_cut_is_refused():
    net = by_heads()
    scores = scores_of(trace_structure(net, TOKENS))
    with pytest.raises(ValueError, match="nothing is left to prune: with factor='inner' and ignore="):
        plan(net, scores, TOKENS, kept_fraction=0.5, ignore=("*",))


def test_a_plan_by_hand_is_checked_like_any():
    net = by_heads()
    structure = trace_structure(net, TOKENS)
    with pytest.raises(ValueError, match="needs rising indices between 0 and 1"):
        make_plan(structure, {"query.kernel:outer": (1, 0)})


def test_noise_that_is_always_drawn_keeps_its_channels():
    layers = {"stem": conv(1, 4), "body": conv(4, 6, 1), "head": linear(6, 3, 2)}

    def forward(net, x):
        x = net.stem(x)
        x = net.body(nnx.relu(x + jax.random.normal(jax.random.key(0), x.shape)))
        return net.head(nnx.relu(x).mean((1, 2)))

    structure = trace_structure(Net(layers, forward), IMAGES)
    assert list(structure.groups) == ["body.kernel"]
    assert "random numbers of its own for each, drawn by random_bits at" in structure.why_frozen(
        "stem.kernel"
    )


class Heads(nnx.Module):
    """Channels in heads, every place in a head scaled by a table that all blocks share."""

    def __init__(self, rngs):
        self.query = nnx.Linear(8, 12, rngs=rngs)
        self.out = nnx.Linear(12, 8, rngs=rngs)
        self.num_heads = 3

    def __call__(self, x, table):
        parts = self.query(x).reshape(*x.shape[:2], self.num_heads, -1) * table
        return self.out(nnx.relu(parts).reshape(*x.shape[:2], -1))


class TwoOfHeads(nnx.Module):
    def __init__(self, rngs):
        self.stem = nnx.Linear(8, 8, rngs=rngs)
        self.blocks = nnx.List([Heads(rngs) for _ in range(2)])
        self.table = nnx.Param(jax.numpy.ones((1, 1, 1, 4)))
        self.head = nnx.Linear(8, 3, rngs=rngs)

    def __call__(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x, self.table[...])
        return self.head(nnx.relu(x).mean(1))


def test_alike_blocks_are_freed_by_their_own_attributes_together():
    net = TwoOfHeads(nnx.Rngs(0))
    structure = trace_structure(net, TOKENS)
    heads = [name for name, group in structure.groups.items() if group.is_of_blocks]
    assert [name.split(":")[0] for name in heads] == ["blocks.0.query.kernel", "blocks.1.query.kernel"]
    assert [structure.attributes[name] for name in heads] == [
        ("blocks.0.num_heads",),
        ("blocks.1.num_heads",),
    ]
    chosen_plan = plan(net, scores_of(structure), TOKENS, kept_counts=dict.fromkeys(heads, 2), factor="both")
    attributes = {"blocks.0.num_heads": 2, "blocks.1.num_heads": 2}
    smaller = slim(net, chosen_plan, attributes=attributes)
    assert [block.query.out_features for block in smaller.blocks] == [8, 8]
    assert relative_error(run(mask(net, chosen_plan), TOKENS), run(smaller, TOKENS)) < 1e-5


def test_why_heads_stay_is_said_where_places_in_them_do_not():
    layers = {"query": linear(8, 12), "out": linear(12, 4), "head": linear(4, 3)}
    table = np.arange(1.0, 4.0, dtype=np.float32).reshape(1, 1, 3, 1)

    def forward(net, x):
        parts = net.query(x).reshape(*x.shape[:2], 3, -1)
        return net.head(nnx.relu(net.out((parts * table).reshape(*x.shape[:2], -1))).mean(1))

    structure = trace_structure(Net(layers, forward), TOKENS)
    assert structure.groups["query.kernel"].size == 4
    assert "query.kernel[1]" not in structure.frozen
    assert re.search(
        r"query.kernel\[1\]: an array of fixed size .* \(one of 2 factors of the axis, not all of it\)",
        structure.why_frozen("query.kernel"),
    )
    assert structure.why_frozen("head.bias") == "head.bias[0]: output of the network"

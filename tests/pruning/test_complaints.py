"""What users of other pruning tools complain about most, one test for each."""

from __future__ import annotations

import resource
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from pruned_nets import IMAGES, Net, conv, flat, linear, norm
from zoo import ZOO
from zoo.abstract import abstract
from zoo_cases import QUICK, case_of, known_structure, quick_comparison, relative_error, run, scores_of

from jaxprune.pruning.budgets import budget_counts
from jaxprune.pruning.masking import mask
from jaxprune.pruning.planning import plan
from jaxprune.pruning.slimming import slim
from jaxprune.structure import tracing, verification
from jaxprune.structure.program import trace_program
from jaxprune.structure.tracing import trace_structure


def concatenated():
    """Two branches side by side, read as one by a norm and a convolution."""
    layers = {
        "a": conv(1, 4),
        "b": conv(1, 6, 1),
        "norm": norm(10),
        "join": conv(10, 5, 2),
        "head": linear(5, 3),
    }

    def forward(net, x):
        x = nnx.relu(net.norm(jnp.concatenate([net.a(x), net.b(x)], axis=-1)))
        return net.head(nnx.relu(net.join(x)).mean((1, 2)))

    return Net(layers, forward)


def split_apart():
    """One convolution whose halves gate each other."""
    layers = {"double": conv(1, 8), "join": conv(4, 5, 1), "head": linear(5, 3)}

    def forward(net, x):
        value, gate = jnp.split(net.double(x), 2, axis=-1)
        return net.head(nnx.relu(net.join(value * nnx.sigmoid(gate))).mean((1, 2)))

    return Net(layers, forward)


def halves_of_their_own():
    """One convolution whose halves go different ways and are joined again: an uneven cut would move the border."""
    layers = {"stem": conv(1, 8), "join": conv(8, 5, 1), "head": linear(5, 3)}

    def forward(net, x):
        first, second = jnp.split(net.stem(x), 2, axis=-1)
        x = jnp.concatenate([nnx.relu(first), second], axis=-1)
        return net.head(nnx.relu(net.join(x)).mean((1, 2)))

    return Net(layers, forward)


def reshaped():
    """Channels flattened with positions, channels first, and a dense layer seen as channels again."""
    layers = {"stem": conv(1, 4), "dense": linear(64, 12), "back": conv(3, 5, 1), "head": linear(20, 3)}

    def forward(net, x):
        x = nnx.max_pool(nnx.relu(net.stem(x)), (2, 2), (2, 2)).transpose(0, 3, 1, 2)
        x = nnx.relu(net.dense(flat(x))).reshape(x.shape[0], 2, 2, -1)
        return net.head(flat(net.back(x)))

    return Net(layers, forward)


def shuffled():
    """Channels of two groups taken in turns between convolutions."""
    layers = {"stem": conv(1, 8), "next": conv(8, 6, 1), "head": linear(6, 3)}

    def forward(net, x):
        x = nnx.relu(net.stem(x))
        x = x.reshape(*x.shape[:-1], 2, -1).swapaxes(-1, -2).reshape(x.shape)
        return net.head(nnx.relu(net.next(x)).mean((1, 2)))

    return Net(layers, forward)


def check(net, fraction=0.5):
    structure = trace_structure(net, IMAGES)
    with known_structure(structure):
        chosen_plan = plan(net, scores_of(structure), IMAGES, kept_fraction=fraction)
        nets = (net, mask(net, chosen_plan), slim(net, chosen_plan))
    full, masked, smaller = (run(network, IMAGES[:2], QUICK) for network in nets)
    assert relative_error(masked, smaller) < 1e-5
    assert relative_error(full, smaller) > 1e-3
    return structure


class TestDependencies:
    def test_concatenated_branches_are_groups_of_their_own_within_what_reads_them(self):
        structure = check(concatenated())
        assert structure.widths == {"a.kernel": 4, "b.kernel": 6, "join.kernel": 5}
        assert "join.kernel axis 2 at 4-9" in map(str, structure.groups["b.kernel"].members)

    def test_halves_that_gate_each_other_fall_in_pairs(self):
        structure = check(split_apart())
        assert structure.widths == {"double.kernel": 4, "join.kernel": 5}

    def test_halves_that_go_their_own_ways_stay_as_long_as_each_other(self):
        net = halves_of_their_own()
        structure = check(net)
        (group,) = (group for group in structure.groups.values() if group.producers == ("stem.kernel",))
        places = next(member.channels for member in group.members if member.axis == 3)
        assert group.size == 4 and np.array_equal(places[:4], places[4:])

    def test_reshapes_carry_channels_with_them(self):
        structure = check(reshaped())
        assert structure.widths["stem.kernel"] == 4
        assert "dense.kernel axis 0 as 1 x channel x 16" in map(str, structure.groups["stem.kernel"].members)
        assert structure.widths["dense.kernel"] == 3  # channels of four positions each

    def test_shuffled_channels_are_followed(self):
        structure = check(shuffled())
        assert structure.widths["next.kernel"] == 6
        assert structure.widths["stem.kernel"] == 4  # the same ones of both groups, or the turns would change


class TestAttention:
    @pytest.mark.parametrize("name", ["gpt_fused", "gpt_separate"])
    def test_heads_of_attention_are_pruned_and_exact(self, name):
        structure, comparison = case_of(name).structure, quick_comparison(name)
        assert comparison.is_exact
        widths = budget_counts(structure, kept_fraction=0.5)
        paths = [path for path in structure.shapes if "attention" in path and path[-1] == "kernel"]
        sizes = [
            (np.prod(structure.slim_shape(path, widths)), np.prod(structure.shapes[path])) for path in paths
        ]
        assert paths and all(smaller == size / 4 for smaller, size in sizes)

    def test_grouped_queries_lose_pairs_that_turn_together(self):
        structure = case_of("llama_half_tables").structure
        query = structure.layouts["blocks", 0, "attention", "query", "kernel"][1]
        key = structure.layouts["blocks", 0, "attention", "key", "kernel"][1]
        assert {field.group for field in query} & {field.group for field in key}
        inner = next(field for field in query if structure.widths[field.group] == 4).channels.reshape(4, 8)
        assert (inner == inner[:1]).all() and np.array_equal(inner[0, :4], inner[0, 4:])

    def test_a_block_that_another_tool_leaves_alone_is_pruned_or_said_to_be_frozen(self):
        """A GPT-2 block silently untouched: every kernel of the block is cut, or has a reason."""
        structure = case_of("gpt_fused").structure
        for path, shape in structure.shapes.items():
            if path[0] == "blocks" and path[-1] == "kernel":
                for axis in range(len(shape)):
                    is_cut = bool(structure.layouts[path][axis])
                    assert is_cut or f"{'.'.join(map(str, path))}[{axis}]" in structure.frozen


class TestLargeModels:
    def test_depth_costs_no_more_than_layers(self):
        """The structure of 8 layers has as many groups for each layer as that of 2."""
        counts = [
            len(trace_structure(abstract(ZOO["tied_embeddings"].small, depth=depth), TOKENS).groups)
            for depth in (2, 8)
        ]
        assert counts == [3, 9]

    @pytest.mark.slow
    def test_a_llama_of_32_layers_takes_few_traces_and_less_than_a_gigabyte(self, monkeypatch):
        """How many seconds that is, `benchmarks/structure.py` measures."""
        entry, traces = ZOO["llama_half_tables"], []
        for module in (tracing, verification):
            monkeypatch.setattr(
                module, "trace_program", lambda *parts: traces.append(parts[-1]) or trace_program(*parts)
            )
        model = abstract(entry.full)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        structure = trace_structure(model, entry.full_input)
        scale = 1 if sys.platform == "darwin" else 1024
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * scale
        assert len(structure.groups) >= 1 + 3 * 32
        assert 4 <= len(traces) <= 12
        assert grown < 1e9


TOKENS = jax.ShapeDtypeStruct((2, 6), jnp.int32)


class TestSilence:
    def test_a_network_without_anything_to_prune_is_an_error_with_reasons(self):
        net = Net({"only": linear(64, 3)}, lambda net, x: net.only(flat(x)))
        with pytest.raises(
            ValueError, match=r"at least one channel .*only.kernel\[1\]: output of the network"
        ):
            plan(net, {}, IMAGES, kept_fraction=0.5)

    def test_a_fraction_that_prunes_nothing_of_a_group_is_visible_in_the_plan(self):
        net = concatenated()
        chosen_plan = plan(net, scores_of(trace_structure(net, IMAGES)), IMAGES, kept_fraction=1.0)
        assert chosen_plan.kept_counts == chosen_plan.widths

    def test_an_operation_that_is_not_understood_is_named_with_its_line(self):
        layers = {"stem": conv(1, 4), "head": linear(4, 3)}
        net = Net(layers, lambda net, x: net.head(jnp.sort(net.stem(x).mean((1, 2)), axis=-1)))
        structure = trace_structure(net, IMAGES)
        assert not structure.groups
        assert "sort" in structure.why_frozen("stem.kernel")
        assert "test_complaints.py:" in structure.why_frozen("stem.kernel")


class TestFailuresOfOthers:
    """Networks that a widely used tool fails on at 50 % of the channels."""

    @pytest.mark.parametrize("name", ["resnet56_padded", "shufflenet_v2", "swin_t"])
    def test_is_exact(self, name):
        assert quick_comparison(name).is_exact
        structure = case_of(name).structure
        widths = budget_counts(structure, kept_fraction=0.5)
        assert structure.count_parameters(widths) < 0.5 * structure.count_parameters()

    def test_zero_padded_shortcuts_keep_their_residual_streams_apart(self):
        structure = case_of("resnet56_padded").structure
        assert len([name for name in structure.groups if "second" in name or "stem" in name]) == 3


def groups_in(mode, name, monkeypatch):
    """Members of every group, traced in that mode."""
    for module in (tracing, verification):
        monkeypatch.setattr(module, "trace_program", partial(trace_program, mode=mode))
    tracing.clear_structures()
    structure = trace_structure(abstract(ZOO[name].small), ZOO[name].small_input)
    return {group.name: [str(member) for member in group.members] for group in structure.groups.values()}


@pytest.mark.slow
@pytest.mark.parametrize("name", ZOO)
def test_training_mode_gives_the_same_groups(name, monkeypatch):
    """Batch statistics and dropout change values, not who belongs to whom."""
    assert groups_in("training", name, monkeypatch) == groups_in("evaluation", name, monkeypatch)


@pytest.mark.parametrize("name", ["resnet56_projected", "gated_conv"])
def test_training_mode_gives_the_same_groups_of_some(name, monkeypatch):
    assert groups_in("training", name, monkeypatch) == groups_in("evaluation", name, monkeypatch)

"""What a structure comes to, in rows that a person reads."""

from __future__ import annotations

import jax
import pytest
from own_networks import Gated, Heads, Stack

from jaxprune.nets import without_weights
from jaxprune.structure.overview import axes_of, folded, overview_of
from jaxprune.structure.tracing import trace_structure

TOKENS = jax.ShapeDtypeStruct((1, 4), "int32")


@pytest.fixture(scope="module")
def stack():
    return trace_structure(without_weights(Stack), TOKENS)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["a.0.k", "a.1.k", "a.2.k"], ["a.0-2.k"]),
        (["a.0.k", "b", "a.2.k"], ["a.0,2.k", "b"]),
        (["s.0.b.0", "s.0.b.1", "s.1.b.0", "s.1.b.1"], ["s.0-1.b.0-1"]),
        (["s.0.b.0", "s.0.b.1", "s.1.b.0"], ["s.*.b.* (3)"]),
        (["conv1", "conv2", "conv1"], ["conv1", "conv2"]),
    ],
)
def test_names_that_differ_in_numbers_are_folded(names, expected):
    assert folded(names) == expected


def test_alike_blocks_share_a_row_by_hand(stack):
    stream, hidden = overview_of(stack).rows
    assert (stream.name, stream.channels, stream.made_by) == (
        "tokens.embedding",
        6,
        ("tokens", "blocks.0-4.down"),
    )
    assert stream.read_by == ("blocks.0-4.up", "head")
    assert (hidden.name, hidden.channels, len(hidden.groups)) == ("blocks.0-4.up.kernel", 10, 5)
    assert hidden.groups[0] == "blocks.0.up.kernel" and hidden.notes == ()


def test_unfolded_every_group_has_its_row(stack):
    assert [row.name for row in overview_of(stack, is_folded=False).rows] == list(stack.groups)


def test_what_can_be_cut_by_hand(stack):
    overview = overview_of(stack)
    assert (overview.num_groups, overview.num_channels, overview.num_removable) == (6, 56, 50)
    assert overview.parameters == 7 * 6 + 5 * (6 * 10 + 10 + 10 * 6 + 6) + 6 * 3 + 3
    assert overview.least_parameters == 7 + 5 * 4 + 3 + 3


def test_frozen_axes_are_sorted_by_reason_with_operations_first(stack):
    rows = overview_of(stack).frozen
    assert rows[0].reason.startswith("looked up by number in gather at ") and rows[0].axes == (
        "tokens.embedding[0]",
    )
    assert rows[-1].reason == "output of the network"
    assert sorted(axis for row in rows for axis in row.axes) == sorted(stack.frozen)


def test_heads_stay_whole_and_are_not_counted():
    overview = overview_of(
        trace_structure(without_weights(Heads), jax.ShapeDtypeStruct((1, 5, 6), "float32"))
    )
    heads = next(row for row in overview.rows if row.channels == 2)
    places = next(row for row in overview.rows if row.channels == 4)
    assert heads.notes[0] == f'stays whole unless factor="outer": {places.name} is pruned instead'
    assert overview.num_removable == overview.num_channels - 2 - (overview.num_groups - 1)


def test_numbers_that_must_follow_are_told():
    (row,) = overview_of(
        trace_structure(without_weights(Gated), jax.ShapeDtypeStruct((1, 5), "float32"))
    ).rows
    assert row.notes == ("each channel is 2 indices of up", "hidden must follow")


def test_every_axis_has_its_group_or_its_reason(stack):
    assert axes_of(stack, "blocks.1") == [
        "blocks.1.down.bias[0] (6): group tokens.embedding",
        "blocks.1.down.kernel[0] (10): group blocks.1.up.kernel",
        "blocks.1.down.kernel[1] (6): group tokens.embedding",
        "blocks.1.up.bias[0] (10): group blocks.1.up.kernel",
        "blocks.1.up.kernel[0] (6): group tokens.embedding",
        "blocks.1.up.kernel[1] (10): group blocks.1.up.kernel",
    ]
    with pytest.raises(ValueError, match="needs the dotted path of an array of the network, got 'block'"):
        axes_of(stack, "block")

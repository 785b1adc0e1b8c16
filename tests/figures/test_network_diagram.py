"""The picture of a network's groups shows each layer once, each group on one rail, and nothing over anything else."""

from __future__ import annotations

from itertools import combinations

import jax
import pytest
from own_networks import Heads, Stack, one_layer
from test_figures import overlapping, texts

from jaxprune import groups_figure, trace_structure
from jaxprune.figures.network_layout import INPUT, OUTPUT, diagram_of
from jaxprune.figures.style import save_figure
from jaxprune.nets import CifarResNet, LeNet5, without_weights
from jaxprune.structure.overview import kernels_of


def traced(make, *shape, dtype="float32"):
    return trace_structure(without_weights(make), jax.ShapeDtypeStruct((1, *shape), dtype))


@pytest.fixture(scope="module")
def structures():
    return {
        "stack": traced(Stack, 4, dtype="int32"),
        "heads": traced(Heads, 5, 6),
        "lenet": traced(LeNet5, 28, 28, 1),
        "residual": traced(lambda rngs: CifarResNet(rngs, depth=8), 32, 32, 3),
        "nothing": traced(one_layer, 5),
    }


NAMES = ["stack", "heads", "lenet", "residual", "nothing"]


@pytest.mark.parametrize("name", NAMES)
def test_no_texts_lie_over_each_other_and_all_are_inside(name, structures):
    figure = groups_figure(structures[name], name)
    assert overlapping(figure) == []
    for text in figure.axes[0].texts:
        box = text.get_window_extent()
        assert box.x0 > 0 and box.x1 < figure.bbox.x1, text.get_text()
        assert box.y0 > 0 and box.y1 < figure.bbox.y1, text.get_text()


@pytest.mark.parametrize("name", NAMES)
def test_rails_of_one_track_never_touch(name, structures):
    rails = diagram_of(structures[name], is_folded=False).rails
    for left, right in combinations(rails, 2):
        assert left.track != right.track or left.last < right.first or right.last < left.first


@pytest.mark.parametrize("name", NAMES)
def test_every_group_joins_its_producers_and_consumers(name, structures):
    structure = structures[name]
    diagram = diagram_of(structure, is_folded=False)
    rails = {rail.group: rail for rail in diagram.rails}
    assert set(structure.groups) == set(rails) - {INPUT, OUTPUT}
    for group in structure.groups.values():
        rail = rails[group.name]
        made = {path for number in rail.makers for path in diagram.lines[number].layers}
        read = {path for number in rail.readers for path in diagram.lines[number].layers}
        assert made == set(kernels_of(structure, group)) and read == set(group.consumers)
        assert rail.is_unread == (not group.consumers)


def test_lenet_by_hand(structures):
    diagram = diagram_of(structures["lenet"])
    assert [line.name for line in diagram.lines] == [INPUT, "conv1", "conv2", "dense", "output", OUTPUT]
    spans = {rail.group: (rail.first, rail.last) for rail in diagram.rails}
    assert spans == {
        INPUT: (0, 1),
        "conv1.kernel": (1, 2),
        "conv2.kernel": (2, 3),
        "dense.kernel": (3, 4),
        OUTPUT: (4, 5),
    }
    written = texts(groups_figure(structures["lenet"], "mine"))
    assert {"mine", "conv1", "5×5×20×50", "500 channels", "never cut: output of the network"} <= set(written)


def test_blocks_like_the_first_two_are_a_gap_that_the_stream_runs_through(structures):
    diagram = diagram_of(structures["stack"])
    names = [line.name for line in diagram.lines]
    blocks = [f"blocks.{number}.{part}" for number in range(2) for part in ("up", "down")]
    assert names == [INPUT, "tokens", *blocks, "3 more blocks like these", "head", OUTPUT]
    stream = next(rail for rail in diagram.rails if rail.group == "tokens.embedding")
    assert (stream.first, stream.last, stream.gaps) == (1, 7, (6,))
    assert "blocks.3.up.kernel" not in {rail.group for rail in diagram.rails}
    assert len(diagram_of(structures["stack"], is_folded=False).lines) == 14


def test_neighbouring_groups_have_different_colours(structures):
    from jaxprune.figures.network_diagram import _colors

    diagram = diagram_of(structures["residual"], is_folded=False)
    colors = _colors(diagram)
    for left, right in combinations([rail for rail in diagram.rails if rail.channels], 2):
        if left.first <= right.last and right.first <= left.last:
            assert colors[left.group] != colors[right.group]


def test_whole_heads_are_said_to_stay(structures):
    written = texts(groups_figure(structures["heads"]))
    assert "2 channels, stays whole" in written and "4 channels" in written


def test_the_picture_is_a_png_of_the_same_bytes(structures, tmp_path):
    first, second = (
        save_figure(groups_figure(structures["lenet"]), tmp_path / name) for name in ("a.png", "b.png")
    )
    assert first.read_bytes() == second.read_bytes() and first.read_bytes().startswith(b"\x89PNG")

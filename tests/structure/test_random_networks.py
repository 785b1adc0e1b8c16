"""The reference for random networks is right: it equals whole networks, and networks that are cut in these tests.

Nothing of the tracer is used. Masks are guessed, and refused if they contradict each other; arrays are cut axis by
axis, and the model's own code runs on the smaller arrays.
"""

from __future__ import annotations

import ast
from collections import Counter
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx
from random_networks import (
    FUNCTIONS,
    LAYERS,
    Node,
    Spec,
    build,
    complete_masks,
    describe,
    inputs_of,
    random_spec,
    reference,
)
from random_reference import OPS

from jaxprune.structure.layer_sizes import resize_layers


def parts(model):
    graphdef, state = nnx.split(model)
    return graphdef, {path: np.asarray(leaf[...]) for path, leaf in nnx.to_flat_state(state)}


def run(model, images):
    graphdef, state = nnx.split(model)
    return np.asarray(jax.jit(lambda state, images: nnx.merge(graphdef, state)(images))(state, images))


def assert_close(actual, expected, spec):
    scale = np.abs(expected).max()
    assert np.abs(actual - expected).max() <= 1e-5 * scale, describe(spec)


def cut_by_hand(spec, model, alive):
    """Returns the smaller model, from masks of every axis."""
    graphdef, arrays = parts(model)
    smaller = {path: array[np.ix_(*alive[path])] for path, array in arrays.items()}
    copy = nnx.merge(graphdef, nnx.from_flat_state(list(arrays.items())))
    old, new = ({path: array.shape for path, array in group.items()} for group in (arrays, smaller))
    resize_layers(
        copy, old, new, lambda path, axis, blocks: int(alive[path][axis].reshape(blocks, -1).any(1).sum())
    )
    return nnx.merge(nnx.split(copy)[0], nnx.from_flat_state(list(smaller.items())))


def producers(node, layer):
    """Returns (path, axis, times, size) of each axis that makes channels: its mask is one of `size`, repeated `times`.

    A negative size is a number of heads, which are kept or removed as a whole.
    """
    if node.op == "conv":
        return [((layer, "kernel"), 3, 1, node.width)]
    if node.op == "dense":
        return [((layer, "kernel"), 1, 1, node.width)]
    if node.op == "squeeze_excite":
        return [((layer, "down", "kernel"), 1, 1, node.hidden), ((layer, "up", "kernel"), 1, 1, node.width)]
    if node.op != "attention":
        return []
    if node.style == "flax":
        heads = [((layer, name, "kernel"), 1, 1, node.heads) for name in ("query", "key", "value")]
        dims = [((layer, name, "kernel"), 2, 1, node.head_dim) for name in ("query", "key", "value")]
        return [*heads, *dims, ((layer, "out", "kernel"), 2, 1, node.width)]
    names = ("query", "key", "value") if node.style == "separate" else ("qkv",)
    times = 3 // len(names)
    by_head = node.stores == "heads"
    pattern = (times * node.heads, node.head_dim) if by_head else (times, -node.heads)
    inner = [((layer, name, "kernel"), 1, *pattern) for name in names]
    return [*inner, ((layer, "out", "kernel"), 1, 1, node.width)]


def guess(spec, arrays, rng):
    """Returns masks of all output axes, equal ones for equal widths, so that sums often fit."""
    period, patterns = int(rng.integers(1, 4)), {}

    def pattern(size, repeats):
        repeats = repeats if size % repeats == 0 else 1
        if (size, repeats) not in patterns:
            mask = rng.random(size // repeats) < 0.6
            mask[rng.integers(len(mask))] = True
            patterns[size, repeats] = np.tile(mask, repeats)
        return patterns[size, repeats]

    alive = {}
    for number, node in enumerate(spec.nodes[:-1], start=1):
        for path, axis, times, size in producers(node, f"layer{node.layer or number}"):
            if size > 0:
                mask = np.tile(pattern(size, period if times == 1 else 1), times)
            else:  # whole heads
                whole = arrays[path].shape[axis] // (times * -size)
                mask = np.tile(np.repeat(pattern(-size, 1), whole), times)
            masks = list(alive.get(path, (None,) * arrays[path].ndim))
            masks[axis] = mask
            alive[path] = tuple(masks)
    return alive


def find_cut(spec, arrays, seed, attempts=60):
    """Returns masks of all axes of a smaller network, or None if no guess fits."""
    for attempt in range(attempts):
        rng = np.random.default_rng((seed, attempt))
        guessed = guess(spec, arrays, rng)
        for path in list(guessed):
            if rng.random() < 0.3 * attempt / attempts:  # later attempts cut fewer layers
                del guessed[path]
        try:
            alive = complete_masks(spec, arrays, guessed)
        except AssertionError:
            continue
        if not all(mask.all() for masks in alive.values() for mask in masks):
            return alive
    return None


def chain(first, second):
    """Returns conv - batch norm - relu - conv - layer norm - flatten - dense, with these widths of the convolutions."""
    return Spec(
        (8, 8, 1),
        (
            Node("conv", (0,), first, 1, kernel=3),
            Node("batch_norm", (1,), first, first),
            Node("relu", (2,), first, first),
            Node("conv", (3,), second, first, stride=2),
            Node("layer_norm", (4,), second, second),
            Node("flatten", (5,), 16 * second, second),
            Node("dense", (6,), 3, 16 * second),
        ),
    )


def chain_masks(first, second):
    return {
        ("layer1", "kernel"): (None, None, None, first),
        ("layer1", "bias"): (first,),
        **{("layer2", name): (first,) for name in ("scale", "bias", "mean", "var")},
        ("layer4", "kernel"): (None, None, first, second),
        ("layer4", "bias"): (second,),
        ("layer5", "scale"): (second,),
        ("layer5", "bias"): (second,),
        ("layer7", "kernel"): (np.tile(second, 16), None),
    }


FIRST, SECOND = np.array([1, 0, 1, 1, 0], bool), np.array([1, 1, 0, 1], bool)


def test_a_chain_masked_by_hand_equals_a_smaller_network_built_anew():
    spec, images = chain(5, 4), inputs_of(chain(5, 4))
    arrays, alive = parts(build(spec, nnx.Rngs(0)))[1], chain_masks(FIRST, SECOND)
    smaller = {}
    for path, array in arrays.items():
        for axis, mask in enumerate(alive.get(path, ())):
            array = array if mask is None else np.compress(mask, array, axis)
        smaller[path] = array
    graphdef, fresh = parts(build(chain(3, 3), nnx.Rngs(1)))
    assert {path: array.shape for path, array in fresh.items()} == {
        path: array.shape for path, array in smaller.items()
    }
    model = nnx.merge(graphdef, nnx.from_flat_state(list(smaller.items())))
    expected = reference(spec, arrays, alive, images)
    assert_close(run(model, images), expected, spec)
    assert np.abs(expected - reference(spec, arrays, {}, images)).max() > 1e-2 * np.abs(expected).max()


def test_masks_that_follow_from_output_axes_are_derived():
    spec, alive = chain(5, 4), chain_masks(FIRST, SECOND)
    arrays = parts(build(spec, nnx.Rngs(0)))[1]
    outputs = {
        ("layer1", "kernel"): (None, None, None, FIRST),
        ("layer4", "kernel"): (None, None, None, SECOND),
    }
    derived = complete_masks(spec, arrays, outputs)
    for path, array in arrays.items():
        for axis, size in enumerate(array.shape):
            mask = alive[path][axis] if path in alive else None
            np.testing.assert_array_equal(derived[path][axis], np.ones(size, bool) if mask is None else mask)


def refused(nodes, alive, match):
    spec = Spec((8, 8, 2), nodes)
    arrays = parts(build(spec, nnx.Rngs(0)))[1]
    with pytest.raises(AssertionError, match=match):
        reference(spec, arrays, alive, inputs_of(spec))


STEM = Node("conv", (0,), 4, 2)
HALF, PAIR = np.array([1, 0, 1, 0], bool), np.array([1, 1, 0, 0], bool)
CUT_STEM = {("layer1", "kernel"): (None, None, None, HALF), ("layer1", "bias"): (HALF,)}
CUT_PAIR = {("layer1", "kernel"): (None, None, None, PAIR), ("layer1", "bias"): (PAIR,)}
TOKENS = Node("tokens", (1,), 4, 4)
ATTENTION = Node("attention", (2,), 3, 4, heads=2, head_dim=2, style="separate", stores="heads")

REFUSED = {
    "a reader that keeps more": (
        (STEM, Node("conv", (1,), 3, 4)),
        CUT_STEM,
        r"node 2 \(conv\): layer2.kernel axis 2 keeps \[0 1 2 3\], but \[0 2\] follows",
    ),
    "a bias unlike its kernel": ((STEM,), {("layer1", "bias"): (HALF,)}, r"layer1.bias axis 0 keeps \[0 2\]"),
    "a sum of different channels": (
        (STEM, Node("conv", (0,), 4, 2), Node("add", (1, 2), 4, 4)),
        CUT_STEM,
        r"node 3 \(add\): channels \[0 2\] meet channels \[0 1 2 3\]",
    ),
    "outputs": ((STEM,), CUT_STEM, "outputs of the network are never cut"),
    "a shuffle of unlike groups": (
        (STEM, Node("shuffle", (1,), 4, 4, groups=2)),
        {
            ("layer1", "kernel"): (None, None, None, np.array([1, 0, 0, 1], bool)),
            ("layer1", "bias"): (np.array([1, 0, 0, 1], bool),),
        },
        "the same channels in each of its groups",
    ),
    "a part that is gone": (
        (STEM, Node("part", (1,), 2, 4, parts=2)),
        CUT_PAIR,
        "a part is gone",
    ),
    "unequal parts": (
        (STEM, Node("part", (1,), 2, 4, parts=2)),
        {key: (*masks[:-1], np.array([1, 1, 1, 0], bool)) for key, masks in CUT_STEM.items()},
        "not equally many",
    ),
    "a convolution group without outputs": (
        (STEM, Node("conv", (1,), 4, 4, groups=2)),
        {("layer2", "kernel"): (None, None, None, PAIR), ("layer2", "bias"): (PAIR,)},
        "read from groups",
    ),
    "no channel at all": (
        (STEM,),
        {
            ("layer1", "kernel"): (None, None, None, np.zeros(4, bool)),
            ("layer1", "bias"): (np.zeros(4, bool),),
        },
        "no channel lives",
    ),
    "a head that the code counts on": (
        (STEM, TOKENS, ATTENTION),
        {("layer3", name, "kernel"): (None, PAIR) for name in ("query", "key", "value")}
        | {("layer3", name, "bias"): (PAIR,) for name in ("query", "key", "value")},
        "counts on the number of heads",
    ),
    "a narrower head whose size the code counts on": (
        (STEM, TOKENS, replace(ATTENTION, stores="head_dim")),
        {("layer3", name, "kernel"): (None, HALF) for name in ("query", "key", "value")}
        | {("layer3", name, "bias"): (HALF,) for name in ("query", "key", "value")},
        "counts on its size",
    ),
    "queries without their keys": (
        (STEM, TOKENS, ATTENTION),
        {("layer3", "query", "kernel"): (None, HALF), ("layer3", "query", "bias"): (HALF,)},
        "queries and keys keep different dimensions",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_masks_of_no_smaller_network_are_refused(name):
    refused(*REFUSED[name])


def test_specs_are_plain_data_and_the_same_for_the_same_seed():
    specs = [random_spec(seed) for seed in range(300)]
    assert specs == [random_spec(seed) for seed in range(300)]
    assert len({*specs}) == 300
    assert all(4 <= len(spec.nodes) <= 14 for spec in specs)
    counts = Counter(node.op for spec in specs for node in spec.nodes)
    assert set(counts) == set(OPS) == set(LAYERS) | set(FUNCTIONS)
    assert min(counts.values()) >= 10
    attention = {(node.style, node.stores) for spec in specs for node in spec.nodes if node.heads}
    assert len(attention) == 7


def test_describe_names_every_node():
    lines = describe(random_spec(0)).splitlines()
    assert len(lines) == len(random_spec(0).nodes) + 1
    assert describe(chain(5, 4)).splitlines()[4] == "4: conv(3) width=4 fan_in=5 stride=2"


def test_the_reference_imports_neither_flax_nor_jaxprune():
    tree = ast.parse((Path(__file__).parents[1] / "support" / "random_reference.py").read_text())
    nodes = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in nodes if isinstance(node, ast.ImportFrom)}
    assert names == {"__future__", "collections.abc", "typing", "numpy"}


@pytest.mark.parametrize("seed", range(4))
def test_the_whole_network_equals_its_reference(seed):
    spec = random_spec(seed)
    model, images = build(spec, nnx.Rngs(seed)), inputs_of(spec)
    assert_close(run(model, images), reference(spec, parts(model)[1], {}, images), spec)


def check_cut(seed):
    spec = random_spec(seed)
    model, images = build(spec, nnx.Rngs(seed)), inputs_of(spec)
    arrays = parts(model)[1]
    alive = find_cut(spec, arrays, seed)
    if alive is None:
        return False
    expected = reference(spec, arrays, alive, images)
    assert_close(run(cut_by_hand(spec, model, alive), images), expected, spec)
    return True


@pytest.mark.parametrize("seed", [100, 101, 102, 103])
def test_a_network_cut_by_hand_equals_its_reference(seed):
    assert check_cut(seed)


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_many_networks_cut_by_hand_equal_their_references():
    assert sum(check_cut(seed) for seed in range(1000, 1200)) >= 150

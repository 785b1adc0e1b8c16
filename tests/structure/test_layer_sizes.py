"""Every layer of Flax, cut by hand and resized, is the smaller layer that its constructor would have made."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxprune.nets import without_weights
from jaxprune.structure.layer_sizes import resize_layers
from jaxprune.structure.model_state import dotted, merge_model


def rngs():
    return nnx.Rngs(0)


def conv(a, b, **options):
    return nnx.Conv(a, b, (3, 3), rngs=rngs(), **options)


class ScaledConv(nnx.Conv):
    """A user's subclass."""

    def __call__(self, x):
        return 2 * super().__call__(x)


class Stacked(nnx.Module):
    """Two linear layers in one, stacked along a leading axis."""

    def __init__(self, a, b):
        make = nnx.vmap(lambda rngs: nnx.Linear(a, b, rngs=rngs))
        self.layer = nnx.split_rngs(splits=2)(make)(rngs())

    def __call__(self, x):
        return nnx.vmap(lambda layer, x: layer(x), in_axes=(0, None))(self.layer, x)


class Tied(nnx.Module):
    """One kernel in two layers, one layer under two names, and one in a list."""

    def __init__(self, a, b):
        self.second = nnx.Linear(a, b, rngs=rngs())
        self.first = nnx.Linear(a, b, use_bias=False, rngs=rngs())
        self.first.kernel = self.second.kernel
        self.again = self.second
        self.listed = nnx.List([nnx.Linear(b, 2, rngs=rngs())])

    def __call__(self, x):
        return self.listed[0](self.first(x) + self.second(x) + self.again(x))


def attention(heads, head_dim, inputs=6, outputs=5, kv_heads=None, **options):
    return nnx.MultiHeadAttention(
        heads, inputs, heads * head_dim, outputs, kv_heads, decode=False, rngs=rngs(), **options
    )


def heads(query, kv, dims):
    """Cuts of an attention layer that keeps these heads and head dimensions."""
    cuts = {"out.kernel": (query, dims, None)}
    for name, index in (("query", query), ("key", kv), ("value", kv)):
        cuts |= {f"{name}.kernel": (None, index, dims), f"{name}.bias": (index, dims)}
    return cuts


def run_cell(cell, x):
    carry = cell.initialize_carry(x.shape, rngs())
    return cell(carry, x)[1]


def run_rnn(rnn, x):
    return rnn(x, rngs=rngs())


def call(layer, x):
    return layer(x)


def lstm_cuts(inputs, hidden):
    cuts = {f"{name}.kernel": (inputs, hidden) for name in ("ii", "if_", "ig", "io")}
    for name in ("hi", "hf", "hg", "ho"):
        cuts |= {f"{name}.kernel": (hidden, hidden), f"{name}.bias": (hidden,)}
    return cuts


def fused_cuts(inputs, hidden, size, gates):
    """Cuts of a cell whose gates lie side by side on one axis."""
    out = [gate * size + index for gate in range(gates) for index in hidden]
    return {
        "dense_i.kernel": (inputs, out),
        "dense_h.kernel": (hidden, out),
        **({"dense_h.bias": (out,)} if gates == 4 else {"dense_i.bias": (out,)}),
    }


def vectors(index):
    return dict.fromkeys(("scale", "bias", "mean", "var"), (index,))  # those that the norm has


IMAGE, SEQUENCE = (2, 5, 5), (2, 4)

# name -> (big layer, small layer, cuts by dotted path, input shape of the small layer, how it is run)
CASES = {
    "Conv": (
        lambda: conv(4, 6),
        lambda: conv(3, 2),
        {"kernel": (None, None, [0, 2, 3], [1, 5]), "bias": ([1, 5],)},
        (*IMAGE, 3),
    ),
    "Conv with a mask": (
        lambda: conv(4, 6, mask=jnp.ones((3, 3, 4, 6))),
        lambda: conv(3, 6, mask=jnp.ones((3, 3, 3, 6))),
        dict.fromkeys(("kernel", "mask"), (None, None, [0, 2, 3], None)),
        (*IMAGE, 3),
    ),
    "Conv in groups of fewer channels": (
        lambda: conv(8, 6, feature_group_count=2),
        lambda: conv(6, 4, feature_group_count=2),
        {"kernel": (None, None, [0, 2, 3], [0, 1, 3, 5]), "bias": ([0, 1, 3, 5],)},
        (*IMAGE, 6),
    ),
    "Conv in fewer groups": (
        lambda: conv(6, 6, feature_group_count=3),
        lambda: conv(4, 4, feature_group_count=2),
        {"kernel": (None, None, None, [0, 1, 4, 5]), "bias": ([0, 1, 4, 5],)},
        (*IMAGE, 4),
    ),
    "depthwise Conv": (
        lambda: conv(5, 5, feature_group_count=5),
        lambda: conv(3, 3, feature_group_count=3),
        {"kernel": (None, None, None, [0, 1, 4]), "bias": ([0, 1, 4],)},
        (*IMAGE, 3),
    ),
    "depthwise Conv with a multiplier": (
        lambda: conv(3, 6, feature_group_count=3),
        lambda: conv(2, 4, feature_group_count=2),
        {"kernel": (None, None, None, [0, 1, 4, 5]), "bias": ([0, 1, 4, 5],)},
        (*IMAGE, 2),
    ),
    "1-D Conv": (
        lambda: nnx.Conv(4, 6, 3, use_bias=False, rngs=rngs()),
        lambda: nnx.Conv(4, 2, 3, use_bias=False, rngs=rngs()),
        {"kernel": (None, None, [1, 5])},
        (*SEQUENCE, 4),
    ),
    "subclass of Conv": (
        lambda: ScaledConv(4, 6, (3, 3), rngs=rngs()),
        lambda: ScaledConv(4, 2, (3, 3), rngs=rngs()),
        {"kernel": (None, None, None, [1, 5]), "bias": ([1, 5],)},
        (*IMAGE, 4),
    ),
    "ConvTranspose": (
        lambda: nnx.ConvTranspose(4, 6, (2, 2), strides=2, rngs=rngs()),
        lambda: nnx.ConvTranspose(3, 2, (2, 2), strides=2, rngs=rngs()),
        {"kernel": (None, None, [0, 2, 3], [1, 5]), "bias": ([1, 5],)},
        (*IMAGE, 3),
    ),
    "ConvTranspose with a transposed kernel": (
        lambda: nnx.ConvTranspose(4, 6, (2, 2), transpose_kernel=True, rngs=rngs()),
        lambda: nnx.ConvTranspose(3, 2, (2, 2), transpose_kernel=True, rngs=rngs()),
        {"kernel": (None, None, [1, 5], [0, 2, 3]), "bias": ([1, 5],)},
        (*IMAGE, 3),
    ),
    "Linear": (
        lambda: nnx.Linear(4, 6, rngs=rngs()),
        lambda: nnx.Linear(3, 2, rngs=rngs()),
        {"kernel": ([0, 2, 3], [1, 5]), "bias": ([1, 5],)},
        (2, 3),
    ),
    "stacked Linear": (
        lambda: Stacked(4, 6),
        lambda: Stacked(3, 2),
        {"layer.kernel": (None, [0, 2, 3], [1, 5]), "layer.bias": (None, [1, 5])},
        (2, 3),
    ),
    "tied Linear": (
        lambda: Tied(4, 6),
        lambda: Tied(3, 2),
        {"again.kernel": ([0, 2, 3], [1, 5]), "again.bias": ([1, 5],), "listed.0.kernel": ([1, 5], None)},
        (2, 3),
    ),
    "LinearGeneral": (
        lambda: nnx.LinearGeneral((4, 3), (5, 2), axis=(-2, -1), rngs=rngs()),
        lambda: nnx.LinearGeneral((2, 3), (3, 1), axis=(-2, -1), rngs=rngs()),
        {"kernel": ([0, 2], None, [0, 1, 4], [1]), "bias": ([0, 1, 4], [1])},
        (2, 2, 3),
    ),
    "LinearGeneral with a batch axis": (
        lambda: nnx.LinearGeneral(4, 5, batch_axis={0: 3}, rngs=rngs()),
        lambda: nnx.LinearGeneral(4, 2, batch_axis={0: 2}, rngs=rngs()),
        {"kernel": ([0, 2], None, [1, 4]), "bias": ([0, 2], [1, 4])},
        (2, 5, 4),
    ),
    "Einsum": (
        lambda: nnx.Einsum("nta,hab->nthb", (4, 3, 5), (4, 5), rngs=rngs()),
        lambda: nnx.Einsum("nta,hab->nthb", (2, 3, 3), (2, 3), rngs=rngs()),
        {"kernel": ([0, 3], None, [0, 1, 4]), "bias": ([0, 3], [0, 1, 4])},
        (*SEQUENCE, 3),
    ),
    "Einsum without bias": (
        lambda: nnx.Einsum("na,ab->nb", (3, 5), rngs=rngs()),
        lambda: nnx.Einsum("na,ab->nb", (3, 2), rngs=rngs()),
        {"kernel": (None, [0, 4])},
        (2, 3),
    ),
    "Embed": (
        lambda: nnx.Embed(5, 4, rngs=rngs()),
        lambda: nnx.Embed(5, 2, rngs=rngs()),
        {"embedding": (None, [0, 3])},
        (2,),
        lambda layer, x: layer((x > 0).astype(jnp.int32)),
    ),
    "BatchNorm": (
        lambda: nnx.BatchNorm(5, use_running_average=True, rngs=rngs()),
        lambda: nnx.BatchNorm(2, use_running_average=True, rngs=rngs()),
        vectors([0, 3]),
        (*IMAGE, 2),
    ),
    "BatchNorm without scale and shift": (
        lambda: nnx.BatchNorm(5, use_running_average=True, use_scale=False, use_bias=False, rngs=rngs()),
        lambda: nnx.BatchNorm(2, use_running_average=True, use_scale=False, use_bias=False, rngs=rngs()),
        vectors([0, 3]),
        (*IMAGE, 2),
    ),
    "LayerNorm": (
        lambda: nnx.LayerNorm(5, use_scale=False, rngs=rngs()),
        lambda: nnx.LayerNorm(2, use_scale=False, rngs=rngs()),
        vectors([0, 3]),
        (*SEQUENCE, 2),
    ),
    "RMSNorm": (
        lambda: nnx.RMSNorm(5, rngs=rngs()),
        lambda: nnx.RMSNorm(2, rngs=rngs()),
        vectors([0, 3]),
        (*SEQUENCE, 2),
    ),
    "InstanceNorm": (
        lambda: nnx.InstanceNorm(5, rngs=rngs()),
        lambda: nnx.InstanceNorm(2, rngs=rngs()),
        vectors([0, 3]),
        (*IMAGE, 2),
    ),
    "GroupNorm in smaller groups": (
        lambda: nnx.GroupNorm(6, num_groups=2, rngs=rngs()),
        lambda: nnx.GroupNorm(4, num_groups=2, rngs=rngs()),
        vectors([0, 2, 3, 5]),
        (*IMAGE, 4),
    ),
    "GroupNorm in fewer groups": (
        lambda: nnx.GroupNorm(6, num_groups=3, use_scale=False, rngs=rngs()),
        lambda: nnx.GroupNorm(4, num_groups=2, use_scale=False, rngs=rngs()),
        vectors([0, 1, 4, 5]),
        (*IMAGE, 4),
    ),
    "GroupNorm in one group": (
        lambda: nnx.GroupNorm(6, num_groups=1, rngs=rngs()),
        lambda: nnx.GroupNorm(4, num_groups=1, rngs=rngs()),
        vectors([0, 1, 4, 5]),
        (*IMAGE, 4),
    ),
    "GroupNorm in groups of one": (
        lambda: nnx.GroupNorm(6, num_groups=None, group_size=1, rngs=rngs()),
        lambda: nnx.GroupNorm(4, num_groups=None, group_size=1, rngs=rngs()),
        vectors([0, 1, 4, 5]),
        (*IMAGE, 4),
    ),
    "MultiHeadAttention with fewer heads": (
        lambda: attention(4, 3),
        lambda: attention(2, 3),
        heads([0, 3], [0, 3], None),
        (*SEQUENCE, 6),
    ),
    "MultiHeadAttention with smaller heads": (
        lambda: attention(2, 4, normalize_qk=True),
        lambda: attention(2, 3, normalize_qk=True),
        heads(None, None, [0, 2, 3]) | dict.fromkeys(("query_ln.scale", "key_ln.scale"), ([0, 2, 3],)),
        (*SEQUENCE, 6),
    ),
    "MultiHeadAttention with grouped queries": (
        lambda: attention(4, 3, kv_heads=2),
        lambda: attention(2, 3, kv_heads=1),
        heads([0, 1], [0], None),
        (*SEQUENCE, 6),
    ),
    "MultiHeadAttention between fewer features": (
        lambda: attention(2, 2),
        lambda: attention(2, 2, inputs=4, outputs=3),
        {f"{name}.kernel": ([0, 1, 2, 5], None, None) for name in ("query", "key", "value")}
        | {"out.kernel": (None, None, [0, 2, 4]), "out.bias": ([0, 2, 4],)},
        (*SEQUENCE, 4),
    ),
    "LSTMCell": (
        lambda: nnx.LSTMCell(4, 5, rngs=rngs()),
        lambda: nnx.LSTMCell(3, 2, rngs=rngs()),
        lstm_cuts([0, 1, 3], [0, 4]),
        (2, 3),
        run_cell,
    ),
    "OptimizedLSTMCell": (
        lambda: nnx.OptimizedLSTMCell(4, 5, rngs=rngs()),
        lambda: nnx.OptimizedLSTMCell(3, 2, rngs=rngs()),
        fused_cuts([0, 1, 3], [0, 4], 5, gates=4),
        (2, 3),
        run_cell,
    ),
    "GRUCell": (
        lambda: nnx.GRUCell(4, 5, rngs=rngs()),
        lambda: nnx.GRUCell(3, 2, rngs=rngs()),
        fused_cuts([0, 1, 3], [0, 4], 5, gates=3),
        (2, 3),
        run_cell,
    ),
    "SimpleCell": (
        lambda: nnx.SimpleCell(4, 5, rngs=rngs()),
        lambda: nnx.SimpleCell(3, 2, rngs=rngs()),
        fused_cuts([0, 1, 3], [0, 4], 5, gates=1),
        (2, 3),
        run_cell,
    ),
    "RNN": (
        lambda: nnx.RNN(nnx.SimpleCell(4, 5, rngs=rngs()), rngs=False),
        lambda: nnx.RNN(nnx.SimpleCell(3, 2, rngs=rngs()), rngs=False),
        {f"cell.{name}": cut for name, cut in fused_cuts([0, 1, 3], [0, 4], 5, gates=1).items()},
        (*SEQUENCE, 3),
        run_rnn,
    ),
    "LoRA": (
        lambda: nnx.LoRA(4, 2, 5, rngs=rngs()),
        lambda: nnx.LoRA(3, 2, 2, rngs=rngs()),
        {"lora_a": ([0, 1, 3], None), "lora_b": (None, [0, 4])},
        (2, 3),
    ),
    "LoRALinear": (
        lambda: nnx.LoRALinear(4, 5, lora_rank=3, rngs=rngs()),
        lambda: nnx.LoRALinear(3, 2, lora_rank=1, rngs=rngs()),
        {
            "kernel": ([0, 1, 3], [0, 4]),
            "bias": ([0, 4],),
            "lora.lora_a": ([0, 1, 3], [2]),
            "lora.lora_b": ([2], [0, 4]),
        },
        (2, 3),
    ),
    "WeightNorm": (
        lambda: nnx.WeightNorm(nnx.Linear(4, 5, rngs=rngs()), rngs=rngs()),
        lambda: nnx.WeightNorm(nnx.Linear(3, 2, rngs=rngs()), rngs=rngs()),
        {
            "layer_instance.kernel": ([0, 1, 3], [0, 4]),
            "layer_instance.bias": ([0, 4],),
            "scales.('kernel',)": ([0, 4],),
        },
        (2, 3),
    ),
    "SpectralNorm": (
        lambda: nnx.SpectralNorm(nnx.Linear(4, 5, rngs=rngs()), rngs=rngs()),
        lambda: nnx.SpectralNorm(nnx.Linear(3, 2, rngs=rngs()), rngs=rngs()),
        {
            "layer_instance.kernel": ([0, 1, 3], [0, 4]),
            "layer_instance.bias": ([0, 4],),
            "batch_stats.('kernel', 'u')": (None, [0, 4]),
        },
        (2, 3),
    ),
    "PReLU": (nnx.PReLU, nnx.PReLU, {}, (2, 3)),
}

BLOCKS_KEPT = {
    "Conv in fewer groups": (("kernel",), 3, 3, 2),
    "depthwise Conv with a multiplier": (("kernel",), 3, 3, 2),
    "GroupNorm in fewer groups": (("bias",), 0, 3, 2),
}


def parts(make):
    """Graph and random arrays of a layer whose initialisers are not run."""
    graphdef, state = nnx.split(without_weights(lambda rngs: make()))
    rng = np.random.default_rng(0)
    shapes_found = {path: variable.shape for path, variable in nnx.to_flat_state(state)}
    return graphdef, {
        path: rng.uniform(0.5, 1.5, shape).astype(np.float32) for path, shape in shapes_found.items()
    }


def cut(arrays, cuts):
    unused = {*cuts} - {dotted(path) for path in arrays}
    assert unused <= {"scale", "bias", "mean", "var"}, f"no array is called {unused}"
    smaller = {}
    for path, array in arrays.items():
        for axis, kept in enumerate(cuts.get(dotted(path), ())):
            array = array if kept is None else np.take(array, kept, axis)
        smaller[path] = array
    return smaller


def shapes(arrays):
    return {path: array.shape for path, array in arrays.items()}


@partial(jax.jit, static_argnums=(0, 1))
def forward(run, graphdef, arrays, x):
    return run(merge_model(graphdef, arrays, {}), x)


@pytest.mark.parametrize("name", CASES)
def test_a_cut_and_resized_layer_is_the_smaller_layer(name):
    big, small, cuts, shape, *rest = CASES[name]
    run = rest[0] if rest else call
    graphdef, arrays = parts(big)
    smaller = cut(arrays, cuts)
    expected, fresh = parts(small)
    assert shapes(fresh) == shapes(smaller)
    asked = []

    def blocks_kept(*question):
        asked.append(question)
        return BLOCKS_KEPT[name][-1] if name in BLOCKS_KEPT else None

    copy = merge_model(graphdef, arrays, {})
    resize_layers(copy, shapes(arrays), shapes(smaller), blocks_kept)
    resized = nnx.split(copy)[0]
    if name in BLOCKS_KEPT:
        assert {*asked} == {BLOCKS_KEPT[name][:3]}
    if name != "WeightNorm":  # holds a filter that is compared by identity
        assert resized == expected
    x = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    actual, wanted = (forward(run, graph, smaller, x) for graph in (resized, expected))
    np.testing.assert_allclose(actual, wanted, rtol=1e-6)


def test_every_layer_of_flax_with_arrays_has_a_case():
    layers = {
        name
        for name, layer in vars(nnx).items()
        if isinstance(layer, type)
        and issubclass(layer, nnx.Module)
        and layer.__module__.startswith("flax.nnx.nn.")
    }
    without_sizes = {"Dropout", "Bidirectional", "RNNCellBase"}
    assert layers - without_sizes == {
        name for name in layers if any(name == word for case in CASES for word in case.split())
    }


@pytest.mark.parametrize("name", CASES)
def test_a_layer_without_weights_has_the_state_of_one_with_weights(name):
    full, empty = (
        nnx.split(layer) for layer in (CASES[name][0](), without_weights(lambda rngs: CASES[name][0]()))
    )
    assert [(path, value.shape, value.dtype) for path, value in nnx.to_flat_state(full[1])] == [
        (path, value.shape, value.dtype) for path, value in nnx.to_flat_state(empty[1])
    ]
    if name != "WeightNorm":  # holds a filter that is compared by identity
        assert full[0] == empty[0]


def test_a_layer_whose_arrays_stay_is_not_touched():
    layer = nnx.eval_shape(lambda: conv(4, 6, feature_group_count=2))
    layer.in_features = "as the user left it"
    known = shapes(dict(nnx.to_flat_state(nnx.state(layer))))
    resize_layers(layer, known, known, lambda *question: None)
    assert layer.in_features == "as the user left it"


def test_blocks_of_another_length_that_add_up_to_the_old_one_are_seen():
    layer = nnx.eval_shape(lambda: nnx.GroupNorm(6, num_groups=2, rngs=rngs()))
    known = shapes(dict(nnx.to_flat_state(nnx.state(layer))))
    resize_layers(layer, known, known, lambda *question: 3)
    assert (layer.num_groups, layer.group_size) == (3, 2)


def test_attributes_that_a_subclass_lacks_are_not_added():
    layer = nnx.eval_shape(lambda: nnx.Linear(4, 6, rngs=rngs()))
    del layer.out_features
    resize_layers(layer, {("kernel",): (4, 6)}, {("kernel",): (3, 6)}, lambda *question: None)
    assert layer.in_features == 3 and not hasattr(layer, "out_features")

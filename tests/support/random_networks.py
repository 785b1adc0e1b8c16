"""Random networks from a seed: a spec as plain data (random_specs.py), and the Flax model that it describes.

The models read widths from the shapes of arrays and store none. Like users' code, they do store into how many pieces
they split, shuffle or attend (`parts`, `groups`, `heads` or `head_dim`), and the widths of constant paddings.
`reference` (in random_reference.py) evaluates the same spec without Flax and without jaxprune.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from random_reference import complete_masks, reference
from random_specs import Node, Spec, describe, random_spec

__all__ = ["Node", "Spec", "build", "complete_masks", "describe", "inputs_of", "random_spec", "reference"]


def inputs_of(spec: Spec, count: int = 2) -> np.ndarray:
    """Returns random inputs of the network."""
    return np.random.default_rng(1).normal(size=(count, *spec.input_shape)).astype(np.float32)


def build(spec: Spec, rngs: nnx.Rngs) -> nnx.Module:
    """Builds the model; no parameter has a special value such as a zero bias or a unit scale."""
    graphdef, state = nnx.split(nnx.eval_shape(lambda: Net(spec)))
    rng = np.random.default_rng(np.asarray(jax.random.key_data(rngs.params())).tolist())
    arrays = {
        path: jax.device_put(_random(rng, path[-1], leaf.shape)) for path, leaf in nnx.to_flat_state(state)
    }
    return nnx.merge(graphdef, nnx.from_flat_state(list(arrays.items())))


def _random(rng: np.random.Generator, name: str, shape: tuple[int, ...]) -> np.ndarray:
    if name in ("scale", "var"):
        array = rng.uniform(0.5, 1.5, shape)
    elif name == "kernel":
        array = rng.normal(size=shape) / np.sqrt(np.prod(shape[:-1]))
    else:
        array = 0.3 * rng.normal(size=shape)
    return array.astype(np.float32)


class Net(nnx.Module):
    def __init__(self, spec: Spec):
        self.spec = spec
        for number, node in enumerate(spec.nodes, start=1):
            if node.op in LAYERS and not node.layer:
                setattr(self, f"layer{number}", LAYERS[node.op](node))

    def __call__(self, x):
        values = [x]
        for number, node in enumerate(self.spec.nodes, start=1):
            inputs = [values[index] for index in node.inputs]
            if node.op in LAYERS:
                values.append(getattr(self, f"layer{node.layer or number}")(*inputs))
            else:
                values.append(FUNCTIONS[node.op](node, *inputs))
        return values[-1]


class SqueezeExcite(nnx.Module):
    def __init__(self, node: Node):
        self.down = nnx.Linear(node.fan_in, node.hidden, rngs=nnx.Rngs(0))
        self.up = nnx.Linear(node.hidden, node.width, rngs=nnx.Rngs(0))

    def __call__(self, x):
        axes = tuple(range(1, x.ndim - 1))
        return x * nnx.sigmoid(self.up(nnx.relu(self.down(x.mean(axes, keepdims=True)))))


class Attention(nnx.Module):
    """Self-attention that stores how many heads there are, or how wide they are."""

    def __init__(self, node: Node):
        inner = node.heads * node.head_dim
        make = {"use_bias": node.bias, "rngs": nnx.Rngs(0)}
        if node.style == "separate":
            self.query = nnx.Linear(node.fan_in, inner, **make)
            self.key = nnx.Linear(node.fan_in, inner, **make)
            self.value = nnx.Linear(node.fan_in, inner, **make)
        else:
            self.qkv = nnx.Linear(node.fan_in, 3 * inner, **make)
        self.out = nnx.Linear(inner, node.width, **make)
        self.style = node.style
        self.split = (node.heads, -1) if node.stores == "heads" else (-1, node.head_dim)

    def __call__(self, x):
        count, length, _ = x.shape
        if self.style == "separate":
            projections = self.query(x), self.key(x), self.value(x)
        elif self.style == "fused_split":
            projections = jnp.split(self.qkv(x), 3, axis=-1)
        else:
            stacked = self.qkv(x).reshape(count, length, 3, *self.split)
            projections = (stacked[:, :, number] for number in range(3))
        query, key, value = (part.reshape(count, length, *self.split) for part in projections)
        logits = jnp.einsum("nqhd,nkhd->nhqk", query, key) / np.sqrt(query.shape[-1])
        mixed = jnp.einsum("nhqk,nkhd->nqhd", jax.nn.softmax(logits), value)
        return self.out(mixed.reshape(count, length, -1))


def _conv(node: Node) -> nnx.Module:
    return nnx.Conv(
        node.fan_in,
        node.width,
        (node.kernel, node.kernel),
        node.stride,
        feature_group_count=node.groups,
        use_bias=node.bias,
        rngs=nnx.Rngs(0),
    )


def _attention(node: Node) -> nnx.Module:
    if node.style != "flax":
        return Attention(node)
    inner = node.heads * node.head_dim
    return nnx.MultiHeadAttention(
        node.heads,
        node.fan_in,
        inner,
        node.width,
        use_bias=node.bias,
        decode=False,
        rngs=nnx.Rngs(0),
    )


def _norm_options(node: Node) -> dict:
    return {"epsilon": node.epsilon, "use_fast_variance": False, "rngs": nnx.Rngs(0)}


LAYERS: dict[str, Callable[[Node], nnx.Module]] = {
    "conv": _conv,
    "dense": lambda node: nnx.Linear(node.fan_in, node.width, use_bias=node.bias, rngs=nnx.Rngs(0)),
    "batch_norm": lambda node: nnx.BatchNorm(
        node.width, use_running_average=True, epsilon=node.epsilon, rngs=nnx.Rngs(0)
    ),
    "layer_norm": lambda node: nnx.LayerNorm(node.width, **_norm_options(node)),
    "rms_norm": lambda node: nnx.RMSNorm(node.width, **_norm_options(node)),
    "group_norm": lambda node: nnx.GroupNorm(node.width, node.groups, **_norm_options(node)),
    "squeeze_excite": SqueezeExcite,
    "attention": _attention,
}


def _flatten(node, x):
    if node.style == "channels_first":
        x = jnp.moveaxis(x, -1, 1)
    return x.reshape(x.shape[0], -1)


def _shuffle(node, x):
    pieces = x.reshape(*x.shape[:-1], node.groups, x.shape[-1] // node.groups)
    return jnp.swapaxes(pieces, -1, -2).reshape(x.shape)


def _pad(node, x):
    return jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(node.low, node.high)])


def _pad_to(node, x, wide):
    return jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, wide.shape[-1] - x.shape[-1])])


FUNCTIONS: dict[str, Callable[..., jax.Array]] = {
    "relu": lambda node, x: nnx.relu(x),
    "silu": lambda node, x: nnx.silu(x),
    "gate": lambda node, x, y: x * nnx.sigmoid(y),
    "add": lambda node, x, y: x + y,
    "concat": lambda node, *values: jnp.concatenate(values, -1),
    "part": lambda node, x: jnp.split(x, node.parts, axis=-1)[node.part],
    "max_pool": lambda node, x: nnx.max_pool(x, (2, 2), (2, 2)),
    "avg_pool": lambda node, x: nnx.avg_pool(x, (2, 2), (2, 2)),
    "mean": lambda node, x: x.mean(tuple(range(1, x.ndim - 1))),
    "flatten": _flatten,
    "tokens": lambda node, x: x.reshape(x.shape[0], -1, x.shape[-1]),
    "shuffle": _shuffle,
    "pad": _pad,
    "pad_to": _pad_to,
    "transposed_relu": lambda node, x: jnp.moveaxis(nnx.relu(jnp.moveaxis(x, -1, 1)), 1, -1),
    "channel_gate": lambda node, x: x * nnx.sigmoid(x.mean(-1, keepdims=True)),
    "channel_softmax": lambda node, x: jax.nn.softmax(x, axis=-1),
}

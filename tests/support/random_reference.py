"""Computes what the slim version of a random network must compute, from its spec: in NumPy and float64, without Flax.

Everything is evaluated at full size. Each value has a mask of its living channels; the others are 0, and statistics,
softmax and scales count living channels only. Masks of the output axes of layers are taken as given. Masks of their
inputs and of norms must follow from these; otherwise there is no such smaller network, and an AssertionError says so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

Path = tuple[str | int, ...]
Alive = Mapping[Path, tuple[np.ndarray | None, ...]]


class Activations(NamedTuple):
    """An intermediate value with channels last, and the mask of its living channels."""

    array: np.ndarray
    alive: np.ndarray


def reference(spec, arrays: Mapping[Path, np.ndarray], alive: Alive, images: np.ndarray) -> np.ndarray:
    """Computes the logits of the smaller network.

    Args:
      spec: a `random_networks.Spec`.
      arrays: path -> array at full size, as `build` names them.
      alive: path -> for each axis the mask of indices that stay; None, or a path left out, keeps all.
      images: inputs of the network.

    Raises:
      AssertionError: if the masks contradict each other; the message names the node and the array.
    """
    return _evaluate(_Cut(arrays, alive), spec, images)


def complete_masks(spec, arrays: Mapping[Path, np.ndarray], alive: Alive) -> Alive:
    """Derives the masks of all axes of all arrays from those of the output axes.

    Args:
      spec: a `random_networks.Spec`.
      arrays: path -> array at full size.
      alive: path -> for each axis its mask, or None for a mask to be derived.

    Raises:
      AssertionError: if the masks contradict each other.
    """
    cut = _Cut(arrays, alive, derived={})
    _evaluate(cut, spec, np.ones((1, *spec.input_shape)))
    return {
        path: tuple(cut.derived.get((path, axis), cut.mask(path, axis)) for axis in range(array.ndim))
        for path, array in arrays.items()
    }


def _evaluate(cut: _Cut, spec, images: np.ndarray) -> np.ndarray:
    values = [Activations(np.asarray(images, np.float64), np.ones(images.shape[-1], bool))]
    for number, node in enumerate(spec.nodes, start=1):
        cut.where = f"node {number} ({node.op})"
        cut.layer = f"layer{node.layer or number}"
        result = OPS[node.op](cut, node, *(values[index] for index in node.inputs))
        cut.demand(result.alive.any(), "no channel lives")
        values.append(Activations(np.where(result.alive, result.array, 0.0), result.alive))
    cut.demand(values[-1].alive.all(), "outputs of the network are never cut")
    return values[-1].array


class _Cut:
    """Arrays and masks of one network, as its layers read them one after another."""

    def __init__(self, arrays: Mapping[Path, np.ndarray], alive: Alive, derived: dict | None = None) -> None:
        self.arrays = {path: np.asarray(array, np.float64) for path, array in arrays.items()}
        self.masks, self.derived = alive, derived
        self.where = self.layer = ""

    def path(self, name: str) -> Path:
        return (self.layer, *name.split("."))

    def has(self, name: str) -> bool:
        return self.path(name) in self.arrays

    def array(self, name: str) -> np.ndarray:
        return self.arrays[self.path(name)]

    def mask(self, path: Path, axis: int) -> np.ndarray:
        mask = self.masks[path][axis] if path in self.masks else None
        return np.ones(self.arrays[path].shape[axis], bool) if mask is None else np.asarray(mask, bool)

    def given(self, name: str, axis: int) -> np.ndarray:
        return self.mask(self.path(name), axis)

    def check(self, name: str, axis: int, expected: np.ndarray) -> None:
        path = self.path(name)
        mask = self.mask(path, axis)
        if self.derived is not None and (path not in self.masks or self.masks[path][axis] is None):
            mask = self.derived.setdefault((path, axis), expected)  # a layer used twice derives it twice
        assert np.array_equal(mask, expected), (
            f"{self.where}: {'.'.join(map(str, path))} axis {axis} keeps {np.flatnonzero(mask)}, "
            f"but {np.flatnonzero(expected)} follows from what makes its channels"
        )

    def demand(self, holds: object, what: str) -> None:
        assert bool(holds), f"{self.where}: {what}"

    def linear(self, name: str, x: Activations) -> Activations:
        kernel, bias = f"{name}kernel", f"{name}bias"
        out = self.given(kernel, 1)
        self.check(kernel, 0, x.alive)
        y = x.array @ self.array(kernel)
        if self.has(bias):
            self.check(bias, 0, out)
            y = y + self.array(bias)
        return Activations(np.where(out, y, 0.0), out)

    def affine(self, y: np.ndarray, alive: np.ndarray) -> Activations:
        for name in ("scale", "bias"):
            if self.has(name):
                self.check(name, 0, alive)
        bias = self.array("bias") if self.has("bias") else 0.0
        return Activations(y * self.array("scale") + bias, alive)


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def _softmax(x: np.ndarray, alive: np.ndarray | None = None) -> np.ndarray:
    weights = np.exp(x - x.max(-1, keepdims=True)) * (1.0 if alive is None else alive)
    return weights / weights.sum(-1, keepdims=True)


def _same(cut: _Cut, x: Activations, y: Activations) -> np.ndarray:
    cut.demand(
        np.array_equal(x.alive, y.alive),
        f"channels {np.flatnonzero(x.alive)} meet channels {np.flatnonzero(y.alive)}",
    )
    return x.alive


def _blocks(cut: _Cut, alive: np.ndarray, count: int) -> np.ndarray:
    """Returns the masks of equal blocks, [count, size]; all with living channels need to have equally many."""
    blocks = alive.reshape(count, -1)
    sizes = blocks.sum(1)
    cut.demand(alive.any(), "no channel lives")
    cut.demand(len({*sizes[sizes > 0].tolist()}) == 1, f"blocks keep {sizes} channels, not equally many")
    return blocks


def _conv(cut: _Cut, node, x: Activations) -> Activations:
    kernel = cut.array("kernel")
    out = cut.given("kernel", 3)
    sources, made = x.alive.reshape(node.groups, -1), _blocks(cut, out, node.groups)
    living = made.any(1)
    cut.demand(np.array_equal(living, sources.any(1)), f"groups {living} read from groups {sources.any(1)}")
    inner = sources[living][0]
    cut.demand((sources[living] == inner).all(), "groups of one kernel read different channels")
    cut.check("kernel", 2, inner)
    y = _grouped_sum(x.array, kernel, node.stride, node.groups)
    if cut.has("bias"):
        cut.check("bias", 0, out)
        y = y + cut.array("bias")
    return Activations(y, out)


def _grouped_sum(x: np.ndarray, kernel: np.ndarray, stride: int, groups: int) -> np.ndarray:
    """Convolves, with zeros around the image such that its size stays the same or is divided by the stride."""
    count, height, width, channels = x.shape
    size = kernel.shape[0]
    tall, wide = -(-height // stride), -(-width // stride)
    pads = []
    for length, result in ((height, tall), (width, wide)):
        total = max((result - 1) * stride + size - length, 0)
        pads.append((total // 2, total - total // 2))
    x = np.pad(x, [(0, 0), *pads, (0, 0)])
    kernel = kernel.reshape(size, size, channels // groups, groups, -1)
    y = np.zeros((count, tall, wide, groups, kernel.shape[-1]))
    for row in range(size):
        for column in range(size):
            window = x[:, row : row + stride * tall : stride, column : column + stride * wide : stride]
            window = window[:, :tall, :wide].reshape(count, tall, wide, groups, -1)
            y += np.einsum("nhwgi,igo->nhwgo", window, kernel[row, column])
    return y.reshape(count, tall, wide, -1)


def _batch_norm(cut: _Cut, node, x: Activations) -> Activations:
    for name in ("mean", "var"):
        cut.check(name, 0, x.alive)
    return cut.affine((x.array - cut.array("mean")) / np.sqrt(cut.array("var") + node.epsilon), x.alive)


def _layer_norm(cut: _Cut, node, x: Activations) -> Activations:
    mean = x.array[..., x.alive].mean(-1, keepdims=True)
    var = x.array[..., x.alive].var(-1, keepdims=True)
    return cut.affine((x.array - mean) / np.sqrt(var + node.epsilon), x.alive)


def _rms_norm(cut: _Cut, node, x: Activations) -> Activations:
    square = (x.array[..., x.alive] ** 2).mean(-1, keepdims=True)
    return cut.affine(x.array / np.sqrt(square + node.epsilon), x.alive)


def _group_norm(cut: _Cut, node, x: Activations) -> Activations:
    blocks = _blocks(cut, x.alive, node.groups)
    y = np.zeros_like(x.array)
    size = x.array.shape[-1] // node.groups
    for number, block in enumerate(blocks):
        if block.any():
            part = x.array[..., number * size : (number + 1) * size]
            living = part[..., block]
            axes = tuple(range(1, living.ndim))
            mean, var = living.mean(axes, keepdims=True), living.var(axes, keepdims=True)
            y[..., number * size : (number + 1) * size] = (part - mean) / np.sqrt(var + node.epsilon)
    return cut.affine(y, x.alive)


def _squeeze_excite(cut: _Cut, node, x: Activations) -> Activations:
    squeezed = x._replace(array=x.array.mean(tuple(range(1, x.array.ndim - 1)), keepdims=True))
    down = cut.linear("down.", squeezed)
    up = cut.linear("up.", down._replace(array=np.maximum(down.array, 0)))
    return Activations(x.array * _sigmoid(up.array), _same(cut, x, up))


def _attention(cut: _Cut, node, x: Activations) -> Activations:
    """Attends over [N, T, H, D]; which heads and dimensions live follows from the kernels that make them."""
    if node.style == "flax":
        query, key, value = (_project_heads(cut, name, x) for name in ("query", "key", "value"))
    else:
        if node.style == "separate":
            projections = [cut.linear(f"{name}.", x) for name in ("query", "key", "value")]
        else:
            whole = cut.linear("qkv.", x)
            arrays, masks = np.split(whole.array, 3, -1), _blocks(cut, whole.alive, 3)
            cut.demand(masks.any(1).all(), "query, key or value is gone")
            projections = [Activations(array, mask) for array, mask in zip(arrays, masks, strict=True)]
        query, key, value = (_split_heads(cut, node, part) for part in projections)
    cut.demand(np.array_equal(query.alive, key.alive), "queries and keys keep different dimensions")
    heads = query.alive.any(1)
    cut.demand(np.array_equal(heads, value.alive.any(1)), "queries and values keep different heads")
    dims = query.alive[heads].sum(1)
    cut.demand((dims == dims[0]).all(), f"heads keep {dims} dimensions, not equally many")
    logits = np.einsum("nqhd,nkhd->nhqk", query.array, key.array) / np.sqrt(dims[0])
    mixed = np.einsum("nhqk,nkhd->nqhd", _softmax(logits), value.array)
    if node.style != "flax":
        return cut.linear("out.", Activations(mixed.reshape(*mixed.shape[:2], -1), value.alive.reshape(-1)))
    cut.check("out.kernel", 0, heads)
    cut.check("out.kernel", 1, value.alive[heads][0])
    out = cut.given("out.kernel", 2)
    y = np.einsum("nqhd,hdo->nqo", mixed, cut.array("out.kernel"))
    if cut.has("out.bias"):
        cut.check("out.bias", 0, out)
        y = y + cut.array("out.bias")
    return Activations(y, out)


def _split_heads(cut: _Cut, node, part: Activations) -> Activations:
    alive = _blocks(cut, part.alive, node.heads)
    if node.stores == "heads":
        cut.demand(alive.any(1).all(), "a head is gone, but the code counts on the number of heads")
    else:
        cut.demand(
            (alive.all(1) == alive.any(1)).all(), "a head is narrower, but the code counts on its size"
        )
    return Activations(part.array.reshape(*part.array.shape[:2], node.heads, node.head_dim), alive)


def _project_heads(cut: _Cut, name: str, x: Activations) -> Activations:
    """Projects with a kernel [C, H, D], which has axes for heads and dimensions."""
    kernel, bias = f"{name}.kernel", f"{name}.bias"
    cut.check(kernel, 0, x.alive)
    heads, dims = cut.given(kernel, 1), cut.given(kernel, 2)
    y = np.einsum("ntc,chd->nthd", x.array, cut.array(kernel))
    if cut.has(bias):
        cut.check(bias, 0, heads)
        cut.check(bias, 1, dims)
        y = y + cut.array(bias)
    alive = heads[:, None] & dims
    return Activations(np.where(alive, y, 0.0), alive)


def _part(cut: _Cut, node, x: Activations) -> Activations:
    alive = _blocks(cut, x.alive, node.parts)
    cut.demand(alive.any(1).all(), "a part is gone, but the code splits into as many as before")
    return Activations(np.split(x.array, node.parts, -1)[node.part], alive[node.part])


def _shuffle(cut: _Cut, node, x: Activations) -> Activations:
    alive = x.alive.reshape(node.groups, -1)
    cut.demand((alive == alive[0]).all(), "a shuffle needs the same channels in each of its groups")
    pieces = x.array.reshape(*x.array.shape[:-1], *alive.shape)
    return Activations(np.swapaxes(pieces, -1, -2).reshape(x.array.shape), alive.T.reshape(-1))


def _pad(cut: _Cut, node, x: Activations) -> Activations:
    pads = [(0, 0)] * (x.array.ndim - 1) + [(node.low, node.high)]
    return Activations(np.pad(x.array, pads), np.pad(x.alive, pads[-1], constant_values=True))


def _pad_to(cut: _Cut, node, x: Activations, wide: Activations) -> Activations:
    """Adds zeros after the channels, up to the width of the other value, also in the smaller network."""
    width = x.array.shape[-1]
    pads = [(0, 0)] * (x.array.ndim - 1) + [(0, wide.array.shape[-1] - width)]
    return Activations(np.pad(x.array, pads), np.concatenate([x.alive, wide.alive[width:]]))


def _flatten(cut: _Cut, node, x: Activations) -> Activations:
    alive = np.broadcast_to(x.alive, x.array.shape[1:])
    array = x.array
    if node.style == "channels_first":
        array, alive = np.moveaxis(array, -1, 1), np.moveaxis(alive, -1, 0)
    return Activations(array.reshape(len(array), -1), alive.reshape(-1))


def _pool(reduce: Callable) -> Callable:
    def pool(cut: _Cut, node, x: Activations) -> Activations:
        count, height, width, channels = x.array.shape
        windows = x.array.reshape(count, height // 2, 2, width // 2, 2, channels)
        return x._replace(array=reduce(windows, (2, 4)))

    return pool


def _channel_gate(cut: _Cut, node, x: Activations) -> Activations:
    return x._replace(array=x.array * _sigmoid(x.array[..., x.alive].mean(-1, keepdims=True)))


def _relu(cut: _Cut, node, x: Activations) -> Activations:
    return x._replace(array=np.maximum(x.array, 0))


OPS: dict[str, Callable[..., Activations]] = {
    "conv": _conv,
    "dense": lambda cut, node, x: cut.linear("", x),
    "batch_norm": _batch_norm,
    "layer_norm": _layer_norm,
    "rms_norm": _rms_norm,
    "group_norm": _group_norm,
    "squeeze_excite": _squeeze_excite,
    "attention": _attention,
    "relu": _relu,
    "transposed_relu": _relu,
    "silu": lambda cut, node, x: x._replace(array=x.array * _sigmoid(x.array)),
    "gate": lambda cut, node, x, y: Activations(x.array * _sigmoid(y.array), _same(cut, x, y)),
    "add": lambda cut, node, x, y: Activations(x.array + y.array, _same(cut, x, y)),
    "concat": lambda cut, node, *values: Activations(
        np.concatenate([value.array for value in values], -1),
        np.concatenate([value.alive for value in values]),
    ),
    "part": _part,
    "max_pool": _pool(np.max),
    "avg_pool": _pool(np.mean),
    "mean": lambda cut, node, x: x._replace(array=x.array.mean(tuple(range(1, x.array.ndim - 1)))),
    "flatten": _flatten,
    "tokens": lambda cut, node, x: x._replace(array=x.array.reshape(len(x.array), -1, x.array.shape[-1])),
    "shuffle": _shuffle,
    "pad": _pad,
    "pad_to": _pad_to,
    "channel_gate": _channel_gate,
    "channel_softmax": lambda cut, node, x: x._replace(array=_softmax(x.array, x.alive)),
}

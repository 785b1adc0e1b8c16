"""Random networks as plain data, drawn from a seed; random_networks.py builds the model that a spec describes."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

CLASSES = 3


@dataclass(frozen=True)
class Node:
    """A layer or a function. Value 0 is the network's input; `nodes[i]` makes value i + 1."""

    op: str
    inputs: tuple[int, ...]
    width: int  # channels of the result
    fan_in: int = 0  # channels of the first input
    kernel: int = 1
    stride: int = 1
    groups: int = 1  # of a convolution, a GroupNorm, a shuffle
    bias: bool = True
    heads: int = 0
    head_dim: int = 0
    style: str = ""  # of attention: fused_reshape, fused_split, separate, flax; of flatten: channels_first
    stores: str = ""  # what attention splits by: heads, head_dim
    hidden: int = 0  # of a squeeze-excite block
    parts: int = 1
    part: int = 0
    low: int = 0  # of a padding
    high: int = 0
    epsilon: float = 0.01  # of norms: large enough that two nearly equal channels do not magnify rounding
    layer: int = 0  # the value whose layer is used here again; 0 for a layer of its own


@dataclass(frozen=True)
class Spec:
    """A network on images [N, 8, 8, C] or sequences [N, 5, C]; the last node makes the logits."""

    input_shape: tuple[int, ...]
    nodes: tuple[Node, ...]


def describe(spec: Spec) -> str:
    """Returns one line for each node, for error messages."""
    lines = [f"0: input {spec.input_shape}"]
    for number, node in enumerate(spec.nodes, start=1):
        options = [
            f"{field.name}={value}"
            for field in fields(Node)[2:]
            if (value := getattr(node, field.name)) != field.default
        ]
        lines.append(f"{number}: {node.op}({', '.join(map(str, node.inputs))}) {' '.join(options)}")
    return "\n".join(lines)


def random_spec(seed: int) -> Spec:
    """Draws a network of 4 to 14 nodes, the same for the same seed."""
    for attempt in range(1000):
        spec = _Draft(np.random.default_rng((seed, attempt))).finish()
        if 4 <= len(spec.nodes) <= 14:
            return spec
    raise RuntimeError(f"seed {seed} draws no network of 4 to 14 nodes")


class _Draft:
    """A network that grows node by node from its input, with the shape of every value."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        is_image = rng.random() < 0.7
        self.input_shape = (8, 8, self.between(1, 4)) if is_image else (5, self.between(3, 6))
        self.shapes = [self.input_shape]
        self.nodes: list[Node] = []
        self.project(0)

    def between(self, low: int, high: int) -> int:
        return int(self.rng.integers(low, high + 1))

    def is_likely(self, probability: float) -> bool:
        return bool(self.rng.random() < probability)

    def width(self, multiple: int = 1) -> int:
        return multiple * self.between(max(1, 3 // multiple), 9 // multiple)

    def add(self, op: str, *inputs: int, shape: tuple[int, ...] | None = None, **options) -> int:
        input_shape = self.shapes[inputs[0]]
        shape = input_shape if shape is None else shape
        self.nodes.append(Node(op, inputs, shape[-1], input_shape[-1], **options))
        self.shapes.append(shape)
        return len(self.shapes) - 1

    def partner(self, value: int, same_width: bool) -> int:
        """Draws a value, maybe this one, that can be added to it or, if widths may differ, joined with it."""
        end = None if same_width else -1
        alike = [
            other
            for other, shape in enumerate(self.shapes)
            if len(shape) == len(self.shapes[value]) and shape[:end] == self.shapes[value][:end]
        ]
        return int(self.rng.choice(alike))

    def project(self, value: int, width: int | None = None, stride: int = 1) -> int:
        """Adds a convolution or a dense layer to a new width."""
        shape = self.shapes[value]
        width = width or self.width()
        bias = self.is_likely(0.7)
        if len(shape) < 3:
            return self.add("dense", value, shape=(*shape[:-1], width), bias=bias)
        spatial = tuple(-(-size // stride) for size in shape[:-1])
        kernel = 3 if self.is_likely(0.6) else 1
        return self.add("conv", value, shape=(*spatial, width), kernel=kernel, stride=stride, bias=bias)

    def norm(self, value: int) -> int:
        shape = self.shapes[value]
        ops = ["batch_norm", "layer_norm", "rms_norm"] + ["group_norm"] * (len(shape) > 1)
        op = str(self.rng.choice(ops))
        return self.add(op, value, groups=self.divisor(shape[-1]) if op == "group_norm" else 1)

    def divisor(self, width: int) -> int:
        return int(self.rng.choice([size for size in range(1, width + 1) if width % size == 0]))

    def elementwise(self, value: int) -> int:
        ops = ["relu", "silu", "channel_gate"]
        shape = self.shapes[value]
        ops += ["transposed_relu"] if len(shape) == 3 else ["channel_softmax"]
        return self.add(str(self.rng.choice(ops, p=[0.5, 0.2, 0.15, 0.15])), value)

    def grouped(self, value: int) -> int:
        """Adds a grouped or depthwise convolution, after a convolution that makes its input's width fit."""
        groups = self.between(2, 4)
        value = self.project(value, self.width(groups))
        shape = self.shapes[value]
        depthwise = self.is_likely(0.5)
        groups = shape[-1] if depthwise else groups
        width = shape[-1] * self.between(1, 2) if depthwise else self.width(groups)
        return self.add("conv", value, shape=(*shape[:-1], width), kernel=3, groups=groups)

    def residual(self, value: int) -> int:
        inner = self.project(value)
        inner = self.elementwise(self.norm(inner) if self.is_likely(0.3) else inner)
        return self.add("add", self.project(inner, self.shapes[value][-1]), value)

    def joined(self, value: int) -> int:
        other = self.partner(value, same_width=False)
        shape = self.shapes[value]
        return self.add("concat", value, other, shape=(*shape[:-1], shape[-1] + self.shapes[other][-1]))

    def gated(self, value: int) -> int:
        other = self.partner(value, same_width=True)
        return self.add("gate" if self.is_likely(0.5) else "add", value, other)

    def pieces(self, value: int) -> int:
        """Splits a value into equal parts, changes one of them, and joins, adds or gates them."""
        parts = self.between(2, 3)
        if self.shapes[value][-1] % parts:
            value = self.project(value, self.width(parts))
        shape = self.shapes[value]
        size = shape[-1] // parts
        split = [
            self.add("part", value, shape=(*shape[:-1], size), parts=parts, part=part)
            for part in range(parts)
        ]
        if self.is_likely(0.5):
            split[0] = self.project(split[0], size) if self.is_likely(0.5) else self.elementwise(split[0])
        choice = self.between(0, 2)
        if choice == 0:
            order = [split[index] for index in self.rng.permutation(parts)]
            return self.add("concat", *order, shape=shape)
        joined = self.add(("add", "gate")[choice - 1], split[0], split[1])
        return joined if parts == 2 else self.add("add", joined, split[2])

    def shuffled(self, value: int) -> int:
        groups = self.between(2, 3)
        if self.shapes[value][-1] % groups:
            value = self.project(value, self.width(groups))
        return self.add("shuffle", value, groups=groups)

    def padded(self, value: int) -> int:
        """Pads channels with zeros, which are added to a wider branch or read by the next layer."""
        shape = self.shapes[value]
        low, high = self.between(0, 2), self.between(1, 3)
        width = shape[-1] + low + high
        if self.is_likely(0.4):
            wide = self.project(value, width)
            return self.add("add", wide, self.add("pad_to", value, wide, shape=(*shape[:-1], width)))
        padded = self.add("pad", value, shape=(*shape[:-1], width), low=low, high=high)
        return self.add("add", self.project(value, width), padded) if self.is_likely(0.6) else padded

    def excited(self, value: int) -> int:
        return self.add("squeeze_excite", value, hidden=self.between(2, 4))

    def pooled(self, value: int) -> int:
        height, width, channels = self.shapes[value]
        if height % 2:
            return self.project(value)
        if self.is_likely(0.3):
            return self.project(value, stride=2)
        op = "max_pool" if self.is_likely(0.5) else "avg_pool"
        return self.add(op, value, shape=(height // 2, width // 2, channels))

    def repeated(self, value: int) -> int:
        """Uses a layer again, if one fits."""
        fitting = [
            (number, node)
            for number, node in enumerate(self.nodes, start=1)
            if node.op in ("conv", "dense")
            and not node.layer
            and node.fan_in == self.shapes[value][-1]
            and (node.op == "conv") == (len(self.shapes[value]) == 3)
            and node.stride == 1
        ]
        if not fitting:
            return self.project(value)
        number, node = fitting[self.between(0, len(fitting) - 1)]
        shape = (*self.shapes[value][:-1], node.width)
        options = {"kernel": node.kernel, "groups": node.groups, "bias": node.bias, "layer": number}
        return self.add(node.op, value, shape=shape, **options)

    def attended(self, value: int) -> int:
        """Adds attention, in half of the cases within a residual connection."""
        if len(self.shapes[value]) == 3:
            height, width, channels = self.shapes[value]
            value = self.add("tokens", value, shape=(height * width, channels))
        length, channels = self.shapes[value]
        is_residual = self.is_likely(0.5)
        width = channels if is_residual else self.width()
        style = str(self.rng.choice(["fused_reshape", "fused_split", "separate", "flax"]))
        result = self.add(
            "attention",
            value,
            shape=(length, width),
            heads=self.between(1, 3),
            head_dim=self.between(2, 4),
            style=style,
            stores="" if style == "flax" else str(self.rng.choice(["heads", "head_dim"])),
            bias=self.is_likely(0.7),
        )
        return self.add("add", result, value) if is_residual else result

    def vector(self, value: int) -> int:
        shape = self.shapes[value]
        if len(shape) == 1:
            return value
        if self.is_likely(0.5):
            return self.add("mean", value, shape=shape[-1:])
        style = "channels_first" if self.is_likely(0.3) else ""
        return self.add("flatten", value, shape=(int(np.prod(shape)),), style=style)

    def grow(self, value: int) -> int:
        always = [
            self.project,
            self.norm,
            self.norm,
            self.norm,
            self.elementwise,
            self.residual,
            self.joined,
            self.gated,
        ]
        always += [self.pieces, self.shuffled, self.padded, self.repeated]
        choices = (
            always
            + {
                3: [self.grouped, self.grouped, self.excited, self.pooled, self.attended],
                2: [self.attended, self.attended, self.excited],
                1: [],
            }[len(self.shapes[value])]
        )
        if self.is_likely(0.04):
            return self.vector(value)
        return choices[self.between(0, len(choices) - 1)](value)

    def finish(self) -> Spec:
        value = len(self.shapes) - 1
        size = self.between(3, 11)
        while len(self.nodes) < size:
            value = self.grow(value)
        value = self.vector(value)
        if self.is_likely(0.3):
            value = self.elementwise(self.project(value))
        self.add("dense", value, shape=(CLASSES,))
        return Spec(self.input_shape, _used(self.nodes))


def _used(nodes: list[Node]) -> tuple[Node, ...]:
    """Returns the nodes that the last one depends on, with new numbers."""
    needed = {len(nodes)}
    for number in range(len(nodes), 0, -1):
        if number in needed:
            node = nodes[number - 1]
            needed |= {*node.inputs, node.layer}
    numbers = {old: new for new, old in enumerate(sorted(needed | {0}))}
    return tuple(
        Node(
            **{
                **{field.name: getattr(node, field.name) for field in fields(Node)},
                "inputs": tuple(numbers[value] for value in node.inputs),
                "layer": numbers[node.layer],
            }
        )
        for number, node in enumerate(nodes, start=1)
        if number in needed
    )

"""Tiny networks for the pruning tests; none comes from jaxprune.nets."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import numpy as np
from flax import nnx

from jaxprune.structure.model_state import merge_model, split_model


class Net(nnx.Module):
    """Layers by name, called by a function: `Net({"conv1": nnx.Conv(...)}, lambda net, x: ...)`."""

    def __init__(self, layers: dict[str, nnx.Module], forward: Callable):
        self.forward = forward
        for name, layer in layers.items():
            setattr(self, name, layer)

    def __call__(self, x):
        return self.forward(self, x)


def random_kernel(key, shape, dtype):
    """Values much as Flax draws them, but by NumPy: nothing compiles. Zeros where a network is only traced."""
    if isinstance(key, jax.core.Tracer):
        return zeros(key, shape, dtype)
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)).tolist())
    return jax.device_put((rng.normal(size=shape) / np.sqrt(np.prod(shape[:-1]))).astype(dtype))


def zeros(key, shape, dtype):
    return jax.device_put(np.zeros(shape, dtype))


INITIALISERS = {"kernel_init": random_kernel, "bias_init": zeros}


def conv(a, b, seed=0, **options):
    return nnx.Conv(a, b, (3, 3), rngs=nnx.Rngs(seed), **INITIALISERS, **options)


def linear(a, b, seed=0, **options):
    return nnx.Linear(a, b, rngs=nnx.Rngs(seed), **INITIALISERS, **options)


def norm(width, seed=0):
    layer = nnx.BatchNorm(width, rngs=nnx.Rngs(seed))
    rng = np.random.default_rng(seed)
    for name, low, high in (("scale", 0.5, 2.0), ("bias", -1.0, 1.0), ("mean", -0.5, 0.5), ("var", 0.5, 2.0)):
        variable = getattr(layer, name)
        variable[...] = jax.device_put(rng.uniform(low, high, width).astype(np.float32))
    return layer


def flat(x):
    return x.reshape(x.shape[0], -1)


def pool(x):
    n, h, w, _ = x.shape
    return x.reshape(n, h // 2, 2, w // 2, 2, -1).max((2, 4))


def plain():
    layers = {"conv1": conv(1, 4), "conv2": conv(4, 6, 1), "dense": linear(24, 5, 2), "head": linear(5, 3, 3)}
    return Net(
        layers,
        lambda net, x: net.head(
            nnx.relu(net.dense(flat(pool(nnx.relu(net.conv2(pool(nnx.relu(net.conv1(x)))))))))
        ),
    )


def conv_norm_relu():
    layers = {"conv1": conv(1, 4), "norm1": norm(4), "conv2": conv(4, 6, 1), "norm2": norm(6, 1)}
    layers["head"] = linear(6 * 64, 3, 2)
    return Net(
        layers,
        lambda net, x: net.head(flat(nnx.relu(net.norm2(net.conv2(nnx.relu(net.norm1(net.conv1(x)))))))),
    )


def conv_relu_norm():
    layers = {"conv1": conv(1, 4), "norm1": norm(4), "dense": linear(16, 5, 1), "norm2": norm(5, 1)}
    layers |= {"drop": nnx.Dropout(0.5, rngs=nnx.Rngs(9)), "head": linear(5, 3, 2)}
    return Net(
        layers,
        lambda net, x: net.head(
            net.drop(net.norm2(nnx.relu(net.dense(flat(pool(pool(net.norm1(nnx.relu(net.conv1(x))))))))))
        ),
    )


def global_average():
    layers = {"conv1": conv(1, 4), "conv2": conv(4, 6, 1), "head": linear(6, 3, 2)}
    return Net(
        layers,
        lambda net, x: net.head(nnx.relu(net.conv2(nnx.max_pool(net.conv1(x), (2, 2), (2, 2)))).mean((1, 2))),
    )


def channels_first():
    layers = {"conv1": conv(1, 4), "dense": linear(16, 5, 1), "head": linear(5, 3, 2)}
    return Net(
        layers,
        lambda net, x: net.head(
            nnx.relu(net.dense(flat(pool(pool(nnx.relu(net.conv1(x)))).transpose(0, 3, 1, 2))))
        ),
    )


def sigmoid_net():
    layers = {"conv1": conv(1, 4), "conv2": conv(4, 6, 1), "head": linear(24, 3, 2)}
    return Net(
        layers,
        lambda net, x: net.head(
            flat(nnx.avg_pool(nnx.sigmoid(net.conv2(nnx.sigmoid(net.conv1(x)))), (4, 4), (4, 4)))
        ),
    )


def residual():
    layers = {"stem": conv(1, 4), "norm0": norm(4), "conv1": conv(4, 6, 1), "norm1": norm(6, 1)}
    layers |= {"conv2": conv(6, 4, 2), "norm2": norm(4, 2), "head": linear(4, 3, 3)}

    def forward(net, x):
        x = nnx.relu(net.norm0(net.stem(x)))
        y = net.norm2(net.conv2(nnx.relu(net.norm1(net.conv1(x)))))
        return net.head(nnx.relu(x + y).mean((1, 2)))

    return Net(layers, forward)


def mlp():
    layers = {"fc1": linear(64, 8), "fc2": linear(8, 7, 1), "fc3": linear(7, 3, 2)}
    return Net(layers, lambda net, x: net.fc3(nnx.gelu(net.fc2(nnx.tanh(net.fc1(flat(x)))))))


def listed():
    layers = {"convs": nnx.List([conv(1, 4), conv(4, 4, 1)]), "head": linear(4, 3, 2)}

    def forward(net, x):
        for layer in net.convs:
            x = jax.checkpoint(nnx.relu)(layer(x))
        return net.head(x.mean((1, 2)))

    return Net(layers, forward)


def residual_dense():
    layers = {"fc1": linear(64, 8), "fc2": linear(8, 8, 1), "head": linear(8, 3, 2)}

    def forward(net, x):
        x = nnx.relu(net.fc1(flat(x)))
        return net.head(x + nnx.relu(net.fc2(x)))

    return Net(layers, forward)


NETWORKS = {
    function.__name__: function
    for function in (
        plain,
        conv_norm_relu,
        conv_relu_norm,
        global_average,
        channels_first,
        sigmoid_net,
        residual,
        residual_dense,
        mlp,
        listed,
    )
}

IMAGES = np.random.default_rng(0).normal(size=(24, 8, 8, 1)).astype(np.float32)
LABELS = np.arange(24) % 3


@partial(jax.jit, static_argnums=0)
def forward(graphdef, arrays, rest, images):
    return merge_model(graphdef, arrays, rest)(images)


def run(model, images=IMAGES):
    """Logits in evaluation mode, by one compiled call: layer by layer each operation would compile on its own."""
    return np.asarray(forward(*split_model(model, "evaluation"), images))


def scores_of(structure, seed=0):
    rng = np.random.default_rng(seed)
    return {name: rng.permutation(width).astype(np.float32) for name, width in structure.widths.items()}


def relative_error(a, b):
    return float(np.abs(a - b).max() / np.abs(a).max())

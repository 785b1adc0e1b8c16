"""Nothing that is done with a network changes it, or anything that it holds."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from pruned_nets import scores_of

import jaxprune as jp

ATOMS = (str, int, float, bool, bytes, type(None), type, types.FunctionType, types.BuiltinFunctionType)
X = jax.random.normal(jax.random.key(0), (4, 5, 8))
LABELS = np.arange(4) % 2


def content(value, path="", seen=None):
    """Path -> object and content, for everything that a value holds; objects count by themselves."""
    seen = {} if seen is None else seen
    if id(value) in seen:
        return {path: seen[id(value)]}
    if isinstance(value, nnx.Variable):
        held = {".type": type(value), ".value": value.get_raw_value()}
        held |= {f".{name}": part for name, part in value.get_metadata().items()}
    elif isinstance(value, jax.Array):
        is_key = jnp.issubdtype(value.dtype, jax.dtypes.prng_key)
        return {path: (id(value), np.asarray(jax.random.key_data(value) if is_key else value).tolist())}
    elif isinstance(value, np.ndarray):
        return {path: (id(value), value.tolist())}
    elif isinstance(value, dict):
        held = {f"[{key!r}]": part for key, part in value.items()}
    elif isinstance(value, list | tuple):
        held = {f"[{index}]": part for index, part in enumerate(value)}
    elif hasattr(value, "__dict__") and not isinstance(value, ATOMS):
        held = {f".{name}": part for name, part in vars(value).items()}
    else:
        return {path: value}
    seen[id(value)] = path
    found = {path: (type(value), id(value))}
    for name, part in held.items():
        found |= content(part, path + name, seen)
    return found


@dataclasses.dataclass
class Inner:
    num_heads: int = 2
    sizes: list = dataclasses.field(default_factory=lambda: [8, {"head": 4}])


@dataclasses.dataclass
class Config:
    width: int = 8
    attention: Inner = dataclasses.field(default_factory=Inner)


class Configured(nnx.Module):
    """Own attention whose heads are counted in a configuration in a configuration, which its layers share."""

    def __init__(self, config):
        rngs = nnx.Rngs(0)
        self.config, self.own = config, {"config": config, "widths": [8, 8]}
        self.query, self.key, self.value, self.out = (nnx.Linear(8, 8, rngs=rngs) for _ in range(4))
        self.norms = nnx.List([nnx.LayerNorm(8, rngs=rngs), nnx.BatchNorm(8, rngs=rngs)])
        self.hidden, self.head = nnx.Linear(8, 6, rngs=rngs), nnx.Linear(6, 2, rngs=rngs)
        self.dropout, self.steps = nnx.Dropout(0.5, rngs=rngs), nnx.Variable(3)

    def __call__(self, x):
        heads = self.config.attention.num_heads
        q, k, v = (f(x).reshape(*x.shape[:2], heads, -1) for f in (self.query, self.key, self.value))
        weights = jax.nn.softmax(jnp.einsum("nqhd,nkhd->nhqk", q, k) / q.shape[-1] ** 0.5)
        mixed = self.out(jnp.einsum("nhqk,nkhd->nqhd", weights, v).reshape(*x.shape[:2], -1))
        x = self.dropout(self.norms[1](x + self.norms[0](mixed)))
        return self.head(nnx.relu(self.hidden(x)).mean(1))


class Ready(nnx.Module):
    """Attention of Flax, which stores its sizes, and a number of the network's own."""

    def __init__(self):
        rngs = nnx.Rngs(0)
        self.stem = nnx.Linear(8, 8, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(2, 8, decode=False, rngs=rngs)
        self.up, self.head, self.hidden = nnx.Linear(8, 12, rngs=rngs), nnx.Linear(6, 2, rngs=rngs), 6

    def __call__(self, batch):
        y = self.up(self.attention(self.stem(batch["left"] + batch["right"])))
        return self.head((nnx.relu(y[..., : self.hidden]) * y[..., self.hidden :]).mean(1))


class Sowing(nnx.Module):
    """Shares a layer, and holds what it sowed when it was trained."""

    def __init__(self):
        rngs = nnx.Rngs(0)
        self.stem, self.head = nnx.Linear(8, 6, rngs=rngs), nnx.Linear(6, 2, rngs=rngs)
        self.first = self.again = nnx.Linear(6, 6, rngs=rngs)
        self.seen = nnx.Intermediate((X,))

    def __call__(self, x):
        x = nnx.relu(self.again(nnx.relu(self.first(self.stem(x)))))
        return self.head(x.mean(1))


NETWORKS = {
    "configuration objects": (lambda: Configured(Config()), X, {}),
    "attributes": (Ready, {"left": X, "right": X}, {"hidden": 3}),
    "shared and sown": (Sowing, X, {}),
}


@pytest.mark.parametrize(("make", "inputs", "attributes"), NETWORKS.values(), ids=NETWORKS)
def test_a_network_is_as_it_was_after_everything(make, inputs, attributes):
    network = make()
    optimizer = nnx.Optimizer(network, optax.adam(1e-3), wrt=nnx.Param)
    given = {"network": network, "inputs": inputs, "optimizer": optimizer, "attributes": attributes}
    before = content(given)

    def check(step):
        after = content(given)
        changed = {path for path in before.keys() | after.keys() if before.get(path) != after.get(path)}
        assert not changed, step

    structure = jp.trace_structure(network, inputs)
    check("trace_structure")
    observed = jp.observe(network, inputs, LABELS)
    check("observe")
    scores = scores_of(structure)
    plan = jp.plan(network, scores, inputs, kept_fraction=0.5)
    check("plan")
    jp.mask(network, plan)
    check("mask")
    smaller = jp.slim(network, plan, attributes=attributes)
    jp.slim(network, plan, attributes=attributes, optimizer=optimizer)
    check("slim")
    jp.sensitivity(network, scores, (inputs, LABELS), fractions=[0.5])
    check("sensitivity")
    assert jp.count_parameters(smaller) < jp.count_parameters(network) and len(observed)


def test_the_comparison_sees_changes():
    """Or the tests above would say nothing."""
    network = Configured(Config())
    changes = (
        lambda: setattr(network.config.attention, "num_heads", 4),
        lambda: network.config.attention.sizes[1].update(head=2),
        lambda: setattr(network, "config", Config()),
        lambda: network.own["widths"].append(1),
        lambda: setattr(network.hidden, "out_features", 3),
        lambda: network.norms[1].mean.set_value(jnp.ones(8)),
        lambda: network.dropout.rngs(),
        lambda: network.eval(),
    )
    for change in changes:
        before = content(network)
        change()
        assert content(network) != before

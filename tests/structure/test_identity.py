"""When two values count as the same: by what they hold and by the code that they run."""

import dataclasses
import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

from jaxprune.nets.function_network import FunctionNetwork
from jaxprune.structure.identity import identity_of
from jaxprune.structure.model_state import split_model
from jaxprune.structure.tracing import trace_structure

X = jnp.ones((2, 4))


@dataclasses.dataclass
class Config:
    """Equal by value, and so without a hash."""

    width: int = 6
    others: object = None


class Plain:
    """Has a hash, which does not change with its content."""

    def __init__(self, width, other=None):
        self.width, self.other = width, other

    def twice(self):
        return self.width * 2


def add(number):
    return lambda x: x + number


def holding_itself(width):
    plain = Plain(width)
    plain.other = [plain]
    return plain


EQUAL = {
    "lists": ([1, [2]], [1, [2]]),
    "sets": ({1, (2, 3)}, {(2, 3), 1}),
    "dataclasses": (Config(6, {"a": [1]}), Config(6, {"a": [1]})),
    "objects": (Plain(1, Config()), Plain(1, Config())),
    "namespaces": (types.SimpleNamespace(width=1), types.SimpleNamespace(width=1)),
    "what holds itself": (holding_itself(1), holding_itself(1)),
    "NumPy arrays": (np.arange(3), np.arange(3)),
    "functions of one code": (add(1), add(1)),
    "methods of equal objects": (Plain(1).twice, Plain(1).twice),
    "partial functions": (functools.partial(add, 1), functools.partial(add, 1)),
    "compiled functions": (jax.jit(add(1)), jax.jit(add(1))),
    "Linen modules": (linen.Dense(3), linen.Dense(3)),
}
DIFFERENT = {
    "whole numbers and floats": ([1], [1.0]),
    "numbers and truths": ([1], [True]),
    "lists and tuples": ([1], (1,)),
    "nesting": ([1, [2, 3]], [1, [2], 3]),
    "dataclasses": (Config(6), Config(7)),
    "objects": (Plain(1, Config(1)), Plain(1, Config(2))),
    "what holds itself": (holding_itself(1), holding_itself(2)),
    "NumPy arrays": (np.arange(3), np.arange(3)[::-1]),
    "what functions hold": (add(1), add(2)),
    "code": (lambda x: x + 1, lambda x: x + 2),
    "defaults": (lambda x=1: x, lambda x=2: x),
    "methods": (Plain(1).twice, Plain(2).twice),
    "compiled functions": (jax.jit(add(1)), jax.jit(add(2))),
    "functions of libraries": (nnx.relu, nnx.gelu),
    "what has neither hash nor parts": (jnp.ones(2), jnp.ones(2)),
}


@pytest.mark.parametrize(("left", "right"), EQUAL.values(), ids=EQUAL)
def test_the_same_is_equal(left, right):
    assert identity_of(left) == identity_of(right) and hash(identity_of(left)) == hash(identity_of(right))


@pytest.mark.parametrize(("left", "right"), DIFFERENT.values(), ids=DIFFERENT)
def test_what_differs_is_not_equal(left, right):
    assert identity_of(left) == identity_of(left) != identity_of(right)


def test_content_counts_as_it_is_now():
    plain = Plain(1)
    before = identity_of(plain)
    plain.width = 2
    assert identity_of(plain) != before


def test_arrays_beyond_a_megabyte_count_by_the_object():
    large = np.zeros(1 << 18)
    assert identity_of(large) == identity_of(large) != identity_of(large.copy())


CELL = """
from flax import nnx

SCALE = 6

def activation(x):
    return nnx.relu(x)

class Net(nnx.Module):
    def __init__(self, rngs):
        self.hidden, self.head = nnx.Linear(4, 6, rngs=rngs), nnx.Linear(6, 3, rngs=rngs)

    def __call__(self, x):
        return self.head(activation(self.hidden(x)) * SCALE)
"""


class TestNotebooks:
    @pytest.fixture
    def notebook(self):
        notebook = {"__name__": "__main__"}
        exec(CELL, notebook)
        return notebook

    def key(self, network):
        return identity_of(split_model(network)[0])

    def test_networks_of_one_class_are_the_same(self, notebook):
        assert self.key(notebook["Net"](nnx.Rngs(0))) == self.key(notebook["Net"](nnx.Rngs(1)))

    def test_a_class_that_is_defined_again_is_another_one(self, notebook):
        before = notebook["Net"](nnx.Rngs(0))
        exec(CELL, notebook)
        assert self.key(notebook["Net"](nnx.Rngs(0))) != self.key(before)

    def test_a_function_or_number_that_changes_changes_the_networks_that_read_it(self, notebook):
        network = notebook["Net"](nnx.Rngs(0))
        keys = [self.key(network)]
        for change in ({"activation": nnx.gelu}, {"SCALE": 5}, {"SCALE": 4}):
            notebook.update(change)
            keys.append(self.key(network))
        assert len(set(keys)) == 4
        notebook["head"] = notebook["x"] = object()  # only names of attributes and arguments
        assert self.key(network) == keys[-1]

    def test_a_function_of_an_own_module_that_changes_does_too(self, notebook):
        own = types.ModuleType("own")
        own.activation = lambda x: nnx.relu(x)
        notebook["own"] = own
        exec("def call(self, x):\n    return self.head(own.activation(self.hidden(x)))", notebook)
        notebook["Net"].__call__ = notebook["call"]
        network = notebook["Net"](nnx.Rngs(0))
        before = self.key(network)
        own.activation = lambda x: nnx.gelu(x)
        assert self.key(network) != before

    def test_a_method_that_is_replaced_is_traced_anew(self, notebook):
        network = notebook["Net"](nnx.Rngs(0))
        assert trace_structure(network, X).widths == {"hidden.kernel": 6}
        notebook["Net"].__call__ = lambda self, x: self.head(jnp.cumsum(self.hidden(x), axis=-1))
        assert trace_structure(network, X).widths == {}


def test_pure_functions_that_are_written_twice_share_a_structure():
    params = {"a": jnp.ones((4, 5)), "b": jnp.ones((5, 2))}

    def network(scale):
        return FunctionNetwork(lambda p, x: jax.nn.relu(x @ p["a"] * scale["by"]) @ p["b"], params)

    assert trace_structure(network({"by": 2}), X) is trace_structure(network({"by": 2}), X)
    assert trace_structure(network({"by": 2}), X) is not trace_structure(network({"by": 3}), X)


@jax.tree_util.register_pytree_node_class
class Layer:
    """A node of a pytree that stores what has no hash, as layers of Equinox may."""

    def __init__(self, kernel, config):
        self.kernel, self.config = kernel, config

    def tree_flatten(self):
        return (self.kernel,), self.config

    @classmethod
    def tree_unflatten(cls, config, children):
        return cls(*children, config)


def test_pytrees_may_store_what_has_no_hash():
    def network(width):
        layers = [Layer(jnp.ones((4, 5)), Config(width)), Layer(jnp.ones((5, 2)), Config(width))]
        return FunctionNetwork(lambda p, x: jax.nn.relu(x @ p[0].kernel) @ p[1].kernel, layers)

    assert trace_structure(network(1), X) is trace_structure(network(1), X)
    assert trace_structure(network(1), X) is not trace_structure(network(2), X)

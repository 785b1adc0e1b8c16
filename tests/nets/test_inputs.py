"""What a batch means for a network: which call it stands for, which arrays are batched, and how plans store that."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxprune.nets.cost import count_macs
from jaxprune.nets.inputs import Example, Inputs, arrays_of, example_of

LEFT, RIGHT, EXTRA = np.ones((4, 6), np.float32), np.ones((4, 6), np.float32), np.ones((4, 5), np.float32)


class Pair(NamedTuple):
    first: np.ndarray
    second: np.ndarray


class Layers(nnx.Module):
    """A dense layer for six features; subclasses say how they are called."""

    def __init__(self):
        self.dense = nnx.Linear(6, 3, rngs=nnx.Rngs(0))


class TakesOne(Layers):
    def __call__(self, pair, *, train=True):
        return self.dense(pair[0] + pair[1])


class TakesTwo(Layers):
    def __call__(self, left, right):
        return self.dense(left + right)


class TakesAny(Layers):
    def __call__(self, *args):
        left, right = args
        return self.dense(left + right)


class TakesAnyTuple(Layers):
    def __call__(self, *args):
        ((left, right),) = args
        return self.dense(left + right)


class TakesAnOptional(Layers):
    def __call__(self, left, right=None):
        return self.dense(left[0] + left[1] if right is None else left + right)


@pytest.mark.parametrize(
    ("network", "call"),
    [
        (TakesOne, "argument"),
        (TakesTwo, "arguments"),
        (TakesAny, "arguments"),
        (TakesAnyTuple, "argument"),
        (TakesAnOptional, "arguments"),
    ],
)
def test_a_tuple_is_what_the_signature_or_a_try_says(network, call):
    model = network()
    assert example_of((LEFT, RIGHT), model).call == call
    assert count_macs(model, (LEFT, RIGHT)) == 6 * 3


def test_a_named_tuple_is_one_argument():
    assert example_of(Pair(LEFT, RIGHT), TakesTwo()).call == "argument"


def test_arrays_as_long_as_the_first_are_batched():
    table, keys = np.ones((7, 6)), jax.random.key(0)
    example = example_of(Inputs(np.float32(2.0), LEFT, table=table, key=keys, train=False))
    assert dict(zip(example.names, example.is_batched, strict=True)) == {
        "0": False,
        "1": True,
        "key": False,
        "table": False,
    }
    larger = example.with_batch_size(9)
    assert [array.shape for array in larger.arrays] == [(), (9, 6), (), (7, 6)]
    assert larger.batch_size == 9 and example.batch_size == 4 and example.first.shape == (4, 6)


def test_inputs_show_shapes_and_survive_tree_maps():
    batch = Inputs(LEFT, mask={"a": LEFT[:, 0]}, train=False, name=None)
    assert repr(batch) == "Inputs([4, 6], mask={'a': [4]}, name=None, train=False)"
    halved = jax.tree.map(lambda leaf: leaf[:2] if isinstance(leaf, np.ndarray) else leaf, batch)
    assert [array.shape for array in arrays_of(halved)] == [(2, 6), (2,)]
    assert halved.kwargs["train"] is False


def test_a_network_is_called_with_values_that_are_no_arrays():
    example = example_of(Inputs(LEFT, np.zeros_like(RIGHT), train=False))
    seen = []
    example.call_network(lambda *args, **kwargs: seen.append((len(args), kwargs)), [LEFT, RIGHT])
    assert seen == [(2, {"train": False})]


def test_wide_types_become_those_of_jax():
    example = example_of({"ids": np.zeros((2, 3), np.int64), "x": np.zeros((2, 1))})
    assert [str(array.dtype) for array in example.arrays] == ["int32", "float32"]


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (np.float32(1.0), r"needs an example with a batch axis, got a scalar\. Pass images\[:1\]"),
        ({"text": "a"}, r"needs an example with a batch axis, got no array: \{'text': 'a'\}"),
    ],
)
def test_a_batch_without_a_batch_axis_is_refused(batch, message):
    with pytest.raises(ValueError, match=message):
        example_of(batch)


NESTED = Inputs(
    [LEFT, (EXTRA, None)], options={"scale": np.float32(1.0), "flag": True, "mode": "full", "n": 3}
)


def test_an_example_equals_the_one_read_from_its_record():
    for example in (
        example_of(NESTED),
        example_of((LEFT, RIGHT), TakesTwo()),
        example_of({"b": np.ones((3, 2)), "a": np.ones((7, 2), jnp.bfloat16)}),
    ):
        again = Example.from_record(example.to_record())
        assert again == example and hash(again) == hash(example) and again.names == example.names


def test_examples_differ_by_values_and_calls():
    assert example_of(Inputs(LEFT, flag=True)) != example_of(Inputs(LEFT, flag=1))
    assert example_of((LEFT, RIGHT), TakesTwo()) != example_of((LEFT, RIGHT), TakesOne())


def test_containers_that_json_cannot_name_are_refused():
    with pytest.raises(ValueError, match=r"made of dicts with texts as keys, lists, tuples .* got Pair"):
        example_of(Pair(LEFT, RIGHT)).to_record()


ARRAY = {"shape": [2, 3], "dtype": "float32"}


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ([], "inputs must have a call and a batch"),
        ({"call": "inputs", "batch": ARRAY}, "a batch of inputs does not have that form"),
        ({"call": "argument", "batch": {"value": 3}}, "or has no batch axis"),
        ({"call": "argument", "batch": [ARRAY]}, "a part of the inputs must be an object"),
        (
            {"call": "argument", "batch": {"shape": [0], "dtype": "float32"}},
            "must have a shape and a dtype of JAX",
        ),
        ({"call": "argument", "batch": {**ARRAY, "batched": 3}}, "must have a shape and a dtype of JAX"),
        ({"call": "argument", "batch": {"set": [ARRAY]}}, "is neither array, container nor value"),
    ],
)
def test_damaged_records_are_refused(record, message):
    with pytest.raises(ValueError, match=message):
        Example.from_record(record)

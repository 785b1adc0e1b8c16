"""Networks by name or factory, with weights or of shapes alone."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from flax import nnx

from jaxprune import count_parameters, trace_structure
from jaxprune.nets import NETWORKS, LeNet5, without_weights
from jaxprune.nets.factories import find_network
from jaxprune.structure.model_state import split_model


def shapes(model):
    return jax.tree.map(lambda array: (array.shape, array.dtype), nnx.state(model, nnx.Param))


def test_without_weights_has_the_shapes_of_the_network_and_no_arrays():
    model = without_weights(LeNet5)
    assert shapes(model) == shapes(LeNet5(nnx.Rngs(0)))
    assert all(
        isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(nnx.state(model, nnx.Param))
    )
    assert count_parameters(model) == 431_080


def test_a_named_network_takes_its_own_keywords():
    model = find_network("vgg16", has_weights=False, widths=(4,) * 14, num_classes=3)
    assert model.convs[0].kernel.shape == (3, 3, 3, 4)


@pytest.mark.parametrize("name", ["seeded", "positional", "by_keyword", "alone", "with_default", "made"])
def test_factories_give_the_same_shapes_with_and_without_weights(name):
    full, empty = (find_network(f"own_networks:{name}", has_weights=has) for has in (True, False))
    assert shapes(full) == shapes(empty)


def test_arrays_outside_of_variables_are_state_without_weights_too():
    full, empty = (
        split_model(find_network("own_networks:BareArrays", has_weights=has)) for has in (True, False)
    )
    for arrays, others in zip(full[1:], empty[1:], strict=True):
        assert {path: type_of(value) for path, value in arrays.items()} == {
            path: type_of(value) for path, value in others.items()
        }
    assert ("listed", 0) in empty[1] and empty[2][("steps",)].get_value() == 2
    placeholder = empty[1][("table",)]
    assert placeholder.strides == (0, 0)  # one number, whatever the shape


def type_of(value):
    return (value.shape, value.dtype) if hasattr(value, "dtype") else value.get_value()


def test_a_factory_that_reads_values_is_made_with_weights():
    model = find_network("own_networks:reads_values", has_weights=False)
    assert model.scale == np.float32(model.first.kernel[0, 0])


@pytest.mark.parametrize("has_weights", [True, False])
def test_what_is_no_network_is_named_either_way(has_weights):
    with pytest.raises(ValueError, match=r"needs to be a factory of a Flax NNX module .* gives dict"):
        find_network("own_networks:no_network", has_weights=has_weights)
    with pytest.raises(ValueError, match="got one that needs rngs, width"):
        find_network("own_networks:needs_more", has_weights=has_weights)


def test_keywords_for_a_factory_are_refused():
    with pytest.raises(
        ValueError, match=r"widths needs one of plain_conv_net, .*, got 'own_networks:seeded'"
    ):
        find_network("own_networks:seeded", widths=(3,))


@pytest.mark.parametrize("name", ["lenet5", "mobilenet_v2"])
def test_shapes_are_enough_to_find_groups(name):
    model = find_network(name, has_weights=False)
    structure = trace_structure(model, jax.ShapeDtypeStruct((1, *model.image_shape), "float32"))
    assert structure.groups and name in NETWORKS

"""Every network of the zoo: the full one has its published parameters (`test_zoo_exactness` runs the small ones)."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from flax import nnx

from jaxprune import count_parameters
from zoo import ZOO
from zoo.abstract import abstract, output_of
from zoo.convolutional import CONVOLUTIONAL, FAMILIES
from zoo.image_to_image import pixel_shuffle
from zoo.mobile import shuffle
from zoo.randomise import randomise


@pytest.mark.parametrize("name", ZOO)
class TestEveryNetwork:
    def test_the_full_one_has_its_published_parameters_and_takes_its_input(self, name):
        entry = ZOO[name]
        model = abstract(entry.full)
        if entry.num_parameters is not None:
            assert count_parameters(model) == entry.num_parameters
        output = jax.tree.leaves(output_of(model, entry.full_input))[0]
        assert output.shape[0] == jax.tree.leaves(entry.full_input)[0].shape[0]

    def test_its_name_is_its_key(self, name):
        assert ZOO[name].name == name


def test_no_two_convolutional_networks_share_a_name():
    assert len(CONVOLUTIONAL) == sum(len(family.ENTRIES) for family in FAMILIES)


def test_the_zoo_holds_every_family():
    assert CONVOLUTIONAL.items() <= ZOO.items()


def test_pixels_of_the_shuffle_come_from_channels_side_by_side():
    """Channels of one low-resolution pixel: [top left, top right, bottom left, bottom right] of C each."""
    x = np.arange(8.0).reshape(1, 1, 1, 8)
    assert pixel_shuffle(x, 2)[0, :, :, 0].tolist() == [[0, 2], [4, 6]]


def test_the_channel_shuffle_takes_the_halves_in_turns():
    assert shuffle(np.arange(6).reshape(1, 1, 1, 6)).ravel().tolist() == [0, 3, 1, 4, 2, 5]


def test_randomise_leaves_the_callers_model_and_moves_every_statistic(key):
    norm = nnx.BatchNorm(3, rngs=nnx.Rngs(0))
    moved = randomise(norm, key)
    assert norm.mean[...].tolist() == [0, 0, 0]
    for name, old in [("mean", 0), ("var", 1), ("scale", 1), ("bias", 0)]:
        assert (np.asarray(getattr(moved, name)[...]) != old).all(), name
    assert (np.asarray(moved.var[...]) > 0).all()


def test_randomise_keeps_kernels_that_are_there(key):
    layer = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
    np.testing.assert_array_equal(randomise(layer, key).kernel[...], layer.kernel[...])

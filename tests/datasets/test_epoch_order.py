"""Orders and random numbers of epochs: permutations, and pure functions of seed, epoch and place."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxprune.datasets.epoch_order import MAX_SEED, epoch_draws, epoch_order

seeds = st.integers(0, MAX_SEED)
epochs = st.integers(0, 2**32 - 1)


def test_the_order_of_a_seed_never_changes():
    """Runs that go on with a later version get the same batches."""
    assert epoch_order(0, 0, 8).tolist() == [0, 2, 1, 5, 4, 3, 6, 7]
    assert epoch_draws(0, 0, 0, 1, 3).round(4).tolist() == [[0.41, 0.6462, 0.9581]]


@given(seeds, epochs, st.integers(1, 50))
def test_an_epoch_is_a_permutation(seed, epoch, count):
    assert sorted(epoch_order(seed, epoch, count).tolist()) == list(range(count))


def test_epochs_and_seeds_have_orders_of_their_own():
    orders = {tuple(epoch_order(seed, epoch, 20)) for seed in (0, 1, MAX_SEED) for epoch in range(3)}
    assert len(orders) == 9


def test_orders_cannot_be_written_to():
    with pytest.raises(ValueError, match="read-only"):
        epoch_order(0, 0, 5)[0] = 1


@given(seeds, epochs, st.integers(0, 30), st.integers(1, 30), st.integers(1, 25))
def test_the_draws_of_a_place_do_not_depend_on_the_others(seed, epoch, first, count, num_draws):
    together = epoch_draws(seed, epoch, first, first + count, num_draws)
    alone = epoch_draws(seed, epoch, first + count - 1, first + count, num_draws)
    assert together.shape == (count, num_draws)
    assert np.array_equal(together[-1:], alone)


def test_draws_are_uniform():
    draws = epoch_draws(3, 1, 0, 5000, 4)
    assert draws.min() >= 0 and draws.max() < 1
    assert np.histogram(draws, 10, (0, 1))[0] / draws.size == pytest.approx(0.1, abs=0.01)
    assert np.abs(np.corrcoef(draws.T) - np.eye(4)).max() < 0.05


def test_no_draw_is_used_twice():
    draws = np.concatenate(
        [epoch_draws(seed, epoch, 0, 20, 23).ravel() for seed in (0, 1) for epoch in (0, 1)]
    )
    assert len(set(draws)) == draws.size

"""Schedules of rounds: falling fractions that end at the one that was asked for."""

import pytest

from jaxprune.pruning.schedules import round_fractions


def test_linear_and_cubic_by_hand():
    assert round_fractions(0.2, 4, curve="linear") == (0.8, 0.6, 0.4, 0.2)
    assert round_fractions(0.2, 4) == (0.5375, 0.3, 0.2125, 0.2)
    assert round_fractions(0.2, 1) == (0.2,)
    assert round_fractions(0.25, 2, curve="linear", start=0.75) == (0.5, 0.25)


@pytest.mark.parametrize("curve", ["linear", "cubic"])
def test_fractions_fall_to_the_last(curve):
    fractions = round_fractions(0.1, 7, curve=curve)
    assert fractions[-1] == 0.1 and all(a > b for a, b in zip(fractions, fractions[1:], strict=False))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0.0, 2), r"fraction must be in \(0, 1\], got 0\.0"),
        ((1.5, 2), r"fraction must be in \(0, 1\], got 1\.5"),
        ((0.5, 0), "rounds must be a whole number >= 1, got 0"),
        ((0.5, 2.0), r"rounds must be a whole number >= 1, got 2\.0"),
    ],
)
def test_schedules_that_make_no_sense_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        round_fractions(*arguments)


def test_options_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match="curve must be one of linear, cubic, got 'square'"):
        round_fractions(0.5, 2, curve="square")
    with pytest.raises(ValueError, match=r"start must be at least fraction, got 0\.4 and 0\.5"):
        round_fractions(0.5, 2, start=0.4)

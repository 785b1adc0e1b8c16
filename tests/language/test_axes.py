"""Axes, types and slices."""

from __future__ import annotations

import pytest

from jaxprune.language.axes import (
    AXES,
    is_axis,
    is_position_axis,
    is_sample_axis,
    slice_bounds,
    slice_range,
    sliced_axis,
    type_name,
)


def test_types_print_as_tuples():
    assert (type_name(()), type_name(("D",)), type_name(("NX", "D"))) == ("()", "(D)", "(NX, D)")


def test_axes_know_their_kind():
    assert [axis for axis in AXES if is_sample_axis(axis)] == ["NX", "N", "NQ"]
    assert [axis for axis in (*AXES, "D[2:5]") if is_position_axis(axis)] == ["D", "D[2:5]"]


@pytest.mark.parametrize("axis", ["D[5:2]", "D[0:9]", "D[3:3]", "F[0:2]", "d", ""])
def test_other_names_are_no_axes(axis):
    assert not is_axis(axis) and slice_range(axis) is None


def test_a_slice_of_16_positions_keeps_eighths():
    assert slice_bounds(16, 0, 8) == (0, 16)
    assert slice_bounds(16, 2, 5) == (4, 10)
    assert slice_range(sliced_axis(2, 5)) == (2, 5)


def test_a_slice_is_never_empty():
    for size in range(1, 40):
        for first in range(8):
            for last in range(first + 1, 9):
                start, stop = slice_bounds(size, first, last)
                assert 0 <= start < stop <= size

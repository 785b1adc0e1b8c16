"""Printing: canonical text that parses back to the same tree."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from toy_formulas import expressions

from jaxprune.language.parsing import parse
from jaxprune.language.printing import number_text, to_text


@pytest.mark.parametrize(
    "text",
    [
        "N - NQ - NX", "N - (NQ - NX)", "N + (NQ + NX)", "N/NQ/NX", "N/(NQ/NX)", "N*(NQ + 1)", "2*N/(NQ*NX)", "-2*N",
        "N - -2", "mean(slice(X, 2, 5))", "mean(rbf(P, 0.5))", "1e-05*N", "1e+22",
    ],
)  # fmt: skip
def test_text_has_no_more_parentheses_than_needed(text):
    assert str(parse(text)) == text


@given(expressions(scalar=False))
def test_parsing_what_was_printed_gives_the_same_object(f):
    assert parse(str(f)) is f
    assert to_text(f) == str(f)


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_numbers_read_back_exactly(value):
    assert float(number_text(value)) == value

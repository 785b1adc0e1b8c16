"""Printing: text that parses back to the same tree, and LaTeX and SymPy forms of any formula."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from toy_formulas import expressions

from jaxprune.language.library import library
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


@pytest.mark.parametrize(
    ("text", "latex"),
    [
        ("0.0001*N", r"10^{-4} \cdot N_{k}"),
        ("2.5e-7 + N", r"2.5 \times 10^{-7} + N_{k}"),
        ("N*-2", r"N_{k} \cdot \left(-2\right)"),
        ("sum(square(WO))", r"\operatorname{sum}\left({\left(w^{\mathrm{out}}\right)}^{\circ 2}\right)"),
        ("trace(inverse(rbf(X, 2)))", r"\operatorname{tr}\left(\left(\kappa_{\sigma=2}\left(X, X\right)"
         r" + 10^{-4} I\right)^{-1}\right)"),
        ("inner(mP, mX)", r"\bar{x}_{k}^{\top}\, \bar{x}"),
        ("outer(mP, WI)", r"\bar{x}_{k}\, w^{\top}"),
        ("slice(mX, 2, 5)", r"{\bar{x}}_{\left[2/8 : 5/8\right]}"),
        ("mean_samples(P)", r"\operatorname{mean}_{n}\left(X_{k}\right)"),
        ("geometric_median(W)", r"\operatorname{medoid}\left(W\right)"),
    ],
)  # fmt: skip
def test_latex_by_hand(text, latex):
    assert parse(text).latex() == latex


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("sum(abs(WI))", "sum(Abs(WI))"),
        ("sqrt(sum(square(WI)))", "sqrt(sum(WI**2))"),
        ("2*N/NQ", "2*N/NQ"),
        ("mean(rbf(P, Q, 1))", "mean(rbf(P, Q, 1))"),
        ("mean(slice(X, 2, 5))", "mean(slice(X, 2, 5))"),
    ],
)
def test_sympy_by_hand(text, shown):
    assert str(parse(text).sympy()) == shown


def test_sympy_can_simplify_and_differentiate():
    import sympy

    f = parse("square(gamma) - gamma*gamma + 3*beta").sympy()
    assert sympy.simplify(f) == 3 * sympy.Symbol("beta")
    assert sympy.diff(library["bn_scale"].sympy(), sympy.Symbol("beta")) == 0


@pytest.mark.parametrize(
    "text", ["1/0", "N/0 - N/0", "sqrt(-1)", "0/0", "abs(sqrt(0 - N))", "square(" * 60 + "3" + ")" * 60]
)
def test_nothing_is_too_odd_to_write(text):
    assert parse(text).latex() and str(parse(text).sympy())


@given(expressions(steps=12, scalar=False))
def test_any_formula_has_latex_and_sympy(f):
    latex = f.latex()
    assert latex.count("{") == latex.count("}") and latex.count(r"\left") == latex.count(r"\right")
    assert str(f.sympy())

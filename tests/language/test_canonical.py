"""Canonical forms: equal formulas meet, different ones do not, values stay."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from toy_formulas import evaluate, expressions, values

from jaxprune.language.canonical import canonical_form
from jaxprune.language.library import library, own_seeds
from jaxprune.language.parsing import parse


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ("0.05 + var(Q)", "var(Q) + 0.05"),
        ("N*2", "2*N"),
        ("1 + N + 2 - NQ", "N - NQ + 3"),
        ("NX*(NQ*N)", "N*NQ*NX"),
        ("2*3 + N", "N + 6"),
        ("N + 0", "N"),
        ("1*N/1", "N"),
        ("0 - N", "-1*N"),
        ("N + -2*NQ", "N - 2*NQ"),
        ("-1*N/(-1*NQ)", "N/NQ"),
        ("N*N", "square(N)"),
        ("N*N*N*N", "square(square(N))"),
        ("square(mX - mP)", "square(mP - mX)"),
        ("abs(-1*(N - NQ))", "abs(N - NQ)"),
        ("abs(std(X))", "std(X)"),
        ("square(abs(N))", "square(N)"),
        ("sqrt(var(X))", "std(X)"),
        ("square(std(X))", "var(X)"),
        ("sqrt(4)", "2"),
        ("sum(transpose(X))", "sum(X)"),
        ("transpose(transpose(X))", "X"),
        ("mean_samples(P)", "mP"),
        ("mean(mQ)", "mean(Q)"),
        ("mean(mean_samples(X))", "mean(X)"),
        ("sum(mean(X))", "mean(X)"),
        ("inner(mX, mP)", "inner(mP, mX)"),
        ("rbf(P, P, 1)", "rbf(P, 1)"),
    ],
)
def test_equal_formulas_meet(text, form):
    assert str(canonical_form(parse(text))) == form


@pytest.mark.parametrize(
    "text",
    [
        "N - N",
        "N/N",
        "0*mean(X)",
        "1/0",
        "sqrt(-1)",
        "count(X)",
        "N/NQ/NX",
        "1e200*1e200*N",
        "1e308 + 1e308 + N",
    ],
)
def test_what_could_hide_a_non_finite_value_stays(text):
    f = canonical_form(parse(text))
    assert f.operands == parse(text).operands and f.size == parse(text).size


@pytest.mark.parametrize("name", [*library, *own_seeds])
def test_library_functions_stay_apart(name):
    everything = {**library, **own_seeds}
    forms = [canonical_form(f) for f in everything.values()]
    assert forms.count(canonical_form(everything[name])) == 1


@given(expressions(steps=12, scalar=False))
def test_a_canonical_form_is_its_own_and_keeps_type_and_value(f):
    form = canonical_form(f)
    assert canonical_form(form) is form
    assert form.type == f.type and form.operands <= {*f.operands, *(name[1:] for name in f.operands)} | {
        "mX",
        "mP",
        "mQ",
    }
    of = values(3)
    before, after = np.asarray(evaluate(f, of), np.float64), np.asarray(evaluate(form, of), np.float64)
    is_tame = all(_is_tame(evaluate(node, of)) for g in (f, form) for node in g.walk())
    if is_tame and not any("inverse" in node.operator for node in f.walk()):
        scale = max(float(np.max(np.abs(evaluate(node, of)))) for node in f.walk())
        np.testing.assert_allclose(after, before, rtol=2e-3, atol=1e-4 * max(1.0, scale))


def _is_tame(value):
    magnitude = np.abs(np.asarray(value))
    return (
        np.all(np.isfinite(magnitude))
        and np.all(magnitude < 1e6)
        and np.all((magnitude == 0) | (magnitude > 1e-3))
    )

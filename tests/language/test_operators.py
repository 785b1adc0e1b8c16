"""The record every operator is, and the contract all of them keep."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy_formulas import applications, evaluate, real_part, values

from jaxprune.language.operators import BROADCAST, OPERATORS, IllTypedError, Signature, infer_type
from jaxprune.language.parsing import parse
from jaxprune.language.registration import register_operator

DESIGNED = (
    "+ - * / transpose matmul inner outer trace inverse abs square sqrt sum product mean std var count "
    "mean_samples rbf geometric_median slice"
)


@pytest.fixture
def forget():
    yield
    for name in ("cube", "maximum", "top", "power"):
        OPERATORS.pop(name, None)


def test_all_operators_of_the_design_are_there():
    assert set(OPERATORS) == set(DESIGNED.split())


@pytest.mark.parametrize(
    ("operator", "children", "params", "result"),
    [
        ("+", ["D", "D"], (), "D"),
        ("-", ["", "NX D"], (), "NX D"),
        ("*", ["F C", ""], (), "F C"),
        ("/", ["D", "NQ D"], (), "NQ D"),
        ("-", ["N D[2:5]", "D[2:5]"], (), "N D[2:5]"),
        ("transpose", ["N D"], (), "D N"),
        ("matmul", ["D N", "N D"], (), "D D"),
        ("matmul", ["F C", "C"], (), "F"),
        ("matmul", ["F", "F C"], (), "C"),
        ("inner", ["O", "O"], (), ""),
        ("outer", ["F", "D"], (), "F D"),
        ("trace", ["D D"], (), ""),
        ("inverse", ["N N"], (), "N N"),
        ("sqrt", ["F C"], (), "F C"),
        ("count", [""], (), ""),
        ("mean_samples", ["NQ D"], (), "D"),
        ("rbf", ["N D", "NQ D"], (1.0,), "N NQ"),
        ("rbf", ["N D"], (1.0,), "N N"),
        ("geometric_median", ["F C"], (), "F"),
        ("slice", ["NX D"], (2.0, 5.0), "NX D[2:5]"),
        ("slice", ["D"], (0.0, 1.0), "D[0:1]"),
    ],
)
def test_types_follow_the_signatures_of_the_design(operator, children, params, result):
    assert infer_type(operator, [tuple(child.split()) for child in children], params) == tuple(result.split())


@pytest.mark.parametrize(
    ("operator", "children", "params", "message"),
    [
        ("+", [("F",), ("D",)], (), r"got \(F\), \(D\)"),
        ("*", [("D",), ("D", "D")], (), r"got \(D\), \(D, D\)"),
        ("inverse", [("N", "D")], (), r"inverse needs \(a,a\) -> \(a,a\), got \(N, D\)"),
        ("mean_samples", [("F", "C")], (), r"mean_samples needs \(n,d\) -> \(d\)"),
        ("geometric_median", [("F", "D")], (), r"geometric_median needs \(F,C\) -> \(F\)"),
        ("abs", [], (), "got nothing"),
        ("rbf", [("N", "D")], (), "rbf needs 1 literal parameters, got 0"),
        ("rbf", [("N", "D")], (0.0,), "positive width sigma, got 0"),
        ("slice", [("N", "D")], (5.0, 2.0), "0 <= i < j <= 8, got 5, 2"),
        ("slice", [("N", "D")], (0.5, 2.0), "whole numbers"),
        ("slice", [("N", "D[2:5]")], (0.0, 2.0), r"got \(N, D\[2:5\]\)"),
        ("sin", [()], (), "An operator must be one of .* got 'sin'"),
    ],
)
def test_other_types_are_refused_with_what_is_needed(operator, children, params, message):
    with pytest.raises(IllTypedError, match=message):
        infer_type(operator, children, params)


@pytest.mark.parametrize("text", ["", "* ->", "-> *", "* *", "(a) -> (b), (c)"])
def test_a_malformed_signature_is_refused(text):
    with pytest.raises(ValueError, match="signature must read like"):
        Signature.parse(text)


def test_a_signature_of_unknown_axes_is_refused():
    with pytest.raises(ValueError, match="single lower-case letters or axis names, got 'ab'"):
        Signature.parse("(ab) -> (ab)")


def test_signatures_print_as_they_are_read():
    for text in (*BROADCAST, "(a,b), (b,c) -> (a,c)", "* -> ()"):
        assert str(Signature.parse(text)) == text


@pytest.mark.parametrize("name", list(OPERATORS))
class TestContract:
    @pytest.mark.parametrize("xp", [np, jnp], ids=["numpy", "jax"])
    def test_padding_never_leaks(self, name, xp):
        of = values()
        for f in applications(name):
            expected = evaluate(f, of)
            got = real_part(evaluate(f, of, is_padded=True, xp=xp), f)
            np.testing.assert_allclose(got, expected, rtol=2e-4, atol=1e-5, err_msg=str(f))

    def test_jit_and_vmap_give_what_eager_gives(self, name):
        f = applications(name)[0]
        first, second = values(1), values(2)
        stacked = jax.tree.map(lambda *arrays: jnp.stack(arrays), first, second)
        batched = jax.jit(jax.vmap(lambda of: evaluate(f, of)))(stacked)
        for row, of in zip(batched, (first, second), strict=True):
            np.testing.assert_allclose(row, evaluate(f, of), rtol=2e-5, atol=1e-6)

    def test_every_form_of_it_can_be_written(self, name):
        for f in applications(name):
            assert parse(str(f)) is f
            assert f.latex() and f.sympy() is not None and f.complexity >= f.size
            scalar = f if f.type == () else parse(f"mean({f})")
            for backend in ("numpy", "jax", "torch"):
                compile(scalar.code(backend), "code", "exec")

    def test_its_flops_are_a_positive_number(self, name):
        of = values()
        for f in applications(name):
            shapes = [evaluate(child, of).shape for child in f.children]
            assert OPERATORS[name].flops(shapes) > 0


def test_ones_own_operator_takes_five_lines(forget):
    register_operator("cube", lambda entries: entries**3)
    f = parse("sum(cube(WI))")
    assert float(evaluate(f, {"WI": jnp.asarray([1.0, 2.0])})) == 9.0
    assert f.latex() == r"\operatorname{sum}\left(\operatorname{cube}\left(w\right)\right)"
    assert str(f.sympy()) == "sum(cube(WI))"


def test_an_operator_without_source_text_leaves_a_stub_in_generated_code(forget):
    register_operator("cube", lambda entries: entries**3)
    code = parse("sum(cube(WI))").code("torch")
    assert "def cube(*arguments)" in code and "NotImplementedError" in code
    compile(code, "code", "exec")


def test_own_source_text_runs_in_generated_code(forget):
    register_operator("cube", lambda entries: entries**3, code="{0}**3")
    scope = {}
    exec(parse("sum(cube(WI + 1)*2)").code("numpy"), scope)
    features, labels = np.ones((4, 1), np.float32), np.asarray([0, 1, 0, 1])
    assert float(scope["pruning_function"](features, labels, np.asarray([[1.0]]))[0]) == 16.0


def test_an_own_operator_may_broadcast_and_take_parameters(forget):
    register_operator("maximum", jnp.maximum, signatures=BROADCAST, code="np.maximum({0}, {1})")
    register_operator(
        "power", lambda entries, exponent: entries**exponent, parameter_choices=((3.0,), (4.0,))
    )
    of = values()
    f = parse("sum(power(maximum(X, mX), 3))")
    expected = np.sum(np.maximum(np.asarray(of["X"]), np.asarray(of["mX"])) ** 3)
    np.testing.assert_allclose(evaluate(f, of), expected, rtol=1e-5)
    np.testing.assert_allclose(evaluate(f, of, is_padded=True), expected, rtol=1e-5)


def test_an_operator_that_combines_entries_must_read_masks(forget):
    with pytest.raises(ValueError, match=r"'top' combines entries .* uses_masks=True"):
        register_operator("top", jnp.max, signatures=("* -> ()",))


@pytest.mark.parametrize("name", ["var", "WI"])
def test_a_taken_operator_name_is_refused(name):
    with pytest.raises(ValueError, match="must be new"):
        register_operator(name, jnp.abs)


@pytest.mark.parametrize("name", ["a-b", "if"])
def test_an_operator_name_that_formulas_cannot_spell_is_refused(name):
    with pytest.raises(ValueError, match="must be an ASCII identifier"):
        register_operator(name, jnp.abs)

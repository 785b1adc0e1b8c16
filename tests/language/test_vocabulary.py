"""Operands and vocabularies."""

from __future__ import annotations

import pytest

from jaxprune.language.parsing import parse
from jaxprune.language.registration import register_operand
from jaxprune.language.vocabulary import DEFAULT_VOCABULARY, OPERANDS, PAPER_VOCABULARY, Vocabulary


@pytest.fixture
def own_operand():
    yield lambda **options: register_operand("entropy", **options)
    OPERANDS.pop("entropy", None)


def test_the_papers_vocabulary_lacks_our_extensions():
    assert PAPER_VOCABULARY.operands == ("X", "P", "Q", "mX", "mP", "mQ", "N", "NQ", "NX", "WI", "W")
    assert set(DEFAULT_VOCABULARY.operands) - set(PAPER_VOCABULARY.operands) == {
        "WO",
        "gamma",
        "beta",
        "GW",
        "GX",
    }


def test_class_operands_are_those_of_p_and_q():
    assert {name for name, operand in OPERANDS.items() if operand.per_class} == {
        "P",
        "Q",
        "mP",
        "mQ",
        "N",
        "NQ",
    }


def test_restricting_keeps_order_and_the_rest():
    vocabulary = Vocabulary(("WI", "W", "WO"), ("abs",), (0.5,))
    assert vocabulary.restrict({"WO", "WI", "nothing"}) == Vocabulary(("WI", "WO"), ("abs",), (0.5,))


def test_ones_own_operand_joins_the_language(own_operand):
    own_operand(type=("D",), read=lambda operands: operands.extras["entropy"])
    f = parse("mean(entropy*mX)")
    assert f.operands == {"entropy", "mX"}
    assert r"\mathrm{entropy}" in f.latex() and "entropy" in str(f.sympy())
    assert "entropy=None" in f.code("numpy") and "entropy: [C, D] own operand" in f.code("numpy")


def test_a_taken_name_is_refused(own_operand):
    with pytest.raises(ValueError, match="must be new, got 'WI', which is weights that produce"):
        register_operand("WI", type=(), read=lambda operands: None)


@pytest.mark.parametrize("name", ["mean", "variance", "labels", "np"])
def test_a_name_that_operators_or_generated_code_use_is_refused(name):
    with pytest.raises(
        ValueError, match=f"must be new, got '{name}', which is used by operators or generated code"
    ):
        register_operand(name, type=(), read=lambda operands: None)
    assert name not in OPERANDS


@pytest.mark.parametrize("name", ["2x", "a b", "ö", "lambda"])
def test_a_name_that_formulas_cannot_spell_is_refused(name):
    with pytest.raises(ValueError, match="must be an ASCII identifier"):
        register_operand(name, type=(), read=lambda operands: None)


def test_an_unknown_axis_is_refused(own_operand):
    with pytest.raises(ValueError, match=r"made of the axes D NX N NQ F O C, got \['Z'\]"):
        own_operand(type=("Z",), read=lambda operands: None)


def test_rows_of_a_class_depend_on_the_class():
    with pytest.raises(
        ValueError,
        match=r"'rows_test' has an axis for the examples of one class, .* Pass per_class=True, or use the axis NX",
    ):
        register_operand("rows_test", type=("N",), read=lambda operands: None)

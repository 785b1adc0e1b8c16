"""Expressions: immutable, typed, one object per formula."""

from __future__ import annotations

import copy
import gc
import pickle
import subprocess
import sys

import pytest
from hypothesis import given
from toy_formulas import expressions

from jaxprune.language import expression
from jaxprune.language.expression import Expression, apply, literal, operand, replace_children
from jaxprune.language.operators import IllTypedError
from jaxprune.language.parsing import parse


def test_size_depth_and_operands_by_hand():
    f = parse("sum(abs(WI)) + mean(X)")
    assert (f.size, f.depth, f.type, f.operands) == (6, 4, (), {"WI", "X"})


@pytest.mark.parametrize(
    ("text", "depth"),
    [
        ("N", 1),
        ("N + NQ - NX + 1 + 2", 2),
        ("2*N*NQ*NX", 2),
        ("N/NQ/NX", 3),
        ("2*(N + 1)", 3),
        ("N - (NQ - 1)", 2),
    ],
)
def test_a_chain_is_one_level(text, depth):
    assert parse(text).depth == depth


def test_costly_operators_are_more_complex():
    assert parse("sum(inverse(matmul(transpose(X), X)))").complexity == 7


def test_equal_formulas_are_one_object():
    assert parse("var(P) + 0.05") is parse("(var(P)) + 5e-2")
    assert parse("var(P) + 0.05") != parse("0.05 + var(P)")


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, lambda f: pickle.loads(pickle.dumps(f))])  # noqa: S301
def test_copies_are_the_same_object(duplicate):
    f = parse("mean(rbf(P, Q, 1))*-0.5")
    assert duplicate(f) is f


def test_forgotten_formulas_leave_the_table():
    parse("mean(X)*0.123456")
    gc.collect()
    assert not any(key[4] == 0.123456 for key in expression._INTERNED)


def test_hashes_are_the_same_in_every_process():
    program = "from jaxprune.language.parsing import parse; print(hash(parse('mean(rbf(P, Q, 1)) + 0.5')))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert int(done.stdout) == hash(parse("mean(rbf(P, Q, 1)) + 0.5"))


def test_walking_gives_each_node_once_after_its_children():
    f = parse("sum(square(mP - mX))*sum(square(mP - mX))")
    assert [str(node) for node in f.walk()] == [
        "mP", "mX", "mP - mX", "square(mP - mX)", "sum(square(mP - mX))", str(f),
    ]  # fmt: skip


@given(expressions(scalar=False))
def test_cached_facts_agree_with_their_definitions(f):
    assert f.fold(lambda node, sizes: 1 + sum(sizes)) == f.size
    assert {node.name for node in f.walk() if node.is_operand} == f.operands
    assert f.complexity >= f.size >= f.depth >= 1
    seen = set()
    for node in f.walk():
        assert seen.issuperset(node.children) and node not in seen
        seen.add(node)


def test_an_expression_cannot_be_changed():
    f = parse("mean(X)")
    with pytest.raises(AttributeError, match=r"cannot be changed, so 'name' cannot be set"):
        f.name = "Y"
    with pytest.raises(AttributeError, match=r"cannot be changed, so 'name' cannot be deleted"):
        del f.name


def test_an_expression_cannot_be_made_unchecked():
    with pytest.raises(TypeError, match=r"Build an Expression with operand"):
        Expression("mean", (operand("X"),))


def test_an_unknown_operand_is_refused():
    with pytest.raises(ValueError, match=r"An operand must be one of X P Q .* got 'Y'"):
        operand("Y")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_literal_is_finite(value):
    with pytest.raises(ValueError, match="must be a finite number"):
        literal(value)


def test_negative_zero_is_zero():
    assert literal(-0.0) is literal(0.0)


def test_ill_typed_formulas_cannot_be_built():
    with pytest.raises(IllTypedError, match=r"inner needs \(a\), \(a\) -> \(\), got \(F\), \(D\)"):
        apply("inner", operand("WI"), operand("mX"))


def test_replacing_children_checks_types():
    f = parse("mean_samples(P)")
    assert replace_children(f, [operand("X")]) is parse("mean_samples(X)")
    assert replace_children(operand("X"), []) is operand("X")
    with pytest.raises(IllTypedError, match="mean_samples needs"):
        replace_children(f, [operand("WI")])


def test_repr_can_be_typed_back():
    assert eval(repr(parse("mean(X)"))) is parse("mean(X)")  # noqa: S307

"""Random expressions are well typed, within limits, useful and decided by their key."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter

import jax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxprune.language.expression import operand
from jaxprune.language.operators import OPERATORS
from jaxprune.language.parsing import parse
from jaxprune.language.registration import register_operand, register_operator
from jaxprune.language.sampling import (
    Draws,
    Limits,
    is_constant,
    is_nonnegative,
    other_side,
    random_expression,
    target_size,
)
from jaxprune.language.vocabulary import DEFAULT_VOCABULARY, OPERANDS, PAPER_VOCABULARY, Vocabulary

SEEDS = st.integers(0, 2**31 - 1)
TYPES = [
    (),
    ("D",),
    ("F",),
    ("O",),
    ("N", "D"),
    ("NQ", "D"),
    ("F", "C"),
    ("D", "D"),
    ("N", "NQ"),
    ("D[0:4]",),
]


def _random_formulas(count, vocabulary=DEFAULT_VOCABULARY, **options):
    keys = jax.random.split(jax.random.key(7), count)
    return [random_expression(keys[index], vocabulary, **options) for index in range(count)]


def test_the_only_formulas_of_a_tiny_vocabulary_are_found():
    formulas = {
        str(f) for f in _random_formulas(60, Vocabulary(("WI",), ("sum", "abs")), limits=Limits(3, 3))
    }
    assert formulas == {"sum(WI)", "sum(abs(WI))", "abs(sum(WI))"}


@given(seed=SEEDS, type=st.sampled_from(TYPES))
def test_random_expressions_have_their_type_and_limits(seed, type):
    f = random_expression(jax.random.key(seed), DEFAULT_VOCABULARY, type=type)
    assert f.type == type
    assert f.size <= 40 and f.depth <= 8
    assert parse(str(f)) is f
    assert f.operands and not is_constant(f)


@given(seed=SEEDS, size=st.integers(2, 60), depth=st.integers(2, 12))
def test_any_limits_hold_without_dead_ends(seed, size, depth):
    limits = Limits(size, depth)
    assert limits.allow(random_expression(jax.random.key(seed), PAPER_VOCABULARY, limits=limits))


@given(seed=SEEDS, names=st.sets(st.sampled_from(DEFAULT_VOCABULARY.operands), min_size=1))
def test_restricted_vocabularies_are_respected(seed, names):
    vocabulary = DEFAULT_VOCABULARY.restrict(names)
    if names <= {"N", "NQ", "NX"}:
        with pytest.raises(ValueError, match="random_expression needs a vocabulary"):
            random_expression(jax.random.key(seed), vocabulary)
    else:
        f = random_expression(jax.random.key(seed), vocabulary)
        assert f.operands <= names


@given(seed=SEEDS)
def test_only_operators_of_the_vocabulary_appear(seed):
    vocabulary = Vocabulary(("P", "Q", "mP", "WI"), ("+", "/", "var", "mean", "sum"), (0.5,))
    f = random_expression(jax.random.key(seed), vocabulary)
    assert {node.operator for node in f.walk()} <= {*vocabulary.operators, "operand", "literal"}
    assert {node.value for node in f.walk() if node.is_literal} <= {0.5}


@given(seed=SEEDS)
def test_the_same_key_gives_the_same_formula(seed):
    key = jax.random.key(seed)
    assert random_expression(key, DEFAULT_VOCABULARY) is random_expression(key, DEFAULT_VOCABULARY)


@pytest.mark.slow
def test_another_process_gives_the_same_formulas():
    program = (
        "import jax; from jaxprune.language.vocabulary import DEFAULT_VOCABULARY as v\n"
        "from jaxprune.language.sampling import random_expression as r\n"
        "print([str(r(jax.random.key(s), v)) for s in range(50)])"
    )
    texts = [
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert texts[0] == texts[1]


def test_most_random_formulas_are_distinct_and_say_something():
    from jaxprune.language.canonical import canonical_form

    formulas = [canonical_form(f) for f in _random_formulas(300)]
    informative = {str(f) for f in formulas if not is_constant(f)}
    assert len(informative) > 0.6 * len(formulas)


def test_moments_are_frequent_and_matrix_operators_rare():
    counts = Counter(node.operator for f in _random_formulas(400) for node in f.walk())
    moments = sum(counts[name] for name in ("mean", "var", "std", "sum"))
    matrices = sum(counts[name] for name in ("inverse", "rbf", "matmul", "outer", "trace"))
    assert 0 < matrices < 0.15 * moments


def test_denominators_are_mostly_ridged():
    quotients = [
        n
        for f in _random_formulas(400)
        for n in f.walk()
        if n.operator == "/" and not n.children[1].is_literal
    ]
    ridged = [n for n in quotients if n.children[1].operator == "+" and is_nonnegative(n.children[1])]
    assert len(ridged) > 0.5 * len(quotients)


def test_generation_is_more_than_single_operands():
    assert all(f.children for f in _random_formulas(100))
    assert random_expression(jax.random.key(0), DEFAULT_VOCABULARY, limits=Limits(1, 1)).is_operand


def test_an_operand_of_ones_own_is_drawn():
    register_operand("entropy", type=(), read=lambda operands: None)
    try:
        assert any("entropy" in f.operands for f in _random_formulas(40, Vocabulary(("WI", "entropy"))))
    finally:
        del OPERANDS["entropy"]


def test_an_operator_of_ones_own_is_drawn():
    register_operator("cube", lambda values: values**3)
    try:
        drawn = [node.operator for f in _random_formulas(60) for node in f.walk()]
    finally:
        del OPERATORS["cube"]
    assert "cube" in drawn


@pytest.mark.parametrize(
    ("text", "mirrored"),
    [("mean(P) - mean(Q)", "mean(Q) - mean(P)"), ("sum(mP)/N", "sum(mQ)/NQ"), ("var(X)", "var(X)")],
)
def test_the_other_side_exchanges_the_class_and_the_others(text, mirrored):
    assert other_side(parse(text)) is parse(mirrored)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("var(P)/(var(Q) + 0.05)", True),
        ("sum(square(WI))*std(X)", True),
        ("mean(rbf(P, Q, 1))", True),
        ("N/NQ", True),
        ("var(P) - var(Q)", False),
        ("mean(P)", False),
        ("gamma", False),
    ],
)
def test_nonnegative_is_claimed_only_where_it_is_proved(text, expected):
    assert is_nonnegative(parse(text)) is expected


def test_target_sizes_stay_between_their_bounds():
    draws = Draws(jax.random.key(0))
    sizes = [target_size(draws, 3, 12) for _ in range(200)]
    assert min(sizes) >= 3 and max(sizes) == 12
    assert target_size(draws, 9, 9) == 9


def test_draws_look_uniform_normal_and_weighted():
    draws = Draws(jax.random.key(0))
    fractions = [draws.fraction() for _ in range(2000)]
    assert min(fractions) >= 0 and max(fractions) < 1 and abs(sum(fractions) / 2000 - 0.5) < 0.03
    normals = [draws.normal() for _ in range(2000)]
    assert abs(sum(normals) / 2000) < 0.1 and abs(sum(n * n for n in normals) / 2000 - 1) < 0.15
    assert Draws.of(draws) is draws
    firsts = Counter(draws.order([3.0, 1.0])[0] for _ in range(1000))
    assert abs(firsts[0] / 1000 - 0.75) < 0.05


@pytest.mark.parametrize("sizes", [(0, 8), (40, 0)])
def test_limits_below_one_are_refused(sizes):
    with pytest.raises(ValueError, match="Limits must be at least 1, got max_size="):
        Limits(*sizes)


def test_unreachable_types_are_named():
    with pytest.raises(ValueError, match=re.escape("reaches type (O) within 40 nodes and depth 8")):
        random_expression(jax.random.key(0), PAPER_VOCABULARY, type=("O",))
    assert operand("WO").type == ("O",)


@pytest.mark.parametrize("vocabulary", [Vocabulary(("WI", "Wi")), Vocabulary(("WI",), ("sum", "Wi"))])
def test_a_vocabulary_of_unknown_names_is_refused(vocabulary):
    with pytest.raises(ValueError, match=r"registered operands and operators, got Wi\. Register them first"):
        random_expression(jax.random.key(0), vocabulary)

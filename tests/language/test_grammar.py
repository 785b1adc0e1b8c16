"""Grammars promise exactly what generation can complete."""

from __future__ import annotations

import itertools

import jax
import pytest

from jaxprune.language.expression import apply, continues_chain, operand
from jaxprune.language.grammar import grammar_of
from jaxprune.language.operators import OPERATORS, infer_type
from jaxprune.language.productions import Goal, all_applications, all_productions
from jaxprune.language.registration import register_operator
from jaxprune.language.sampling import Draws, grow
from jaxprune.language.vocabulary import DEFAULT_VOCABULARY, PAPER_VOCABULARY, Vocabulary

TINY = Vocabulary(operands=("WI",), operators=("abs", "sum"), literals=(2.0,))


def test_tables_match_hand_counts():
    grammar = grammar_of(TINY)
    assert [grammar.least_nodes(Goal(("F",)), depth) for depth in (0, 1, 5)] == [None, 1, 1]
    assert [grammar.least_nodes(Goal(()), depth) for depth in (1, 2, 9)] == [None, 2, 2]
    assert grammar.least_nodes(Goal((), informative=False), 1) == 1  # the literal
    assert grammar.least_nodes(Goal(("D",)), 9) is None


def test_reachable_means_large_and_deep_enough():
    grammar = grammar_of(TINY)
    assert grammar.is_reachable(Goal(()), depth=2, size=2)
    assert not grammar.is_reachable(Goal(()), depth=1, size=40)
    assert not grammar.is_reachable(Goal(()), depth=8, size=1)
    assert not grammar.is_reachable(Goal(("O",)), depth=8, size=40)


def test_chains_are_those_of_expression_depth():
    for above, head in itertools.product("+-*/", repeat=2):
        inner = apply(head, operand("gamma"), operand("beta"))
        outer = apply(above, operand("N"), inner)
        assert outer.depth == inner.depth + 1 - continues_chain(head, above)


def test_every_application_is_well_typed():
    for operator, params, child_types, result in all_applications(DEFAULT_VOCABULARY):
        assert infer_type(operator, child_types, params) == result


@pytest.mark.parametrize("vocabulary", [DEFAULT_VOCABULARY, PAPER_VOCABULARY], ids=["default", "paper"])
def test_every_operator_of_the_vocabulary_is_used(vocabulary):
    heads = {
        production.head for productions in all_productions(vocabulary).values() for production in productions
    }
    assert heads >= OPERATORS.keys()
    assert heads >= set(vocabulary.operands)


def test_uniform_style_has_no_idioms():
    kinds = {
        production.kind
        for productions in all_productions(PAPER_VOCABULARY, "uniform").values()
        for production in productions
    }
    assert kinds == {"operand", "literal", "operator"}


@pytest.mark.parametrize("style", ["useful", "uniform"])
def test_every_goal_grows_to_its_least_size_at_every_depth(style):
    grammar = grammar_of(DEFAULT_VOCABULARY, style)
    draws = Draws(jax.random.key(0))
    goals = all_productions(DEFAULT_VOCABULARY, style)
    for goal, depth in itertools.product(goals, range(1, 9)):
        least = grammar.least_nodes(goal, depth)
        if least is None:
            continue
        smallest = grow(draws, grammar, goal, depth, least)
        assert smallest.type == goal.type
        assert smallest.size <= least and smallest.depth <= depth
        larger = grow(draws, grammar, goal, depth, least + 9)
        assert larger.type == goal.type and larger.size <= least + 9 and larger.depth <= depth


def test_a_registered_operator_joins_the_grammar():
    vocabulary = Vocabulary(operands=("WI",), literals=(1.0,))
    before = grammar_of(vocabulary)
    register_operator("cube", lambda values: values**3)
    try:
        heads = {production.head for production in grammar_of(vocabulary).alternatives([("F",)])}
        assert "cube" in heads
        assert "cube" not in {production.head for production in before.alternatives([("F",)])}
    finally:
        del OPERATORS["cube"]
    assert "cube" not in {production.head for production in grammar_of(vocabulary).alternatives([("F",)])}


def test_grammars_are_built_once():
    assert grammar_of(TINY) is grammar_of(
        Vocabulary(operands=("WI",), operators=("abs", "sum"), literals=(2.0,))
    )


def test_old_grammars_are_forgotten():
    first = grammar_of(TINY)
    for number in range(40):
        grammar_of(Vocabulary(operands=("WI",), operators=("abs", "sum"), literals=(float(number + 3),)))
    assert grammar_of(TINY) is not first


def test_nothing_is_undone_right_away():
    grammar = grammar_of(DEFAULT_VOCABULARY)
    for above in ("abs", "square", "sqrt"):
        assert above not in {
            production.head for production in grammar.choices(Goal(()), 6, 20, above).productions
        }


def test_leaf_stage_takes_leaves_or_the_smallest_trees():
    grammar = grammar_of(PAPER_VOCABULARY, "uniform")
    assert all(
        production.is_leaf for production in grammar.choices(Goal(("D",)), 4, 9, stage="leaf").productions
    )
    smallest = grammar.choices(Goal(()), 4, 9, stage="leaf").productions
    assert {production.head for production in smallest} >= {"mean", "var"} and not any(
        production.is_leaf for production in smallest
    )
    assert not any(
        production.is_leaf for production in grammar.choices(Goal(("D",)), 4, 9, stage="branch").productions
    )

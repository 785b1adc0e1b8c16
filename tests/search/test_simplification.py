"""Shorter formulas of the same behaviour, formulas without a part, and formulas with better numbers."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from jaxprune.language.canonical import canonical_form
from jaxprune.language.library import library, own_seeds
from jaxprune.language.parsing import parse
from jaxprune.language.sampling import Limits, is_constant, random_expression
from jaxprune.language.vocabulary import DEFAULT_VOCABULARY
from jaxprune.observation.operands import Operands
from jaxprune.scoring.populations import score_with_status
from jaxprune.search.simplification import ablations, simplify, tune_constants
from jaxprune.types import Invalid

RNG = np.random.default_rng(0)
BASES = [
    Operands.from_arrays(
        features=RNG.normal(0.3, 1.0, (24, 3, 3, 6)),
        labels=np.arange(24) % 4,
        kernel=RNG.normal(size=(3, 3, 2, 6)),
        outgoing=RNG.normal(size=(3, 3, 6, 4)),
    )
    for _ in range(2)
]
VOCABULARY = DEFAULT_VOCABULARY.restrict(["X", "P", "Q", "mX", "mP", "mQ", "N", "NQ", "WI", "WO"])
FORMULAS = {
    name: f for name, f in {**library, **own_seeds}.items() if f.operands <= set(VOCABULARY.operands) | {"W"}
}


def orders(formulas):
    """The order of the channels on every base, from the least important one."""
    scores = np.array([score_with_status(formulas, operands)[0] for operands in BASES])
    return [
        tuple(map(tuple, np.argsort(by_base, axis=-1).tolist()))
        if np.isfinite(by_base).all() and (np.ptp(by_base, axis=-1) > 0).all()
        else Invalid("not finite or constant")
        for by_base in scores.swapaxes(0, 1)
    ]


def simplified(text, behaviour_of=orders, **options):
    return str(simplify(parse(text), behaviour_of, **options))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("sum(square(mP - mX)) + 0.5", "sum(square(mP - mX))"),
        ("3*sum(square(mP - mX))", "sum(square(mP - mX))"),
        ("sqrt(sum(square(WI)))", "sum(square(WI))"),
        ("square(sum(abs(WI)) + 1)", "sum(abs(WI))"),
        ("sum(abs(WI))/(NX + 0.5) - 2", "sum(abs(WI))"),
        ("0 - 1/sum(abs(WI))", "sum(abs(WI))"),
        ("1/(1/sum(abs(WI)))", "sum(abs(WI))"),
        ("sum(abs(WI) + 0.5)", "sum(abs(WI))"),
        ("sum(abs(WI))", "sum(abs(WI))"),
    ],
)
def test_parts_that_do_not_change_the_order_vanish(text, expected):
    assert simplified(text) == expected


@pytest.mark.parametrize("text", ["sum(square(mP - mX))*sum(square(WO))", "sum(abs(WI)) - sum(abs(WO))"])
def test_parts_that_change_the_order_remain(text):
    assert simplified(text) == text


def test_only_the_behaviour_decides_and_not_the_order_of_the_scores():
    """A root may change plans where scores are divided by their mean; here it does."""

    def behaviours(formulas):
        return ["root" if f.operator == "sqrt" else "none" for f in formulas]

    assert simplified("sqrt(sum(square(WI)))", behaviours) == "sqrt(sum(WI))"


def test_a_numerator_that_changes_nothing_becomes_one():
    def behaviours(formulas):
        return [str(f).endswith("/sum(abs(WI))") for f in formulas]

    assert simplified("square(mean(X))/sum(abs(WI))", behaviours) == "1/sum(abs(WI))"


def test_of_several_equal_forms_the_smallest_is_returned():
    assert (
        simplified("sum(square(mP - mX)) + sum(WI)", lambda formulas: ["same"] * len(formulas)) == "sum(WI)"
    )


def test_forms_are_tried_together_and_once():
    calls = []

    def behaviours(formulas):
        calls.append(list(formulas))
        return orders(formulas)

    f = parse("sqrt(sum(square(WI)) + 0.5)*2")
    simplify(f, behaviours)
    tried = [form for call in calls for form in call]
    assert calls[0] == [f]
    assert all(form.complexity < f.complexity for form in tried[1:])
    assert len(tried) == len(set(tried))
    assert len(calls) <= 5
    assert all(calls)


def test_a_formula_that_is_invalid_is_not_simplified():
    with pytest.raises(ValueError, match=r"needs a valid formula, got mean\(P\)/0, invalid: not finite"):
        simplified("mean(P)/0")


def test_breadth_is_at_least_one():
    with pytest.raises(ValueError, match="breadth >= 1, got 0"):
        simplified("sum(WI)", breadth=0)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([1, 4]))
def test_simple_forms_behave_the_same_and_cannot_be_simplified_again(seed, breadth):
    f = random_expression(jax.random.key(seed), VOCABULARY, limits=Limits(16))
    (behaviour,) = orders([f])
    assume(not isinstance(behaviour, Invalid))
    simple = simplify(f, orders, breadth=breadth)
    assert orders([simple]) == [behaviour]
    assert simple is f or simple.complexity < f.complexity
    assert simplify(simple, orders, breadth=breadth) is simple


def rests(text):
    return {removed: str(rest) for removed, rest in ablations(parse(text))}


def test_a_product_of_three_loses_each_factor_and_each_inner_part():
    assert rests("std(GW)*std(WO)*sum(square(mP - mX))") == {
        "std(GW)": "std(WO)*sum(square(mP - mX))",
        "std(WO)": "std(GW)*sum(square(mP - mX))",
        "sum(square(mP - mX))": "std(GW)*std(WO)",
        "square of mP - mX": "std(GW)*std(WO)*sum(mP - mX)",
        "mP": "std(GW)*std(WO)*sum(square(mX))",
        "mX": "std(GW)*std(WO)*sum(square(mP))",
        "GW (WI instead)": "std(WI)*std(WO)*sum(square(mP - mX))",
    }


def test_a_sum_loses_each_summand_with_its_sign():
    assert rests("mean(X) - sum(WI) + std(WO)") == {
        "mean(X)": "std(WO) - sum(WI)",
        "sum(WI)": "mean(X) + std(WO)",
        "std(WO)": "mean(X) - sum(WI)",
    }
    assert rests("mean(X) - sum(WI)")["mean(X)"] == "-1*sum(WI)"


def test_a_quotient_loses_its_numerator_its_denominator_and_the_parts_of_both():
    assert rests("var(P)/(var(Q) + 0.05)") == {
        "var(P)": "1/(var(Q) + 0.05)",
        "var(Q) + 0.05": "var(P)",
        "var(Q)": "var(P)/0.05",
        "0.05": "var(P)/var(Q)",
        "P (X instead)": "var(X)/(var(Q) + 0.05)",
        "Q (X instead)": "var(P)/(var(X) + 0.05)",
    }


def test_the_class_is_taken_from_an_operand_everywhere_at_once():
    assert rests("sum(mP*mP)*N")["mP (mX instead)"] == "N*sum(square(mX))"


def test_what_would_be_zero_or_equal_for_all_channels_is_left_out():
    assert rests("sum(square(mP - mX))").keys() == {"square of mP - mX", "mP", "mX"}
    assert rests("sum(WI)*N") == {"N": "sum(WI)", "N (NX instead)": "NX*sum(WI)"}
    assert rests("sum(WI)") == rests("0 - sum(WI)") == {}


@pytest.mark.parametrize("f", [*FORMULAS.values()], ids=[*FORMULAS])
def test_ablations_are_different_formulas_that_rank_channels(f):
    listed = [rest for _, rest in ablations(f)]
    assert len({*listed, canonical_form(f)}) == len(listed) + 1
    assert all(rest.type == () and not is_constant(rest) for rest in listed)
    assert all(rest is canonical_form(rest) for rest in listed)


def near(*targets):
    """A fitness that is best with these numbers, in the order of the text, and None with any other count."""

    def fitness_of(formulas):
        numbers = [[node.value for node in f.walk() if node.is_literal] for f in formulas]
        return [
            -sum(abs(np.log2(number / target)) for number, target in zip(found, targets, strict=True))
            if len(found) == len(targets)
            else None
            for found in numbers
        ]

    return fitness_of


def test_numbers_move_to_where_the_fitness_is_best():
    tuned = tune_constants(parse("var(P)/(var(Q) + 0.05) + 3*mean(X)"), near(0.2, 0.75), threshold=0.1)
    assert str(tuned) == "var(P)/(var(Q) + 0.2) + 0.75*mean(X)"


def test_each_round_changes_one_number():
    f = parse("var(P)/(var(Q) + 0.05) + 3*mean(X)")
    assert tune_constants(f, near(0.1, 0.75), threshold=0.1, rounds=0) is f
    once = tune_constants(f, near(0.1, 0.75), threshold=0.1, rounds=1)
    assert str(once) == "var(P)/(var(Q) + 0.05) + 0.75*mean(X)"


def test_a_number_may_move_far_in_several_rounds():
    assert str(tune_constants(parse("std(X) + 0.05*N"), near(0.8), threshold=0.1)) == "std(X) + 0.8*N"


def test_numbers_are_rounded_to_three_digits():
    assert str(tune_constants(parse("std(X) + 0.125"), near(0.03), threshold=0.1)) == "std(X) + 0.0312"


def test_a_small_improvement_is_not_taken():
    f = parse("var(P)/(var(Q) + 0.05)")
    assert tune_constants(f, near(0.1), threshold=1.0) is f
    assert tune_constants(f, near(0.1), threshold=0.99) is not f


def test_a_summand_may_be_dropped_but_a_factor_is_never_zero():
    tried = []

    def fitness_of(formulas):
        tried.extend(map(str, formulas))
        return [-float(f.size) for f in formulas]

    assert (
        str(tune_constants(parse("2*var(P)/(var(Q) + 0.05)"), fitness_of, threshold=0.5)) == "2*var(P)/var(Q)"
    )
    assert not any(text.startswith("0*") for text in tried)


def test_a_formula_without_numbers_is_not_measured():
    def refuse(formulas):
        raise AssertionError("there is nothing to measure")

    for text in ("sum(abs(WI))", "0 - sum(WI)"):
        assert tune_constants(parse(text), refuse, threshold=0.1) is parse(text)


def test_changes_that_are_invalid_are_not_taken():
    f = parse("var(P)/(var(Q) + 0.05)")
    assert tune_constants(f, lambda formulas: [0.0 if g is f else None for g in formulas], threshold=0.0) is f


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": -1.0}, "threshold >= 0 and rounds >= 0, got -1.0 and 4"),
        ({"threshold": 0.0, "rounds": -1}, "got 0.0 and -1"),
        ({"threshold": 0.0}, r"needs a valid formula, got sum\(WI\) \+ 1, which has no fitness"),
    ],
)
def test_what_cannot_be_tuned_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        tune_constants(parse("sum(WI) + 1"), lambda formulas: [None] * len(formulas), **options)

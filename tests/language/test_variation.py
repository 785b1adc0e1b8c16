"""Every way to vary a formula keeps its type and the limits, and is decided by its key."""

from __future__ import annotations

import itertools
import re
from collections import Counter

import jax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxprune.language.expression import apply, literal, operand
from jaxprune.language.library import library, own_seeds
from jaxprune.language.mutation import all_subtrees, replace_subtree, subtree_at
from jaxprune.language.operators import OPERATORS
from jaxprune.language.parsing import parse
from jaxprune.language.registration import register_operator
from jaxprune.language.sampling import Limits, is_constant, random_expression
from jaxprune.language.variation import (
    VariationSettings,
    crossover,
    jitter_constants,
    mutate_hoist,
    mutate_point,
    mutate_subtree,
    paper_crossover,
    paper_mutation,
    vary,
)
from jaxprune.language.vocabulary import DEFAULT_VOCABULARY, PAPER_VOCABULARY, Vocabulary

SEEDS = st.integers(0, 2**31 - 1)
KNOWN = [*library.values(), *own_seeds.values()]
LIMITS = Limits()
MUTATIONS = {
    "subtree": lambda key, f, g, limits: mutate_subtree(key, f, DEFAULT_VOCABULARY, limits),
    "point": lambda key, f, g, limits: mutate_point(key, f, DEFAULT_VOCABULARY, limits),
    "hoist": lambda key, f, g, limits: mutate_hoist(key, f, limits),
    "constants": lambda key, f, g, limits: jitter_constants(key, f, limits),
    "crossover": lambda key, f, g, limits: crossover(key, f, g, limits),
    "paper_mutation": lambda key, f, g, limits: paper_mutation(key, f, PAPER_VOCABULARY, limits),
    "paper_crossover": lambda key, f, g, limits: paper_crossover(key, f, g, limits),
}
each_operator = pytest.mark.parametrize("operator", MUTATIONS.values(), ids=MUTATIONS)


@st.composite
def formulas(draw):
    seed = draw(st.integers(0, 2**31 - 1))
    known = draw(st.sampled_from([None, *KNOWN]))
    return known if known is not None else random_expression(jax.random.key(seed), DEFAULT_VOCABULARY)


@each_operator
@given(seed=SEEDS, f=formulas(), g=formulas())
def test_children_are_well_typed_and_within_limits(operator, seed, f, g):
    key = jax.random.key(seed)
    child = operator(key, f, g, LIMITS)
    assert child.type == ()
    assert child.size <= 40 and child.depth <= 8
    assert parse(str(child)) is child
    assert operator(key, f, g, LIMITS) is child


@each_operator
@given(seed=SEEDS, f=formulas(), g=formulas())
def test_limits_hold_for_formulas_that_are_already_at_them(operator, seed, f, g):
    tight = Limits(f.size, f.depth)
    assert tight.allow(operator(jax.random.key(seed), f, g, tight))


@each_operator
def test_formulas_beyond_the_limits_are_refused(operator):
    f = library["sym_div"]
    with pytest.raises(
        ValueError, match=re.escape(f"needs a formula of at most 5 nodes and depth 8, got {f.size}")
    ):
        operator(jax.random.key(0), f, f, Limits(5, 8))


@pytest.mark.parametrize("type", [("D",), ("N", "D"), ("F", "C")])
@each_operator
def test_formulas_of_other_types_keep_theirs(operator, type):
    for seed in range(20):
        f = random_expression(jax.random.key(seed), PAPER_VOCABULARY, type=type)
        assert operator(jax.random.key(seed), f, f, LIMITS).type == type


def test_subtrees_know_their_limits_by_hand():
    f = parse("sum(abs(WI)) + N*N*2 + 1")
    limits = {
        str(subtree.node): (subtree.max_depth, subtree.max_size) for subtree in all_subtrees(f, Limits(20, 5))
    }
    assert f.size == 11 and f.depth == 4
    assert limits["sum(abs(WI)) + N*N*2 + 1"] == (5, 20)
    assert limits["sum(abs(WI)) + N*N*2"] == (4, 18)  # continues the chain: its parts have 4 levels too
    assert limits["sum(abs(WI))"] == (4, 12) and limits["abs(WI)"] == (3, 11) and limits["WI"] == (2, 10)
    assert (
        limits["N*N*2"] == (4, 14)
        and limits["N*N"] == (3, 12)
        and limits["N"] == (3, 10)
        and limits["1"] == (4, 10)
    )


@given(seed=SEEDS, f=formulas(), data=st.data())
def test_a_subtree_accepts_exactly_what_keeps_the_limits(seed, f, data):
    limits = Limits(20, 6)
    if not limits.allow(f):
        return
    new = random_expression(jax.random.key(seed), DEFAULT_VOCABULARY)
    scalars = [subtree for subtree in all_subtrees(f, limits) if subtree.node.type == ()]
    subtree = data.draw(st.sampled_from(scalars))
    assert subtree_at(f, subtree.path) is subtree.node
    assert subtree.accepts(new) == limits.allow(replace_subtree(f, subtree.path, new))


@given(seed=SEEDS, f=formulas())
def test_a_subtree_mutation_changes_the_formula(seed, f):
    child = mutate_subtree(jax.random.key(seed), f, DEFAULT_VOCABULARY)
    assert child is not f and not is_constant(child)


def test_point_mutation_finds_exactly_the_neighbours():
    vocabulary = Vocabulary(("WI", "WO"), ("sum", "mean", "abs", "square"), (1.0,))
    f = parse("sum(abs(WI))")
    keys = jax.random.split(jax.random.key(0), 100)
    children = {str(mutate_point(key, f, vocabulary)) for key in keys}
    assert children == {"mean(abs(WI))", "sum(square(WI))", "sum(abs(WO))", "sum(sum(WI))", "sum(mean(WI))"}


def test_point_mutation_without_a_neighbour_returns_the_formula():
    f = parse("sum(WI)")
    assert mutate_point(jax.random.key(0), f, Vocabulary(("WI",), ("sum",), (1.0,))) is f


@given(seed=SEEDS, f=formulas())
def test_hoisting_shortens(seed, f):
    child = mutate_hoist(jax.random.key(seed), f)
    assert child is f or child.size < f.size


def test_hoisting_an_operand_returns_it():
    assert mutate_hoist(jax.random.key(0), operand("gamma")) is operand("gamma")


@given(seed=SEEDS, value=st.floats(1e-8, 1e8), sign=st.sampled_from([-1.0, 1.0]))
def test_jitter_keeps_signs_and_shapes(seed, value, sign):
    f = apply("/", operand("gamma"), apply("+", operand("beta"), literal(sign * value)))
    child = jitter_constants(jax.random.key(seed), f)
    jittered = child.children[1].children[1].value
    assert jittered * sign > 0 and 0.02 < jittered / (sign * value) < 50
    assert child.children[0] is f.children[0] and child.size == f.size


def test_jitter_is_log_normal_around_the_constant():
    f = parse("gamma + 0.05")
    keys = jax.random.split(jax.random.key(0), 400)
    values = sorted(jitter_constants(key, f).children[1].value for key in keys)
    assert 0.045 < values[200] < 0.055
    assert 0.026 < values[63] < 0.034 and 0.073 < values[336] < 0.095  # one spread of 0.5 either side


def test_jitter_moves_kernel_widths_but_neither_zeros_nor_slices():
    f = parse("mean(rbf(slice(P, 0, 4), 1)) + 0")
    children = [jitter_constants(jax.random.key(seed), f) for seed in range(5)]
    assert all(
        re.fullmatch(r"mean\(rbf\(slice\(P, 0, 4\), [0-9.]+\)\) \+ 0", str(child)) for child in children
    )
    assert len(set(children)) == 5
    assert jitter_constants(jax.random.key(0), parse("sum(slice(mX, 0, 4))*0")) is parse(
        "sum(slice(mX, 0, 4))*0"
    )


def test_jitter_respects_bounds_of_ones_own_parameters():
    register_operator(
        "power",
        lambda values, exponent: values**exponent,
        parameter_choices=((0.5,),),
        check_params=lambda params: "" if params == (0.5,) else "takes 0.5 alone.",
    )
    try:
        f = apply("power", operand("gamma"), params=(0.5,))
        assert jitter_constants(jax.random.key(0), f) is f
    finally:
        del OPERATORS["power"]


@given(seed=SEEDS, a=formulas(), b=formulas())
def test_crossover_takes_only_from_its_parents(seed, a, b):
    child = crossover(jax.random.key(seed), a, b)
    assert child is a or child is not b
    assert child.operands <= a.operands | b.operands


def test_crossover_of_two_that_differ_in_one_part_is_never_the_second():
    a, b = library["geometric_median"], library["l2"]
    children = {crossover(jax.random.key(seed), a, b) for seed in range(40)}
    assert b not in children and len(children) > 1


def test_crossover_without_a_common_type_returns_the_first():
    assert crossover(jax.random.key(0), parse("sum(WO)"), parse("abs(gamma)"), Limits(2, 2)) is not None
    assert crossover(jax.random.key(0), parse("gamma"), parse("beta")) is parse("gamma")
    assert paper_crossover(jax.random.key(0), parse("sum(WO)"), parse("sum(WI)")) is parse("sum(WO)")


def test_paper_mutation_of_an_unreachable_formula_returns_it():
    f = operand("WO")
    assert paper_mutation(jax.random.key(0), f, Vocabulary(("WI",), ("abs",), ())) is f


def test_paper_mutation_grows_full_trees_of_height_up_to_four():
    vocabulary = Vocabulary(("gamma", "beta"), ("square", "/"), ())
    heights = Counter()
    for key in jax.random.split(jax.random.key(0), 300):
        child = paper_mutation(key, operand("gamma"), vocabulary)
        heights[child.depth - 1] += 1
    assert set(heights) == {0, 1, 2, 3, 4}


@given(seed=SEEDS, parents=st.lists(formulas(), max_size=3))
def test_varying_gives_a_new_legal_formula(seed, parents):
    key = jax.random.key(seed)
    child, origin = vary(key, parents, DEFAULT_VOCABULARY)
    assert child.type == () and LIMITS.allow(child)
    assert origin in VariationSettings().weights()
    assert not parents or child is not parents[0]
    assert vary(key, parents, DEFAULT_VOCABULARY) == (child, origin)


@given(seed=SEEDS, parents=st.lists(formulas(), min_size=1, max_size=2))
def test_the_paper_preset_stays_legal(seed, parents):
    child, origin = vary(
        jax.random.key(seed), parents, PAPER_VOCABULARY, settings=VariationSettings(preset="paper")
    )
    assert child.type == () and LIMITS.allow(child)
    assert origin in ("paper_crossover", "paper_mutation", "paper_crossover+mutation", "clone")
    assert origin != "clone" or child is parents[0]


def test_paper_operators_come_as_often_as_their_probabilities_say():
    settings = VariationSettings(preset="paper")
    keys = jax.random.split(jax.random.key(0), 400)
    origins = Counter(vary(key, KNOWN[:2], PAPER_VOCABULARY, settings=settings)[1] for key in keys)
    assert abs(origins["paper_crossover+mutation"] / 400 - 0.5625) < 0.08
    assert abs(origins["clone"] / 400 - 0.0625) < 0.04


def test_weights_choose_the_operator():
    for name in ("subtree", "crossover", "point", "hoist", "constants", "random"):
        settings = VariationSettings(**{**dict.fromkeys(VariationSettings().weights(), 0.0), name: 1.0})
        origins = {
            vary(
                jax.random.key(seed),
                [library["sym_div"], library["t_stat"]],
                PAPER_VOCABULARY,
                settings=settings,
            )[1]
            for seed in range(5)
        }
        assert origins == {name}


def test_what_cannot_be_jittered_is_mutated():
    settings = VariationSettings(subtree=0, crossover=0, point=0, hoist=0, constants=1, random=0)
    child, origin = vary(jax.random.key(0), [parse("sum(abs(WI))")], PAPER_VOCABULARY, settings=settings)
    assert origin == "subtree" and child is not parse("sum(abs(WI))")


def test_a_vocabulary_of_one_formula_gives_clones():
    only = parse("sum(WI)")
    assert vary(jax.random.key(0), [only], Vocabulary(("WI",), ("sum",), ())) == (only, "clone")


def test_parents_beyond_the_limits_are_passed_over():
    child, origin = vary(jax.random.key(0), [library["sym_div"]], PAPER_VOCABULARY, Limits(8, 5))
    assert origin == "random" and Limits(8, 5).allow(child)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"preset": "wild"}, "must be 'default' or 'paper', got 'wild'"),
        ({"point": -1.0}, "weights must be >= 0 and not all 0"),
        (dict.fromkeys(VariationSettings().weights(), 0.0), "weights must be >= 0 and not all 0"),
        ({"paper_mutation_probability": 1.5}, re.escape("must be in [0, 1], got 1.5")),
    ],
)
def test_impossible_settings_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        VariationSettings(**options)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_hundred_thousand_of_each_are_valid():
    """Generations, mutations and crossovers: 0 ill-typed, 0 beyond the limits, and texts parse back."""
    mutations = itertools.cycle(operator for name, operator in MUTATIONS.items() if "crossover" not in name)
    crossovers = itertools.cycle([MUTATIONS["crossover"], MUTATIONS["paper_crossover"]])
    pool = (KNOWN * 8)[:97]  # a prime, so that every mutation meets every place
    for start in range(10):
        keys = jax.random.split(jax.random.key(start), 10_000)
        for index in range(10_000):
            key, mate = keys[index], pool[index % len(pool)]
            f = random_expression(key, DEFAULT_VOCABULARY)
            mutant = next(mutations)(key, mate, f, LIMITS)
            child = next(crossovers)(key, mate, f, LIMITS)
            for new in (f, mutant, child):
                assert new.type == () and new.size <= 40 and new.depth <= 8
            for new in (f, (mutant, child)[index % 2]):  # parsing is most of the time
                assert parse(str(new)) is new
            pool[index % len(pool)] = max(f, mutant, child, key=lambda formula: formula.size)
            if index % 50 == 0:  # or the pool grows to the limits and stays there
                pool[index % len(pool)] = KNOWN[index % len(KNOWN)]

"""Formulas are rewritten only to what means the same, and values are remembered as long as operands live."""

import copy
import pickle

import numpy as np
import pytest
from float64_oracle import oracle
from test_against_oracle import FEW, functions_for

from jaxprune.language.canonical import shared_form
from jaxprune.language.parsing import parse
from jaxprune.observation.observed import Observed
from jaxprune.observation.operands import Operands
from jaxprune.scoring import status as producers
from jaxprune.scoring.ranking import rank_population, score_functions
from jaxprune.scoring.scorer import Scorer


@pytest.mark.parametrize(
    ("text", "shared"),
    [
        ("NX + N", "N + NX"),
        ("sum(mean(WI)) + mean(product(WI))", "product(WI) + mean(WI)"),
        ("abs(abs(N))/abs(var(P))", "abs(N)/var(P)"),
        ("square(abs(gamma))", "square(gamma)"),
        ("trace(transpose(transpose(matmul(transpose(W), W))))", "trace(matmul(transpose(W), W))"),
        ("mean(outer(mX, mP))", "mean(mX)*mean(mP)"),
    ],
)
def test_what_is_equal_is_one(text, shared):
    assert shared_form(parse(text)) is shared_form(parse(shared))


@pytest.mark.parametrize("text", ["N - N", "N/N", "abs(sqrt(N))", "N/NX", "sqrt(square(N))", "std(N)", "0*N"])
def test_what_could_hide_a_number_that_is_not_finite_stays(text):
    assert shared_form(parse(text)) is parse(text)


@pytest.mark.parametrize("name", FEW)
def test_random_formulas_keep_their_meaning_to_the_last_bit(name):
    changed = 0
    for f in functions_for(FEW[name], range(300)):
        shared = shared_form(f)
        assert shared_form(shared) is shared
        if shared is f:
            continue
        changed += 1
        before, after = oracle(f, FEW[name]).scores, oracle(shared, FEW[name]).scores
        if "outer" in str(f):
            np.testing.assert_allclose(after, before, rtol=1e-9)
        else:
            np.testing.assert_array_equal(after, before, err_msg=str(f))
    assert changed > 50


@pytest.mark.parametrize("reduction", ["sum", "mean", "var", "std"])
def test_outer_products_are_reduced_without_being_written_down(reduction):
    layer = FEW["convolution"]
    f = parse(f"{reduction}(outer(mX - mQ, mP))")
    assert "outer" not in str(shared_form(f))
    expected = oracle(f, layer)
    given = Operands.from_arrays(**layer)
    found = Scorer(given).run([f])[""].scores[0, 0]
    np.testing.assert_allclose(found, expected.scores, atol=1e-5 * np.max(expected.largest))


def observed():
    return Observed(
        {"conv.kernel": Operands.from_arrays(**FEW["convolution"])}, {"conv.kernel": ("conv.kernel",)}
    )


def test_another_generation_knows_the_values_of_the_last_one(monkeypatch):
    operands, made = observed(), []
    monkeypatch.setattr(producers, "Scorer", lambda given: made.append(Scorer(given)) or made[-1])
    first = functions_for(FEW["convolution"], range(40))
    before = rank_population(first, operands)
    after = rank_population(first, operands)
    assert len(made) == 1
    assert [str(each) for each in before] == [str(each) for each in after]
    score_functions(first, observed())
    assert len(made) == 2


@pytest.mark.parametrize(
    "copied",
    [copy.copy, copy.deepcopy, lambda it: pickle.loads(pickle.dumps(it))],  # noqa: S301
)
def test_what_is_remembered_stays_out_of_copies(copied):
    operands, functions = observed(), functions_for(FEW["convolution"], range(5))
    before = score_functions(functions, operands)
    again = copied(operands)
    assert not again._cache
    assert again.groups == operands.groups
    for one, other in zip(before, score_functions(functions, again), strict=True):
        assert (one.status, one.detail) == (other.status, other.detail)


def test_gradients_are_filled_in_once():
    filled = observed().with_gradients()
    assert filled.has_gradients
    again = Observed(
        {"conv.kernel": Operands.from_arrays(**FEW["dense"])},
        {"conv.kernel": ("conv.kernel",)},
        lambda: {"conv.kernel": filled["conv.kernel"].gradients},
    )
    assert again.with_gradients() is again.with_gradients()

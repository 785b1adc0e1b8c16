"""After `warm_up` nothing is compiled: not for other populations, nor for the same network when it has been pruned."""

import jax
import numpy as np
import pytest
from test_engine import FUNCTIONS, layer
from test_population_scores import LOWERINGS, assert_close

from jaxprune.language.operands import DEFAULT_VOCABULARY
from jaxprune.language.parsing import parse
from jaxprune.language.sampling import random_expression
from jaxprune.scoring.evaluator import Scorer

BUDGET = 1 << 18
"""So small that the table is."""
COUNTS = (6, 5, 5)


def population(seed, size=256):
    """Different random functions of every kind."""
    root = jax.random.key(seed)
    found = {}
    number = 0
    while len(found) < size:
        found[random_expression(jax.random.fold_in(root, number), DEFAULT_VOCABULARY)] = None
        number += 1
    return list(found)


@pytest.fixture(scope="module")
def network():
    return {
        "conv1": layer(0, channels=5, positions=8, entries=5, outgoing=6, counts=COUNTS),
        "conv2": layer(1, channels=7, positions=4, entries=8, outgoing=3, counts=COUNTS),
    }


@pytest.fixture(scope="module")
def warm(network):
    scorer = Scorer(network, budget_bytes=BUDGET)
    before = LOWERINGS[0]
    scorer.warm_up()
    assert LOWERINGS[0] > before  # the counter counts
    return scorer


def test_two_populations_compile_nothing(warm, network):
    first, second = population(0), population(1)  # drawing them compiles
    before = LOWERINGS[0]
    warm.run(first)
    assert LOWERINGS[0] == before, "the first population compiled"
    found = Scorer(network, budget_bytes=BUDGET).run(second + FUNCTIONS)
    assert LOWERINGS[0] == before, "the second population compiled"
    assert np.mean([reason is None for reason in found["conv2"].reasons]) > 0.95


def test_a_pruned_network_compiles_nothing(warm):
    """Fewer channels, so fewer entries of the filters of the next layer too."""
    pruned = {
        "conv1": layer(3, channels=3, positions=8, entries=5, outgoing=4, counts=COUNTS),
        "conv2": layer(4, channels=2, positions=4, entries=5, outgoing=2, counts=COUNTS),
    }
    functions = population(2) + FUNCTIONS
    before = LOWERINGS[0]
    found = Scorer(pruned, budget_bytes=BUDGET).run(functions)
    assert LOWERINGS[0] == before
    assert np.isfinite(found["conv1"].scores[-len(FUNCTIONS) :]).any()


def test_finding_offenders_compiles_nothing(warm):
    functions = [parse("sum(sqrt(mX - 100)) + N"), parse("mean(sqrt(abs(P) - 100))"), parse("1/(1/(N - N))")]
    before = LOWERINGS[0]
    assert not warm.run(functions)["conv1"].is_sound.any()
    found = warm.first_offenders([(f, "conv1", 0, 0) for f in functions])
    assert [str(node) for node in found] == ["sqrt(mX - 100)", "sqrt(abs(P) - 100)", "1/(N - N)"]
    assert LOWERINGS[0] == before


def test_warming_up_changes_no_score(warm, network):
    again = Scorer(network).run(FUNCTIONS)
    found = warm.run(FUNCTIONS)
    for path in network:
        for row, other in zip(found[path].scores, again[path].scores, strict=True):
            assert_close(row, other, rtol=1e-4)

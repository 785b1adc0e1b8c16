"""Scoring stays within its bytes, whatever formulas come, and says so before it runs when it cannot."""

import gc
import tracemalloc

import jax
import numpy as np
import pytest
from test_population_scores import assert_close
from test_scorer import layer

from jaxprune.language.parsing import parse
from jaxprune.language.sampling import random_expression
from jaxprune.language.vocabulary import DEFAULT_VOCABULARY
from jaxprune.scoring.device_programs import Programs
from jaxprune.scoring.formula_cost import BUDGET_BYTES
from jaxprune.scoring.scorer import LEAST_BYTES, Scorer, default_budget

BUDGET = LEAST_BYTES
COUNTS = (43, 43, 42)


@pytest.fixture(scope="module")
def network():
    return {
        "conv1": layer(0, channels=40, positions=16, entries=75, outgoing=60, counts=COUNTS),
        "conv2": layer(1, channels=60, positions=9, entries=40, outgoing=10, counts=COUNTS),
    }


def population(seed, size):
    root = jax.random.fold_in(jax.random.key(11), seed)
    return [random_expression(jax.random.fold_in(root, i), DEFAULT_VOCABULARY) for i in range(size)]


def with_operands_read(network, backend, budget=BUDGET):
    """A scorer that has laid out all operands, which the budget does not count."""
    scorer = Scorer(network, budget_bytes=budget, backend=backend)
    reads = (
        "sum(X*GX)",
        "sum(WI*GW)",
        "sum(W)",
        "sum(WO)",
        "gamma + beta + N",
        "sum(mX)",
        "var(P) + mean(abs(X))*0",
    )
    scorer.run([parse(text) for text in reads])
    return scorer


def most_held_on_host(network, populations, budget=BUDGET):
    """The most bytes that NumPy held while any population was scored; refused shares."""
    peaks, refused = [], []
    for functions in populations:
        scorer = with_operands_read(network, "numpy", budget)
        gc.collect()
        tracemalloc.start()
        reasons = scorer.run(functions)["conv1"].reasons
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        refused.append(np.mean([reason is not None for reason in reasons]))
    return peaks, refused


def test_random_populations_stay_within_their_budget(network):
    peaks, refused = most_held_on_host(network, [population(seed, 64) for seed in range(4)])
    assert max(peaks) < BUDGET, f"{max(peaks)} bytes of {BUDGET}"
    assert max(peaks) > BUDGET / 10  # the measure measures
    assert np.mean(refused) < 0.05


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_two_hundred_random_populations_stay_within_their_budget(network):
    peaks, _ = most_held_on_host(network, (population(seed, 64) for seed in range(200)))
    assert len(peaks) == 200 and max(peaks) < BUDGET, f"{max(peaks)} bytes of {BUDGET}"


def test_a_device_holds_no_more_either(network, monkeypatch):
    scorer, peaks = with_operands_read(network, "device"), [0]
    gc.collect()
    before = sum(array.nbytes for array in jax.live_arrays())
    call = Programs.__call__

    def watched(programs, *arguments):
        found = call(programs, *arguments)
        peaks[0] = max(peaks[0], sum(array.nbytes for array in jax.live_arrays()) - before)
        return found

    monkeypatch.setattr(Programs, "__call__", watched)
    large = [
        parse("sum(abs(matmul(X, transpose(X)) - rbf(X, 2)))"),
        parse("mean(square(rbf(P, Q, 1) - mean(P)))"),
    ]
    reasons = scorer.run(population(0, 24) + large)["conv1"].reasons
    assert BUDGET / 10 < peaks[0] < BUDGET
    assert sum(reason is not None for reason in reasons) < 3


def test_a_budget_that_splits_the_work_changes_no_score(network):
    functions = [f for f in population(5, 40) if f.operands]
    small, large = (Scorer(network, budget_bytes=budget).run(functions) for budget in (1 << 20, 1 << 28))
    for path in network:
        for row, other, reason in zip(
            small[path].scores, large[path].scores, small[path].reasons, strict=True
        ):
            if reason is None:
                assert_close(row, other, rtol=1e-3)


@pytest.mark.parametrize("backend", ["numpy", "device"])
def test_the_least_budget_that_works_is_said_and_works(backend):
    wide = layer(3, channels=2, positions=1, entries=700, outgoing=7, counts=COUNTS)
    f = parse("sum(abs(outer(WI, WI) - outer(WI, GW)*2))")
    reason = Scorer(wide, budget_bytes=9 << 20, backend=backend).run([f])[""].reasons[0]
    assert reason.startswith("refused: abs(outer(WI, WI) - outer(WI, GW)*2) and what it is made from need ")
    least = int(reason.split(" is ")[-1].split(" bytes")[0])
    assert Scorer(wide, budget_bytes=least - 4, backend=backend).run([f])[""].reasons[0] is not None
    assert Scorer(wide, budget_bytes=least, backend=backend).run([f])[""].reasons == [None]
    if backend == "numpy":
        peaks, _ = most_held_on_host({"conv1": wide}, [[f]], budget=least)
        assert least / 16 < peaks[0] < least


def test_the_default_is_a_part_of_the_devices_memory(monkeypatch):
    assert 0 < default_budget() <= BUDGET_BYTES

    class Device:
        def memory_stats(self):
            return {"bytes_limit": 1 << 34}

    monkeypatch.setattr(jax, "local_devices", lambda: [Device()])
    assert default_budget("device") == 1 << 31 and default_budget("numpy") <= BUDGET_BYTES

"""The engine stays within its bytes, whatever formulas come, and says so before it runs when it cannot."""

import gc
import weakref
from threading import Lock

import jax
import numpy as np
import pytest
from test_engine import layer
from test_population_scores import assert_close

from jaxprune.language.operands import DEFAULT_VOCABULARY
from jaxprune.language.parsing import parse
from jaxprune.language.sampling import random_expression
from jaxprune.scoring.engine import LEAST_BYTES
from jaxprune.scoring.evaluator import BUDGET_BYTES, Scorer, default_budget
from jaxprune.scoring.kernels import Kernel

BUDGET = LEAST_BYTES
COUNTS = (43, 43, 42)


@pytest.fixture(scope="module")
def network():
    return {
        "conv1": layer(0, channels=40, positions=16, entries=75, outgoing=60, counts=COUNTS),
        "conv2": layer(1, channels=60, positions=9, entries=40, outgoing=10, counts=COUNTS),
    }


def held():
    return sum(array.nbytes for array in jax.live_arrays())


def note_owners(result, owners):
    """Remembers, weakly, the arrays whose memory NumPy's kernels have returned."""
    for array in jax.tree.leaves(result):
        while isinstance(array, np.ndarray) and isinstance(array.base, np.ndarray):
            array = array.base
        if isinstance(array, np.ndarray) and array.flags.owndata:
            owners[id(array)] = weakref.ref(array)


def held_by(owners):
    alive = {key: own() for key, own in owners.items()}
    for key in [key for key, array in alive.items() if array is None]:
        owners.pop(key, None)
    return sum(array.nbytes for array in alive.values() if array is not None)


def planes(scorer):
    """Bytes of scalars, which the host holds."""
    engine = scorer._engine
    own = {id(plane): plane.nbytes for kept in (engine._planes, engine._pinned) for plane in [*kept.values()]}
    return sum(own.values())


def tables(scorer):
    """Bytes of operands laid out for the engine, which the budget does not count."""
    found = 0
    for one in scorer._engine.layers:
        found += sum(table.values.nbytes for table in one._tables.values() if table is not None)
        found += sum(array.nbytes for own in one._statistics.values() for array in own.values())
    return found


def most_held(network, populations, monkeypatch, budget=BUDGET):
    """The most bytes that any population held at any kernel's end, besides operands and tables; refused shares."""
    peaks, refused, scorers = [], [], []
    call, owners, lock = Kernel.__call__, {}, Lock()

    def watched(kernel, *arguments):
        result = call(kernel, *arguments)
        with lock:
            note_owners(result, owners)
            on_host = held_by(owners)
        peaks[-1] = max(peaks[-1], held() + on_host + planes(scorers[-1]))
        return result

    monkeypatch.setattr(Kernel, "__call__", watched)
    for functions in populations:
        scorers[:] = [Scorer(network, budget_bytes=budget)]
        gc.collect()
        before = held()
        peaks.append(0)
        reasons = scorers[0].run(functions)["conv1"].reasons
        peaks[-1] -= before + tables(scorers[0])
        refused.append(np.mean([reason is not None for reason in reasons]))
    return peaks, refused


def population(seed, size):
    root = jax.random.fold_in(jax.random.key(11), seed)
    return [random_expression(jax.random.fold_in(root, i), DEFAULT_VOCABULARY) for i in range(size)]


def test_random_populations_stay_within_their_budget(network, monkeypatch):
    peaks, refused = most_held(network, [population(seed, 64) for seed in range(4)], monkeypatch)
    assert max(peaks) < BUDGET, f"{max(peaks)} bytes of {BUDGET}"
    assert max(peaks) > BUDGET / 10  # the measure measures
    assert np.mean(refused) < 0.05


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_two_hundred_random_populations_stay_within_their_budget(network, monkeypatch):
    peaks, _ = most_held(network, (population(seed, 64) for seed in range(200)), monkeypatch)
    assert len(peaks) == 200 and max(peaks) < BUDGET, f"{max(peaks)} bytes of {BUDGET}"


def test_a_budget_that_splits_the_work_changes_no_score(network):
    functions = [f for f in population(5, 40) if f.operands]
    small, large = (Scorer(network, budget_bytes=budget).run(functions) for budget in (1 << 20, 1 << 28))
    for path in network:
        for row, other, reason in zip(
            small[path].scores, large[path].scores, small[path].reasons, strict=True
        ):
            if reason is None:
                assert_close(row, other, rtol=1e-3)


def test_the_least_budget_that_works_is_said_and_works(monkeypatch):
    wide = layer(3, channels=2, positions=1, entries=700, outgoing=7, counts=COUNTS)
    f = parse("sum(abs(outer(WI, WI) - outer(WI, GW)*2))")
    reason = Scorer(wide, budget_bytes=9 << 20).run([f])[""].reasons[0]
    assert reason.startswith("refused: abs(outer(WI, WI) - outer(WI, GW)*2) and what it is made from need ")
    least = int(reason.split(" is ")[-1].split(" bytes")[0])
    assert Scorer(wide, budget_bytes=least - 4).run([f])[""].reasons[0] is not None
    scorer = Scorer(wide, budget_bytes=least)
    assert scorer.run([f])[""].reasons == [None]
    peaks, _ = most_held({"conv1": wide}, [[f]], monkeypatch, budget=least)
    assert least / 16 < peaks[0] < least


def test_the_default_is_a_part_of_the_devices_memory(monkeypatch):
    assert 0 < default_budget() <= BUDGET_BYTES

    class Device:
        def memory_stats(self):
            return {"bytes_limit": 1 << 30}

    monkeypatch.setattr(jax, "local_devices", lambda: [Device()])
    assert default_budget() == 1 << 27

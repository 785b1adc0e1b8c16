"""Both backends and compiled functions against a float64 reading of the language (`oracle.py`), on random formulas.

A score may differ from the oracle's by 1e-5 of the largest number met on the way. What float32 cannot decide is
exempt: scores that move by more than half of that when all numbers, operands and those on the way, move to a
neighbouring float32 (equal ones together, so that dead, constant and duplicated channels stay what they are). Where
the square of a number on the way exceeds what float32 holds, a score that is not finite is right too.
"""

from __future__ import annotations

import sys
from typing import NamedTuple

import jax
import numpy as np
import pytest
import test_golden_scores as golden
from float64_oracle import OPERATIONS, operands, oracle

from jaxprune.language.parsing import parse
from jaxprune.language.sampling import random_expression
from jaxprune.language.vocabulary import DEFAULT_VOCABULARY
from jaxprune.observation.operands import Operands
from jaxprune.scoring.compiled import compile
from jaxprune.scoring.populations import score_population

TOLERANCE = 1e-5
SHAKES = (1, 2)
MOST_EXEMPT = 0.05
LARGEST_SQUARED = float(np.sqrt(np.finfo(np.float32).max))


def make_layer(
    space, class_counts, *, channels=6, fan_in=(3, 3, 2), has_norm=True, has_gradients=False, seed=0
):
    """A layer whose channels 1 to 4 are dead, constant, a duplicate of channel 0, and far from zero."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.repeat(np.arange(len(class_counts)), class_counts))
    shift = 0.2 * labels.reshape(-1, *[1] * len(space), 1)
    features = np.maximum(rng.normal(0.3, 1, (len(labels), *space, channels)) + shift, 0)
    features[..., 1] = 0
    features[..., 2] = 3.7
    features[..., 3] = features[..., 0]
    features[..., 4] = 30 + rng.normal(0, 0.2, features.shape[:-1])
    kernel = rng.normal(0, 0.5, (*fan_in, channels))
    kernel[..., 3] = kernel[..., 0]
    layer = {"features": features, "kernel": kernel}
    layer["outgoing"] = rng.normal(0, 0.5, (*fan_in[:-1], channels, 4))
    if has_norm:
        layer |= {"gamma": rng.normal(1, 0.5, channels), "beta": rng.normal(0, 0.5, channels)}
    if has_gradients:
        layer["weight_gradient"] = rng.normal(0, 0.01, kernel.shape)
        layer["feature_gradient"] = rng.normal(0, 0.1, features.shape) * (features > 0)
    return {name: array.astype(np.float32) for name, array in layer.items()} | {"labels": labels}


FEW = {
    "convolution": make_layer((3, 3), [10, 6, 1, 3], has_gradients=True),
    "dense": make_layer((), [6, 1, 5], fan_in=(7,), has_norm=False),
}
MANY = FEW | {
    "two examples": make_layer((2, 2), [1, 1], seed=1),
    "one position": make_layer((1, 1), [9, 1, 1], fan_in=(1, 1, 1), seed=2),
    "a line of positions": make_layer((17,), [3, 33], fan_in=(1, 5), has_norm=False, seed=3),
    "many classes": make_layer((4, 2), [2] * 7 + [1] * 4, channels=5, seed=4),
}


def functions_for(layer, seeds):
    """Random functions that read only what the layer has."""
    vocabulary = DEFAULT_VOCABULARY.restrict(operands(layer, 0, layer["labels"][0]))
    found = (random_expression(jax.random.key(seed), vocabulary) for seed in seeds)
    return list(dict.fromkeys(found))


class Agreement(NamedTuple):
    """How many scores were looked at, how many of them are exempt, and what is wrong with the others."""

    num_scores: int
    num_exempt: int
    wrong: list[str]


def compare(functions, scores, layer):
    """Rows of [C] scores against the oracle."""
    total, exempt, wrong = 0, 0, []
    for f, row in zip(functions, scores, strict=True):
        expected = oracle(f, layer)
        nearby = [oracle(f, layer, shake=seed).scores for seed in SHAKES]
        for channel, (value, largest) in enumerate(zip(*expected, strict=True)):
            total += 1
            found = float(row[channel])
            if not all(is_steady(value, other[channel], largest) for other in nearby):
                exempt += 1
            elif not is_right(found, value, largest):
                wrong.append(f"channel {channel} of {f}: {found}, needs {value}, largest {largest}")
    return Agreement(total, exempt, wrong)


def is_steady(value, other, largest):
    if not (np.isfinite(value) and np.isfinite(other)):
        return np.isfinite(value) == np.isfinite(other)
    return abs(value - other) <= TOLERANCE / 2 * largest


def is_right(found, value, largest):
    if not np.isfinite(value):
        return not np.isfinite(found)
    if not np.isfinite(found):
        return not largest < LARGEST_SQUARED
    return abs(found - value) <= TOLERANCE * largest


def check(compared, what):
    exempt = sum(each.num_exempt for each in compared)
    total = sum(each.num_scores for each in compared)
    wrong = [line for each in compared for line in each.wrong]
    sys.stdout.write(f"{what}: {total} scores, {exempt} exempt ({exempt / total:.2%}), {len(wrong)} wrong\n")
    assert not wrong, "\n".join(wrong)
    assert exempt <= MOST_EXEMPT * total


def numpy(functions, layer):
    return score_population(functions, Operands.from_arrays(**layer), backend="numpy")


def device(functions, layer):
    return score_population(functions, Operands.from_arrays(**layer), backend="device")


def compiled(functions, layer):
    """All compiled functions in one program: one for each takes three times as long."""
    run = jax.jit(lambda given: [compile(f)(given) for f in functions])
    return np.stack(run(Operands.from_arrays(**layer)))


def test_the_oracle_equals_the_reference_scores():
    arrays = np.load(golden.FOLDER / "small.npz")
    layer = {"features": arrays["X"], "labels": arrays["y"], "kernel": arrays["W"]}
    for key in golden.KEYS:
        f, expected = golden.function_and_scores(key, arrays, 4)
        found = oracle(f, layer).scores
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-10 * abs(expected).max(), err_msg=key)


def test_the_oracle_by_hand():
    layer = {
        "features": np.array([[1.0], [3.0], [6.0]]),
        "labels": np.array([0, 0, 1]),
        "kernel": np.array([[3.0], [-4.0]]),
        "outgoing": np.array([[2.0, 1.0]]),
    }
    # class 0: P = 1, 3 and Q = 6; class 1: P = 6 and Q = 1, 3
    hand = {
        "var(P)": (0.5, 6),
        "mean(Q)*N": ((6 * 2 + 2 * 1) / 2, 12),
        "sqrt(sum(square(WI)))": (5, 25),
        "sum(abs(WI))*sum(WO)": (21, 21),
        "sum(mP - mX)/NX": ((2 - 10 / 3 + 6 - 10 / 3) / 6, 6),
        "mean(rbf(P, Q, 2))": ((np.exp(-25 / 8) + np.exp(-9 / 8)) / 2, 6),
        "count(X)/(NX - N - NQ)": (np.inf, np.inf),
    }
    for text, (score, largest) in hand.items():
        found = oracle(parse(text), layer)
        np.testing.assert_allclose((found.scores[0], found.largest[0]), (score, largest), err_msg=text)


RUNS = {
    "numpy": (numpy, range(200)),
    "device": (device, range(200, 240)),
    "compiled": (compiled, range(1000, 1025)),
}
"""Name -> what scores, and the seeds of the functions that it is tried on."""


@pytest.mark.parametrize("name", FEW)
@pytest.mark.parametrize("way", RUNS)
def test_scores_agree_with_the_oracle(way, name):
    run, seeds = RUNS[way]
    functions = functions_for(FEW[name], seeds)
    check([compare(functions, run(functions, FEW[name]), FEW[name])], f"{way}, {name}")


def test_another_variance_is_noticed(monkeypatch):
    layer = FEW["convolution"]
    functions = [parse("var(P)"), parse("sum(abs(WI))"), parse("var(Q)/(var(P) + 0.05)")]
    scores = numpy(functions, layer)
    assert not compare(functions, scores, layer).wrong
    monkeypatch.setitem(OPERATIONS, "var", lambda a: np.sum((a - np.mean(a)) ** 2) / max(1, np.size(a) - 1))
    wrong = compare(functions, scores, layer).wrong
    assert wrong and not any("abs(WI)" in line for line in wrong)


def random_layer(seed):
    """A layer of random shape: dense, one or two axes of positions, with or without normalisation and gradients."""
    rng = np.random.default_rng(seed)
    space = tuple(rng.integers(1, 5, seed % 3).tolist())
    return make_layer(
        space,
        rng.integers(1, 8, rng.integers(2, 5)),
        channels=int(rng.integers(5, 8)),
        fan_in=tuple(rng.integers(1, 4, len(space) + 1).tolist()),
        has_norm=bool(rng.integers(2)),
        has_gradients=bool(rng.integers(2)),
        seed=seed,
    )


STREAM = [*MANY.values(), *(random_layer(seed) for seed in range(100, 124))]
PER_LAYER, COMPILED_PER_LAYER = 120, 4


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_backends_compiled_functions_and_oracle_agree_on_a_long_stream():
    by_numpy, by_device, by_compiling = [], [], []
    for number, layer in enumerate(STREAM):
        functions = functions_for(
            layer, range(10_000 + number * PER_LAYER, 10_000 + (number + 1) * PER_LAYER)
        )
        by_numpy.append(compare(functions, numpy(functions, layer), layer))
        by_device.append(compare(functions, device(functions, layer), layer))
        few = functions[:COMPILED_PER_LAYER]
        by_compiling.append(compare(few, compiled(few, layer), layer))
        jax.clear_caches()  # programs of 30 shapes take gigabytes
    assert sum(each.num_scores for each in by_numpy) > 15_000
    check(by_numpy, f"NumPy, {len(STREAM)} layers")
    check(by_device, f"device, {len(STREAM)} layers")
    check(by_compiling, f"compiled, {len(STREAM)} layers")

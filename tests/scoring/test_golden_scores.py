"""Every named function against scores computed in float64 by the authors' code; see golden/README.md."""

import json
from importlib.resources import files
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxprune.language.library import library
from jaxprune.language.parsing import parse
from jaxprune.observation.operands import Operands
from jaxprune.scoring.compiled import compile
from jaxprune.scoring.populations import score_population

FOLDER = Path(__file__).resolve().parent.parent / "golden"
SETS = json.loads((FOLDER / "sets.json").read_text())
MMD3 = parse("mean(rbf(P, 3)) + mean(rbf(Q, 3)) - 2 * mean(rbf(P, Q, 3))")

# key -> (function, how our mean over classes becomes the reference's number)
SUMS = {
    "seed__AbsSNR": "abs_snr",
    "seed__FDR": "fdr",
    "seed__SymDiv": "sym_div",
    "seed__Tstats": "t_stat",
    "seed__L1": "l1",
    "seed__L2": "l2",
    "seed__GeoMedian": "geometric_median",
    "closed__DI": "di",
    "ga__GA_Func1": "evolved_1",
    "ga__GA_Func2": "evolved_eq3",
    "ga__GA_Func3": "evolved_3",
    "ga__GA_Func4": "evolved_4",
    "ga__GA_inspired_Func1": "inspired_1",
}
MEANS = {
    "closed__AbsSNR": library["abs_snr"],
    "closed__FDR": library["fdr"],
    "closed__Tstats": library["t_stat"],
    "tp__L1_list": library["l1"],
    "tp__MMD_sigma1": library["mmd"],
    "tp__MMD_sigma3": MMD3,
}
KEYS = [*SUMS, *MEANS, "closed__SymDiv"]


def read(name):
    arrays = dict(np.load(FOLDER / f"{name}.npz"))
    if name == "digits":
        arrays["X"], arrays["y"] = digit_features(
            **{each: arrays[each] for each in ("image_indices", "W", "bias")}
        )
    return arrays, Operands.from_arrays(features=arrays["X"], labels=arrays["y"], kernel=arrays["W"])


def digit_features(image_indices, W, bias):
    """The packaged digits through filters, bias and ReLU; all numbers are exact in float32."""
    digits = np.load(files("jaxprune") / "data" / "digits_8x8.npz")
    images = digits["x"][image_indices] / 16
    windows = np.lib.stride_tricks.sliding_window_view(images, W.shape[:2], axis=(1, 2))
    features = np.maximum(np.einsum("nhwij,ijc->nhwc", windows, W[:, :, 0]) + bias, 0)
    for channel in (*SETS["digits"]["dead"], *SETS["digits"]["constant"]):
        features[..., channel] = bias[channel]
    return features, digits["y"][image_indices].astype(np.int64)


def function_and_scores(key, arrays, num_classes):
    """The function that a key is about, and what its mean over classes must be."""
    if key == "closed__SymDiv":
        return library["sym_div"], 2 * (arrays[key] + 1)
    return (library[SUMS[key]], arrays[key] / num_classes) if key in SUMS else (MEANS[key], arrays[key])


def tolerance(name, key, dtype):
    if dtype == np.float64:
        return 1e-9, 1e-10
    return (1e-3 if name == "fc" and "MMD" in key else 1e-5), 1e-6


def check_set(name):
    arrays, ops = read(name)
    pairs = [function_and_scores(key, arrays, ops.num_classes) for key in KEYS]
    population = score_population([f for f, _ in pairs], ops)
    unique = list(dict.fromkeys(f for f, _ in pairs))
    fused = dict(zip(unique, jax.jit(lambda ops: [compile(f)(ops) for f in unique])(ops), strict=True))
    assert population.dtype == ops.dtype
    for key, (f, expected), row in zip(KEYS, pairs, population, strict=True):
        rtol, share = tolerance(name, key, ops.dtype)
        atol = share * np.abs(expected).max()
        np.testing.assert_allclose(row, expected, rtol=rtol, atol=atol, err_msg=f"{name} {key} (engine)")
        np.testing.assert_allclose(
            fused[f], expected, rtol=rtol, atol=atol, err_msg=f"{name} {key} (compiled)"
        )
    check_edge_channels(name, population)


def check_edge_channels(name, population):
    edges = SETS[name]
    assert np.isfinite(population).all(), "no NaN where the reference has none"
    for original, copy in edges["duplicate"]:
        np.testing.assert_allclose(population[:, copy], population[:, original], rtol=1e-5)
    spread = [KEYS.index(key) for key in ("seed__AbsSNR", "seed__FDR", "seed__Tstats", "closed__DI")]
    for channel in (*edges["dead"], *edges["constant"]):
        assert not population[spread, channel].any(), "nothing separates the classes of a constant channel"
        np.testing.assert_array_equal(population[KEYS.index("seed__SymDiv"), channel], 0)


@pytest.mark.parametrize("name", SETS)
def test_library_equals_the_reference_in_float32(name):
    assert not jax.config.jax_enable_x64
    check_set(name)


@pytest.mark.parametrize("name", SETS)
def test_library_equals_the_reference_in_float64(name):
    with jax.enable_x64(True):
        assert read(name)[1].dtype == np.float64
        check_set(name)

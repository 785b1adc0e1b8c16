"""Generated code: runs without jaxprune and gives the language's own scores."""

from __future__ import annotations

import ast
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from toy_formulas import evaluate, expressions

from jaxprune.language.library import library, own_seeds
from jaxprune.language.parsing import parse
from jaxprune.language.registration import register_operand
from jaxprune.language.vocabulary import OPERANDS

EVERYTHING = {**library, **own_seeds}
SHAPE, NUM_CLASSES = (12, 2, 2, 3), 3


@pytest.fixture(scope="module")
def layer():
    return make_layer()


def make_layer():
    rng = np.random.default_rng(0)
    return {
        "features": np.maximum(rng.normal(size=SHAPE), 0).astype(np.float32),
        "labels": np.asarray([0, 1, 2] * 3 + [0, 0, 1]),
        "kernel": rng.normal(size=(3, 3, 2, 3)).astype(np.float32),
        "outgoing": rng.normal(size=(3, 3, 3, 4)).astype(np.float32),
        "gamma": rng.normal(size=3).astype(np.float32),
        "beta": rng.normal(size=3).astype(np.float32),
        "weight_gradient": rng.normal(size=(3, 3, 2, 3)).astype(np.float32),
        "feature_gradient": rng.normal(size=SHAPE).astype(np.float32),
    }


def run(f, backend, layer):
    scope = {}
    exec(compile(f.code(backend), "code", "exec"), scope)
    return np.asarray(scope["pruning_function"](**layer))


def expected(f, layer):
    """Scores operator by operator, averaged over classes."""
    scores = []
    for c in range(SHAPE[-1]):
        for k in range(NUM_CLASSES):
            X = layer["features"][..., c].reshape(SHAPE[0], -1)
            P, Q = X[layer["labels"] == k], X[layer["labels"] != k]
            W = layer["kernel"].reshape(-1, SHAPE[-1])
            of = {
                "X": X, "P": P, "Q": Q, "mX": X.mean(0), "mP": P.mean(0), "mQ": Q.mean(0), "W": W, "WI": W[:, c],
                "N": len(P), "NQ": len(Q), "NX": len(X), "WO": layer["outgoing"][:, :, c].reshape(-1),
                "gamma": layer["gamma"][c], "beta": layer["beta"][c],
                "GW": layer["weight_gradient"].reshape(-1, SHAPE[-1])[:, c],
                "GX": layer["feature_gradient"][..., c].reshape(SHAPE[0], -1),
            }  # fmt: skip
            scores.append(evaluate(f, {name: jnp.asarray(value, jnp.float32) for name, value in of.items()}))
    return np.asarray(scores).reshape(SHAPE[-1], NUM_CLASSES).mean(1)


@pytest.mark.parametrize("name", EVERYTHING)
def test_numpy_code_gives_the_languages_scores(name, layer):
    np.testing.assert_allclose(
        run(EVERYTHING[name], "numpy", layer), expected(EVERYTHING[name], layer), rtol=2e-4
    )


@pytest.mark.parametrize(
    "name", ["l2", "geometric_median", "evolved_eq3", "di", "mmd", "bn_scale", "spread_outgoing"]
)
def test_jax_code_gives_what_numpy_code_gives(name, layer):
    f = EVERYTHING[name]
    np.testing.assert_allclose(run(f, "jax", layer), run(f, "numpy", layer), rtol=2e-4)


@pytest.mark.parametrize(
    "text",
    [
        "0.05",
        "sqrt(0.05 + 0.2)",
        "1/0",
        "sum(slice(X*mX, 2, 5))",
        "count(P)/product(abs(mX))",
        "mean(X*GX) + sum(GW)",
    ],
)
@pytest.mark.parametrize("backend", ["numpy", "jax"])
def test_odd_formulas_run_too(text, backend, layer):
    f = parse(text)
    got = run(f, backend, layer)
    assert got.shape == (SHAPE[-1],)
    np.testing.assert_allclose(got, expected(f, layer), rtol=1e-4)


@pytest.mark.parametrize("backend", ["numpy", "jax", "torch"])
@pytest.mark.parametrize("name", EVERYTHING)
def test_code_is_self_contained_and_has_short_documented_lines(name, backend):
    code = EVERYTHING[name].code(backend)
    tree = ast.parse(code)
    modules = {alias.name for node in tree.body if isinstance(node, ast.Import) for alias in node.names}
    assert modules == {"numpy": {"numpy"}, "jax": {"jax", "jax.numpy", "numpy"}, "torch": {"torch"}}[backend]
    assert all(ast.get_docstring(node) for node in tree.body if isinstance(node, ast.FunctionDef))
    assert max(map(len, code.splitlines())) <= 160


@given(expressions(steps=10))
@settings(max_examples=30)
def test_numpy_code_runs_any_formula(f):
    layer = make_layer()
    try:
        got = run(f, "numpy", layer)
    except np.linalg.LinAlgError:
        return  # NumPy raises where JAX gives non-finite values: such a formula is invalid anyway
    want = expected(f, layer)
    is_tame = np.isfinite(want) & (np.abs(want) < 1e6)
    if not {"inverse"} & {node.operator for node in f.walk()}:
        scale = max(1.0, float(np.max(np.abs(want[is_tame]), initial=0)))
        np.testing.assert_allclose(got[is_tame], want[is_tame], rtol=5e-3, atol=1e-3 * scale)


@given(expressions(steps=10))
def test_every_backends_code_compiles(f):
    for backend in ("jax", "torch"):
        compile(f.code(backend), "code", "exec")


def test_shared_parts_are_computed_once():
    code = parse("sum(square(mP - mX))/mean(square(mP - mX)) + var(P)*var(P)").code("numpy")
    assert code.count("= np.square(mP - mX)") == 1 and "part_1 = np.square(mP - mX)  # [D]" in code
    assert "var_P = variance(P)" in code


def test_dense_layers_are_scored_too(layer):
    dense = {
        "features": layer["features"][:, 0, 0],
        "labels": layer["labels"],
        "kernel": layer["kernel"][0, 0],
    }
    assert run(library["fdr"], "numpy", dense).shape == (3,)


def test_a_missing_operand_is_refused_by_name(layer):
    layer = {**layer, "outgoing": None}
    with pytest.raises(ValueError, match="reads outgoing=, got None"):
        run(own_seeds["norm_in_out"], "numpy", layer)
    for name, text in {"weight_gradient": "sum(GW)", "feature_gradient": "sum(GX)"}.items():
        with pytest.raises(ValueError, match=f"reads {name}=, got None"):
            run(parse(text), "numpy", {**layer, name: None})


def test_ones_own_operands_become_arguments(layer):
    register_operand("entropy", type=(), read=lambda operands: None, per_class=True)
    try:
        entropy = np.arange(9.0).reshape(3, 3)
        got = run(parse("entropy*N/N"), "numpy", {**layer, "entropy": entropy})
    finally:
        del OPERANDS["entropy"]
    np.testing.assert_allclose(got, [1.0, 4.0, 7.0])


def test_an_unknown_backend_is_refused():
    with pytest.raises(ValueError, match="backend out of numpy, jax, torch, got 'tf'"):
        library["l1"].code("tf")


def test_only_pruning_functions_become_code():
    with pytest.raises(ValueError, match=r"of type \(\), got type \(F\)"):
        parse("abs(WI)").code("numpy")


def test_code_runs_where_jaxprune_is_absent(tmp_path):
    (tmp_path / "formula.py").write_text(library["sym_div"].code("numpy"))
    program = (
        "import sys; from formula import pruning_function; assert not {'jax', 'jaxprune'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True, env={})

"""Every jitted function of scoring lowers for CPUs, GPUs and TPUs."""

from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from jaxprune.language.library import library
from jaxprune.language.operators import OPERATORS
from jaxprune.language.parsing import parse
from jaxprune.language.sampling import random_expression
from jaxprune.language.vocabulary import DEFAULT_VOCABULARY
from jaxprune.observation.moments import add_examples, sample_moments, zero_moments
from jaxprune.observation.operands import Operands
from jaxprune.scoring import device_dispatch
from jaxprune.scoring.compiled import compile
from jaxprune.scoring.graph import Kind
from jaxprune.scoring.scorer import Scorer

PLATFORMS = ("cpu", "cuda", "tpu")


def lower(function, *arguments):
    """Lowers a function of arrays, or of their shapes, for every platform; returns what JAX exports."""
    flat, tree = jax.tree.flatten(arguments)
    shapes = [jax.ShapeDtypeStruct(np.shape(leaf), jnp.result_type(leaf)) for leaf in flat]
    exported = export.export(
        jax.jit(lambda *leaves: function(*jax.tree.unflatten(tree, leaves))), platforms=PLATFORMS
    )
    lowered = exported(*shapes)
    assert lowered.platforms == PLATFORMS
    return lowered


@pytest.fixture(scope="module")
def operands():
    rng = np.random.default_rng(0)
    return Operands.from_arrays(
        features=rng.standard_normal((9, 2, 2, 3)).astype(np.float32),
        labels=[0, 0, 0, 1, 1, 1, 1, 2, 2],
        kernel=rng.standard_normal((4, 3)).astype(np.float32),
        outgoing=rng.standard_normal((3, 5)).astype(np.float32),
        gamma=np.ones(3, np.float32),
        beta=np.ones(3, np.float32),
        weight_gradient=np.ones((4, 3), np.float32),
        feature_gradient=np.ones((9, 2, 2, 3), np.float32),
    )


def lower_instead_of_compiling(programs, spec):
    """Takes the place of `Programs._compile`: lowers a program for every platform; what is called gives zeros."""
    lowered = lower(programs.function(spec), programs.inputs(spec))
    shapes = jax.tree.unflatten(lowered.out_tree, lowered.out_avals)
    zeros = jax.tree.map(lambda shape: np.zeros(shape.shape, shape.dtype), shapes)
    return programs.compiled.setdefault(spec, lambda inputs: zeros)


def test_every_program_of_a_population_lowers(operands, monkeypatch):
    """All operators, statistics and blocks of channels, as a device would call them."""
    monkeypatch.setattr(device_dispatch, "VALUE_SHARE", 1 << 17)
    scorer = Scorer(operands, backend="device", budget_bytes=1 << 26)
    programs = scorer._evaluator.programs
    monkeypatch.setattr(programs, "compiled", {})
    monkeypatch.setattr(programs, "_compile", lambda spec: lower_instead_of_compiling(programs, spec))
    drawn = [random_expression(jax.random.key(seed), DEFAULT_VOCABULARY) for seed in range(40)]
    scorer.run([*TEXTS, *drawn])
    names = {spec.name for spec in programs.compiled if spec.kind == "operator"}
    assert names == set(OPERATORS)
    assert {spec.kind for spec in programs.compiled} == set(get_args(Kind)) - {"operand", "moment"} | {"mean"}
    assert max(spec.num_blocks for spec in programs.compiled) > 1
    members = ((operands,),)
    lower(lambda given: programs.moments(given, "full"), members)
    lower(lambda given: programs.operand(given, "X", ("NX", "D")), members)


TEXTS = [
    parse(text)
    for text in (
        "trace(inverse(matmul(transpose(P), P)))",
        "mean(rbf(P, Q, 1)) + mean(rbf(slice(X, 2, 6), 2))",
        "sum(outer(mP, WI)*2) + inner(WI, geometric_median(W)) + product(1 + 0*mX)",
        "sum(mean_samples(square(Q - mP))) + std(matmul(Q, mP)) + count(P - mP) + var(abs(P))",
        "sum(sqrt(abs(X)))/(N - NQ) - mean(WO)*gamma",
    )
]


def test_moments_lower():
    rows, labels = jnp.ones((6, 2, 3)), jnp.array([0, 1, 2, 0, 1, 2])
    lower(add_examples, zero_moments(rows[0], 3), rows, labels, jnp.ones(6, bool))
    lower(lambda rows, labels: sample_moments(rows, labels, num_classes=3), rows, labels)


def test_compiled_functions_lower(operands):
    functions = [
        *library.values(),
        parse("mean(matmul(Q, transpose(X)))*gamma + sum(WO)*beta + inner(GW, WI)*sum(GX)"),
    ]
    lower(lambda ops: [compile(f)(ops) for f in functions], operands)

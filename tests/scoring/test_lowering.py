"""Every jitted function of scoring lowers for CPUs, GPUs and TPUs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from jaxprune.language.operators import OPERATORS
from jaxprune.language.parsing import parse
from jaxprune.language.published import library
from jaxprune.scoring.compiled import compile
from jaxprune.scoring.lanes import (
    block_operands,
    class_mean,
    cut_lanes,
    finite_lanes,
    lane_kernel,
    moment_table,
    sample_table,
    weight_table,
)
from jaxprune.scoring.moments import add_examples, zero_moments
from jaxprune.scoring.records import Operands, sample_moments

PLATFORMS = ("cpu", "cuda", "tpu")


def lower(function, *arguments):
    function = getattr(function, "__wrapped__", function)  # compiler options are for outermost calls
    flat, tree = jax.tree.flatten(arguments)
    shapes = [jax.ShapeDtypeStruct(np.shape(leaf), jnp.asarray(leaf).dtype) for leaf in flat]
    exported = export.export(
        jax.jit(lambda *leaves: function(*jax.tree.unflatten(tree, leaves))), platforms=PLATFORMS
    )
    assert exported(*shapes).platforms == PLATFORMS


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


def test_tables_lower(operands):
    stacked, lanes = Operands.stack([operands, operands]), (2, 3, 3)
    lower(lambda ops: weight_table.__wrapped__(ops, lanes), stacked)
    lower(lambda ops: moment_table.__wrapped__(ops, "sample", lanes), stacked)
    for name in ("X", "P", "Q", "GX"):
        lower(lambda ops, name=name: sample_table.__wrapped__(ops, name), stacked)
    lower(block_operands, stacked, jnp.int32(1), jnp.arange(2))
    values = jnp.ones((2, 3, 3, 4))
    lower(lambda v: finite_lanes.__wrapped__(v, (None,)), values)
    lower(lambda v: cut_lanes.__wrapped__(v, (1, 3, 1)), values)
    lower(class_mean, values[..., 0])


def test_moments_lower():
    rows, labels = jnp.ones((6, 2, 3)), jnp.array([0, 1, 2, 0, 1, 2])
    lower(add_examples, zero_moments(rows[0], 3), rows, labels, jnp.ones(6, bool))
    lower(lambda rows, labels: sample_moments(rows, labels, num_classes=3), rows, labels)


ARGUMENTS = {
    "trace": ["N N"],
    "inverse": ["N N"],
    "matmul": ["N D", "D N"],
    "inner": ["N", "N"],
    "outer": ["N", "D"],
}
ARGUMENTS |= {"rbf": ["N D", "NQ D"], "geometric_median": ["F C"], "slice": ["N D"], "transpose": ["N D"]}
SIZES = {"N": 4, "NQ": 5, "D": 8, "F": 6, "C": 3}


@pytest.mark.parametrize("name", OPERATORS)
def test_operators_lower_with_masks(name):
    operator = OPERATORS[name]
    two = len(operator.signatures[0].arguments) == 2
    types = [text.split() for text in ARGUMENTS.get(name, ["N D", "N D"] if two else ["N D"])]
    arrays = tuple(jnp.ones((2, 3, 2, *(SIZES[axis] for axis in axes))) for axes in types)
    masks = tuple(
        tuple(np.ones((1, 3, 1, SIZES[a]), bool) if a in ("N", "NQ") else None for a in axes)
        for axes in types
    )
    params = operator.parameter_choices[0]
    lower(
        lambda *values: lane_kernel(operator.implement, params).__wrapped__(values, masks, (), None), *arrays
    )


def test_compiled_functions_lower(operands):
    functions = [
        *library.values(),
        parse("mean(matmul(Q, transpose(X)))*gamma + sum(WO)*beta + inner(GW, WI)*sum(GX)"),
    ]
    lower(lambda ops: [compile(f)(ops) for f in functions], operands)

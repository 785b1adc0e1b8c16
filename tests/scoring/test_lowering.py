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
from jaxprune.scoring.evaluator import Scorer
from jaxprune.scoring.kernel_table import KernelTable
from jaxprune.scoring.kernels import Kernel, Spec
from jaxprune.scoring.lane_kernels import lane_kernel
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


def table_of(operands, monkeypatch):
    """One call of every kernel of the engine's table for each choice that is no size: kernel, arrays, statics."""
    calls = {}

    def note(kernel, mesh, *arguments):
        choices = tuple(part for part in arguments if isinstance(part, str))
        calls.setdefault((kernel.function.__name__, *choices), (kernel, arguments))

    engine = Scorer(operands)._engine
    monkeypatch.setattr(Kernel, "__call__", note)
    for compile_one in KernelTable(engine.layers, engine.num_lanes, 1 << 12, 1 << 12):
        compile_one()
    monkeypatch.undo()
    return calls


def test_every_kernel_of_the_table_lowers(operands, monkeypatch):
    calls = table_of(operands, monkeypatch)
    assert len({name for name, *_ in calls}) == 17
    assert len(calls) == 22  # tiles are of two kinds, and two kernels gather in three ways
    for kernel, arguments in calls.values():
        split = len(arguments) - kernel._num_static
        arrays, statics = arguments[:split], arguments[split:]
        lower(lambda *given, kernel=kernel, statics=statics: kernel.function(*given, *statics), *arrays)


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
    specs = tuple(Spec(3, 2, tuple(SIZES[axis] for axis in axes)) for axes in types)
    arrays = tuple(jnp.ones(spec.entries) for spec in specs)
    sizes = tuple(tuple(jnp.ones((1, size), bool) for size in spec.shape) for spec in specs)
    params = operator.parameter_choices[0]
    kernel = lane_kernel(operator.implement, params, specs, _result_shape(name, specs, params))
    lower(lambda *values: kernel.function(values, sizes, ()), *arrays)


def _result_shape(name, specs, params):
    """What the operator gives without padding."""
    arrays = [jnp.ones(spec.shape) for spec in specs]
    return jax.eval_shape(lambda *values: OPERATORS[name].implement(*values, params=params), *arrays).shape


def test_compiled_functions_lower(operands):
    functions = [
        *library.values(),
        parse("mean(matmul(Q, transpose(X)))*gamma + sum(WO)*beta + inner(GW, WI)*sum(GX)"),
    ]
    lower(lambda ops: [compile(f)(ops) for f in functions], operands)

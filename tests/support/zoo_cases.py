"""Small networks of the zoo with random weights, pruned at random and compared with the oracle."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from masked_oracle import counting_kept_channels, oracle_of
from zoo import ZOO
from zoo.abstract import abstract, call
from zoo.entry import Shapes
from zoo.randomise import randomise

from jaxprune.pruning import planning
from jaxprune.pruning.slimming import slim
from jaxprune.structure.groups import Structure
from jaxprune.structure.identity import identity_of
from jaxprune.structure.model_state import Path, merge_model, modules_of, split_model, take_apart
from jaxprune.structure.tracing import trace_structure

FRACTIONS = (0.1, 0.25, 0.5, 0.75)
TOLERANCE = 1e-5
"""Of the output's scale, in float32."""
DOUBLE_TOLERANCE = 1e-7
"""In float64, asked for where rounding alone is more than that in float32.

Norms over two or three nearly equal channels, one after another, magnify it by many orders.
"""

QUICK = {"xla_backend_optimization_level": 0}
"""Compiles in half the time."""

_SEEDS = 40
_QUICK_SEEDS = 12
"""For `quick_comparison`: more do not help the two networks that, so narrow, depend on their input at no seed."""
_SENSITIVE = 1e-4
"""Ten times the tolerance: if the output changes less with the input, relative to its scale, comparing says nothing."""


class Case(NamedTuple):
    """A network with weights, what is known about it, and inputs that it takes."""

    model: nnx.Module
    structure: Structure
    inputs: Any


class Comparison(NamedTuple):
    """How far a slim network is from the oracle, relative to the output's scale."""

    plan: planning.Plan
    smaller: nnx.Module
    error: float
    double_error: float | None
    """In float64, where float32 was not enough to tell."""
    is_sensitive: bool
    """Whether the smaller network's output depends on its input: at 10 % of the channels it may not."""
    masked: Mapping[Path, np.ndarray]
    """The full network's arrays with zeros for what is pruned."""
    is_plain: bool
    """Whether these alone say what the slim network computes."""

    @property
    def is_exact(self) -> bool:
        return self.error <= TOLERANCE or (
            self.double_error is not None and self.double_error <= DOUBLE_TOLERANCE
        )


@cache
def case_of(name: str) -> Case:
    """Returns the small network of that name."""
    entry = ZOO[name]
    shell = abstract(entry.small)
    model = randomise(shell, jax.random.key(zlib.crc32(name.encode())))
    return Case(model, trace_structure(shell, entry.small_input), inputs_of(entry.small_input))


def inputs_of(like: Shapes) -> Any:
    """Returns random inputs of that shape, or of each of several shapes: numbers, or tokens below 8."""
    rng = np.random.default_rng(1)

    def values(shape: jax.ShapeDtypeStruct) -> np.ndarray:
        if np.issubdtype(shape.dtype, np.integer):
            return rng.integers(0, 8, shape.shape).astype(shape.dtype)
        return rng.normal(size=shape.shape).astype(shape.dtype)

    return jax.tree.map(values, like)


def scores_of(structure: Structure, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=width) for name, width in structure.widths.items()}


@contextmanager
def known_structure(structure: Structure) -> Iterator[None]:
    """Makes planning use a structure that is known already, rather than trace the network."""
    with mock.patch.object(planning, "trace_structure", lambda model, example: structure):
        yield


def attributes_of(structure: Structure, kept: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """Returns the attributes that must follow the widths of pruned groups, according to the structure."""
    return structure.attributes_for({name: len(channels) for name, channels in kept.items()})


def compare(
    name: str, options: Mapping[str, Any] | None = None, seeds: int = _SEEDS, **budget: Any
) -> Comparison:
    """Prunes a small network of the zoo and compares it with the oracle.

    It tries random choices of channels until the oracle's output depends on its input; the oracle is compiled once for
    all of them.

    Args:
      name: key in `ZOO`.
      options: of the compiler.
      seeds: how many random choices to try.
      budget: as for `plan`.
    """
    model, structure, inputs = case_of(name)
    with known_structure(structure), counting_kept_channels():
        for seed in range(seeds):
            plan = planning.plan(model, scores_of(structure, seed), inputs, **budget)
            oracle = oracle_of(model, structure, plan.kept)
            expected = run(oracle.model, inputs, options)
            if is_sensitive := _is_sensitive(expected):
                break
    with known_structure(structure):
        smaller = slim(model, plan, attributes=attributes_of(structure, plan.kept))
    error = relative_error(run(smaller, inputs, options), expected)
    double_error = None
    if error > TOLERANCE:
        with jax.enable_x64(True), counting_kept_channels():
            expected = run(oracle.model, inputs, options)
        with jax.enable_x64(True):
            double_error = relative_error(run(smaller, inputs, options), expected)
    return Comparison(plan, smaller, error, double_error, is_sensitive, oracle.masked, oracle.is_plain)


@cache
def quick_comparison(name: str) -> Comparison:
    """Returns the comparison at one of the four fractions, in turns; computed once for all fast tests."""
    return compare(name, QUICK, _QUICK_SEEDS, kept_fraction=fraction_of(name))


def fraction_of(name: str) -> float:
    """Returns one of the four fractions, in turns."""
    return FRACTIONS[list(ZOO).index(name) % len(FRACTIONS)]


def relative_error(actual: Any, expected: Any) -> float:
    """Returns the largest difference of any output, relative to that output's scale."""
    pairs = list(zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True))
    assert all(left.shape == right.shape and np.isfinite(left).all() for left, right in pairs)
    return max(float(np.abs(left - right).max() / np.abs(right).max()) for left, right in pairs)


def run(model: nnx.Module, inputs: Any, options: Mapping[str, Any] | None = None) -> Any:
    """Returns outputs in evaluation mode as NumPy arrays, in float64 where that is enabled."""
    graphdef, flat, rest = split_model(model, "evaluation")
    if jax.config.jax_enable_x64:
        graphdef, flat, rest, inputs = in_double(graphdef, flat, rest, inputs)
    flat, rest, inputs = jax.device_put((flat, rest, inputs))
    shapes = tuple((path, array.shape, str(array.dtype)) for path, array in flat.items())
    key = (identity_of(graphdef), shapes, str(options))
    if key not in _compiled:
        if len(_compiled) > 8:
            _compiled.clear()
        function = jax.jit(lambda flat, rest, inputs: call(merge_model(graphdef, flat, rest), inputs))
        _compiled[key] = function.lower(flat, rest, inputs).compile(compiler_options=dict(options or {}))
    return jax.device_get(_compiled[key](flat, rest, inputs))


_compiled: dict[Any, Any] = {}


def in_double(graphdef: Any, flat: Any, rest: Any, inputs: Any) -> tuple[Any, Any, Any, Any]:
    """Returns a network taken apart, and its inputs, with float64 for float32; only where that is enabled.

    Layers that name their type would go back to float32 otherwise: embeddings look up in it, recurrent cells begin in
    it, and a scan does not take what comes next. Only JAX's own attention, in `bert`, still has its softmax in float32.
    """
    model = merge_model(graphdef, flat, rest)
    for module in modules_of(model):
        for name, value in vars(module).items():
            if name in ("dtype", "param_dtype") and value is not None and jnp.dtype(value) == jnp.float32:
                setattr(module, name, jnp.float64)
    return (take_apart(model).graphdef, *jax.tree.map(_doubled, (flat, rest, inputs)))


def _doubled(array: Any) -> Any:
    is_single = isinstance(array, np.ndarray | jax.Array) and array.dtype == np.float32
    return np.asarray(array, np.float64) if is_single else array


def _is_sensitive(outputs: Any) -> bool:
    return any(
        float(np.abs(output[0] - output[-1]).max()) > _SENSITIVE * float(np.abs(output).max())
        for output in jax.tree.leaves(outputs)
    )

"""Walks a traced network and says which axes belong together and what happens to each produced channel.

Every value carries its axes as atoms (see `atoms.py`), whether it is a parameter, and which kernels produced the
channels it holds. Contractions with a parameter produce and consume channels; the rules for all other operations
are in `rules.py`. Whatever has no rule freezes the axes that it touches.
"""

from __future__ import annotations

import jax.extend.core as jex

from jaxprune.pruning.atoms import Atoms
from jaxprune.pruning.program import Program, shape_of
from jaxprune.pruning.records import Trace, Value
from jaxprune.pruning.rules import apply_rule
from jaxprune.pruning.states import Path


def walk(program: Program, trained: frozenset[Path]) -> Trace:
    """Applies the rule of every step in program order.

    Args:
      program: a network traced in evaluation mode.
      trained: paths of the trained parameters; others (batch statistics) are never gamma or beta.

    Returns:
      The trace; inputs and outputs of the network are frozen in it.
    """
    atoms = Atoms()
    layouts = {
        path: tuple(atoms.dim(size) for size in program.shapes[number])
        for path, number in program.parameters.items()
    }
    images = program.shapes[program.example]
    example = tuple(atoms.dim(size, "input of the network") for size in images)
    trace = Trace(program, atoms, trained, layouts, batch=example[0])
    for path, number in program.parameters.items():
        trace.values[number] = Value(layouts[path], sources=frozenset({path}))
    trace.values[program.example] = Value(example, is_activation=True)
    for number in program.constants:
        reason = "an array of fixed size built into the network's code"
        trace.values[number] = Value(tuple(atoms.dim(size, reason) for size in program.shapes[number]))
    for step in program.steps:
        inputs = [_read(trace, value) for value in step.inputs]
        outputs = apply_rule(trace, step, inputs)
        trace.values.update(zip(step.outputs, outputs, strict=True))
    for number in program.outputs:
        for dim in trace.values[number].dims:
            atoms.freeze(dim, "output of the network")
    return trace


def _read(trace: Trace, value: int | jex.Literal) -> Value:
    if isinstance(value, int):
        return trace.values[value]
    return Value(tuple(trace.atoms.dim(size, "a constant array") for size in shape_of(value)))

"""Finds weights that a network normalises over the channels that are pruned: weight norm, spectral norm and others.

Such a network divides a kernel by a norm of its own entries (or subtracts their mean) before it uses the kernel. If
channels are removed, the norm of those that stay is another one, so their weights are scaled in another way than in the
full network. The rules note here where a sum over a parameter is brought together with the parameter again.

A masked network holds zeros in place of the channels. A sum of squares does not see them, so it computes what the slim
network does. A mean does, since it divides by a fixed number of entries; and what is shifted (`kernel - mean`) is not
zero any more where the parameter is. A mean is told by the number that a sum is divided by or multiplied with. One that
is written as a matrix product with that number (`k @ full(1 / n)`) is not seen as a mean.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import jax.extend.core as jex
import numpy as np

from jaxprune.structure.channel_classes import ChannelFamilies
from jaxprune.structure.labels import distinct
from jaxprune.structure.model_state import Path, dotted
from jaxprune.structure.program import Input, Operation
from jaxprune.structure.trace import LabelField, LabelledValue, Trace, WeightNorm, WeightSum

_KEEP_ZEROS = frozenset(
    """abs asin asinh atan atanh cbrt ceil conj convert_element_type erf erf_inv expm1 floor imag log1p neg real
    reduce_precision round sign sin sinh sqrt square tan tanh""".split()
)
"""Operations on one value that make zero of zero; so does a positive `integer_pow`."""
_COMPARISONS = frozenset("eq ge gt le lt ne is_finite".split())


class NormalisedWeight(NamedTuple):
    """An axis of a kernel over which the network normalises the kernel, and which loses channels of a group."""

    path: Path
    axis: int
    location: str
    """The operation, with the source line."""
    is_norm: bool
    """False where the kernel is not normalised, but is computed so that it is not zero where its parameter is."""
    sees_zeros: bool
    """Whether zeros in place of the channels do not give the same weights as removing them."""

    def __str__(self) -> str:
        return f"{dotted(self.path)} is normalised over axis {self.axis}"


def normalised_weights(
    families: ChannelFamilies, names: Sequence[str]
) -> dict[str, tuple[NormalisedWeight, ...]]:
    """Finds the kernels that are normalised over channels of each group.

    Args:
      families: families of the network.
      names: the name of each family.

    Returns:
      Group -> normalised axes of kernels; groups without any are left out.
    """
    trace = families.trace
    kernels = {use.kernel for use in trace.producer_uses} | {read.kernel for read in trace.reads}
    found: dict[tuple[str, Path, int, bool], NormalisedWeight] = {}
    for norm in trace.weight_norms:
        over = distinct(trace.labels.find(norm.labels[norm.labels >= 0]))
        for path in sorted(norm.sources & kernels, key=str):
            for axis, factors in enumerate(families.roots[path]):
                roots = np.concatenate([np.zeros(0, np.int64), *factors])
                for family in distinct(families.locate(roots[np.isin(roots, over)])[0]).tolist():
                    key = (names[family], path, axis, norm.is_norm)
                    if family >= 0 and (key not in found or norm.sees_zeros):
                        location = norm.operation.location
                        found[key] = NormalisedWeight(path, axis, location, norm.is_norm, norm.sees_zeros)
    by_group: dict[str, list[NormalisedWeight]] = {}
    for (name, *_), weight in found.items():
        by_group.setdefault(name, []).append(weight)
    return {name: tuple(by_group[name]) for name in names if name in by_group}


def note_sum(
    trace: Trace,
    operation: Operation,
    value: LabelledValue,
    fields: Sequence[LabelField],
    num_entries: int,
    *,
    sees_zeros: bool,
) -> frozenset[int]:
    """Notes a sum, or the like, over channels of a value that is computed from parameters alone.

    Args:
      trace: where it is noted.
      operation: the sum.
      value: what is summed; nothing is noted if it is an activation or a constant.
      fields: the labels that it is summed over.
      num_entries: how many entries are summed up to one.
      sees_zeros: whether zeros change the result.

    Returns:
      Index of the sum in `trace.weight_sums`, if it is one.
    """
    if value.is_activation or not value.sources or not fields:
        return frozenset()
    trace.weight_sums.append(WeightSum(value.sources, _labels_of(fields), num_entries, operation, sees_zeros))
    return frozenset([len(trace.weight_sums) - 1])


def sees_zeros(trace: Trace, operation: Operation, value: LabelledValue) -> bool:
    """Tells whether a reduction of a parameter gives another result if there are zeros in place of removed entries."""
    if operation.name == "reduce_sum" or value.is_shifted:
        return value.is_shifted
    if operation.name != "reduce_max":
        return True
    number = operation.inputs[0]
    made_by = trace.program.makers.get(number) if isinstance(number, int) else None
    if made_by is None:
        return True
    is_even = made_by.name == "integer_pow" and made_by.equation.params["y"] % 2 == 0
    return not (is_even or made_by.name in ("abs", "square"))  # the largest of values that are not negative


def combined(
    trace: Trace, operation: Operation, inputs: Sequence[LabelledValue], result: LabelledValue
) -> LabelledValue:
    """Notes norms where an elementwise operation brings sums over a parameter together with the parameter.

    Args:
      trace: where they are noted.
      operation: an elementwise operation.
      inputs: its inputs.
      result: its result.

    Returns:
      The result, with what is known of its zeros and sums.
    """
    if not result.sources and not any(value.weight_sums for value in inputs):
        return result
    sums = frozenset[int]().union(*(value.weight_sums for value in inputs))
    is_product = operation.name in ("mul", "div")
    for value in inputs:
        for number in sorted(value.weight_sums):
            total = trace.weight_sums[number]
            others = [other for other in inputs if other is not value]
            if any(_meets(trace, total, other, is_product) for other in others):
                norm = WeightNorm(total.sources, total.labels, operation, True, total.sees_zeros)
                trace.weight_norms.append(norm)
    divisor = inputs[-1]
    if divisor.weight_sums and divisor.fields and not divisor.is_shifted and _is_infinite_at_zero(operation):
        zeros = _labels_of(divisor.fields)  # the norm of a channel that is zero is zero in a masked network
        trace.weight_norms.append(WeightNorm(divisor.sources, zeros, operation, False, True))
    if result.is_activation:
        return result
    if is_product and sums:
        sums = frozenset(_divided_by_count(trace, operation, inputs, number) for number in sorted(sums))
    return dataclasses.replace(
        result, weight_sums=sums, is_shifted=_is_shifted(trace, operation, inputs, result)
    )


def note_read(
    trace: Trace, operation: Operation, kernel: LabelledValue, fields: Sequence[LabelField]
) -> None:
    """Notes a kernel that is not zero where its parameter is, on the axes that read channels.

    Args:
      trace: where it is noted.
      operation: the contraction.
      kernel: the kernel, which is shifted.
      fields: the labels of the channels that it reads.
    """
    if fields and not kernel.is_activation:
        trace.weight_norms.append(WeightNorm(kernel.sources, _labels_of(fields), operation, False, True))


def _meets(trace: Trace, total: WeightSum, other: LabelledValue, is_product: bool) -> bool:
    """Tells whether a sum over a parameter meets the parameter itself, or scales an activation."""
    if other.is_activation:
        return is_product and total.operation.name.startswith("reduce")
    if not other.fields or other.sources.isdisjoint(total.sources):
        return False
    labels = _labels_of(other.fields)
    return bool(np.isin(trace.labels.find(labels[labels >= 0]), trace.labels.find(total.labels)).any())


def _is_infinite_at_zero(operation: Operation) -> bool:
    """Tells whether an operation has no finite result where its last input is zero, as a division by it has none."""
    is_power = operation.name == "integer_pow" and operation.equation.params["y"] < 0
    return is_power or operation.name in ("div", "rsqrt", "log")


def _labels_of(fields: Sequence[LabelField]) -> np.ndarray:
    """The labels of some fields, in one row."""
    return np.concatenate([labels.reshape(-1) for _, labels in fields])


def _divided_by_count(
    trace: Trace, operation: Operation, inputs: Sequence[LabelledValue], number: int
) -> int:
    """Returns the index of a sum, or of a new one that sees zeros if it is divided by the number of its entries."""
    total = trace.weight_sums[number]
    counts = [total.num_entries, total.num_entries - 1]
    for literal in _literals(trace, operation, inputs):
        is_count = any(
            np.isclose(literal, power) for count in counts for power in _powers(count) if count > 1
        )
        if is_count and not total.sees_zeros:
            trace.weight_sums.append(total._replace(sees_zeros=True))
            return len(trace.weight_sums) - 1
    return number


def _powers(count: int) -> tuple[float, ...]:
    """The numbers that a sum over so many entries is multiplied with, or divided by, to make a mean of it."""
    return float(count), 1 / count, count**0.5, count**-0.5


def _literals(trace: Trace, operation: Operation, inputs: Sequence[LabelledValue]) -> list[float]:
    """The real numbers that are written into an operation, or into the code right before it."""
    pairs = zip(operation.inputs, inputs, strict=True)
    values = [_number(trace, value) for value, known in pairs if not (known.sources or known.is_activation)]
    return [value for value in values if value is not None]


def _number(trace: Trace, value: Input) -> float | None:
    """The real number that a value is at every index, if it is written into the code."""
    if isinstance(value, jex.Literal):
        is_real = np.ndim(value.val) == 0 and np.isrealobj(value.val)
        return float(value.val) if is_real else None
    made_by = trace.program.makers.get(value)
    if made_by is None or made_by.name not in ("convert_element_type", "broadcast_in_dim"):
        return None
    return _number(trace, made_by.inputs[0])


def _is_shifted(
    trace: Trace, operation: Operation, inputs: Sequence[LabelledValue], result: LabelledValue
) -> bool:
    """Tells whether a value may be other than zero where the parameters that it is computed from are zero."""
    name = operation.name
    if len(inputs) == 1:
        keeps = name in _KEEP_ZEROS or (name == "integer_pow" and operation.equation.params["y"] > 0)
        return inputs[0].is_shifted or not keeps
    labelled = {axis for field in result.fields for axis in field.axes}
    covers = [labelled <= {axis for field in value.fields for axis in field.axes} for value in inputs]
    if name in ("mul", "and"):
        return not any(
            value.sources and not value.is_shifted and whole
            for value, whole in zip(inputs, covers, strict=True)
        )
    if name == "div":
        return inputs[0].is_shifted or not (inputs[0].sources and covers[0])
    if name in _COMPARISONS:
        return False
    cases = inputs[1:] if name == "select_n" else inputs
    if not any(value.sources for value in cases) or any(value.is_shifted for value in cases):
        return True
    if name == "select_n":  # of constants that are not written out, nobody knows whether they are zero
        numbers = zip(operation.inputs[1:], cases, strict=True)
        return any(not value.sources and _number(trace, number) != 0 for number, value in numbers)
    if name == "clamp":
        low, high = (_number(trace, operation.inputs[index]) for index in (0, 2))
        return low is None or high is None or not low <= 0 <= high
    literals = _literals(trace, operation, inputs)
    if name == "pow" and literals:
        return literals[0] <= 0
    if name in ("max", "min") and literals:
        return literals[0] > 0 if name == "max" else literals[0] < 0
    return not all(covers) and not (literals and literals[0] == 0)

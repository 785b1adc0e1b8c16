"""What a function would cost on every layer of an observed network, from shapes alone."""

from __future__ import annotations

from typing import NamedTuple

from jaxprune.language.expression import Expression
from jaxprune.observation.observed import Observed
from jaxprune.scoring.compiled import explain_missing, missing_operands, view_of
from jaxprune.scoring.estimates import estimate_cost, explain_refusal
from jaxprune.scoring.leaves import axis_sizes
from jaxprune.scoring.scorer import BUDGET_BYTES, MAX_FLOPS


class LayerCost(NamedTuple):
    """The cost of one function on one layer."""

    producer: str
    """Path of the kernel whose channels are scored."""
    channels: int
    """C."""
    bytes_per_channel: int
    """Of the largest value on the way, for one class; the engine takes as many channels at once as fit."""
    flops: float
    """Operations in all, over all classes and channels; what does not differ between classes counts once."""
    refusal: str
    """Why its largest value or its operations rule it out; "" if they do not."""


def layer_costs(
    f: Expression, observed: Observed, *, budget_bytes: int = BUDGET_BYTES, max_flops: float = MAX_FLOPS
) -> list[LayerCost]:
    """The estimated cost of a function on every producer; nothing is evaluated.

    Args:
      f: a pruning function.
      observed: what `observe` returns.
      budget_bytes: memory for values, of which one channel may take a quarter.
      max_flops: operations that a function may cost on one layer.

    Example:
      >>> import numpy as np
      >>> from jaxprune.language.parsing import parse
      >>> from jaxprune.observation.records import Operands
      >>> ops = Operands.from_arrays(features=np.eye(2), labels=[0, 1], kernel=np.eye(2))
      >>> observed = Observed({"dense.kernel": ops}, {"dense.kernel": ("dense.kernel",)})
      >>> layer_costs(parse("sum(abs(WI))"), observed)[0][1:]
      (2, 8, 8.0, '')
    """
    found = []
    can_be_asked = {"GW", "GX"} if observed.gradient_source is not None else set()
    can_be_asked |= {"GW2"} if observed.squared_gradient_source is not None else set()
    for path, operands in observed.items():
        cost = estimate_cost(f, axis_sizes(operands, view_of(f, operands)), operands.dtype.itemsize)
        absent = tuple(name for name in missing_operands(f, operands) if name not in can_be_asked)
        refusal = explain_missing(absent) if absent else explain_refusal(cost, budget_bytes, max_flops) or ""
        found.append(LayerCost(path, operands.num_channels, cost.bytes_per_channel, cost.flops, refusal))
    return found

"""Operands: what a pruning function may read about one channel, and vocabularies that select among them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

from jaxprune.language.axes import Type
from jaxprune.types import Array

Reader = Callable[[Any], Array | None]
"""Takes an observed layer's `Operands` and returns a [C, *axes] array, or None where the layer has none.

(`Any`: the folder of `Operands` lies above this one.)
"""


@dataclass(frozen=True)
class Operand:
    """One named quantity that formulas may read.

    Attributes:
      name: how formulas spell it.
      type: its axes for one channel and one class.
      description: one phrase for `jaxprune list` and for generated code.
      latex: its symbol.
      per_class: whether its value depends on the class k.
      paper: whether the paper's vocabulary has it.
      read: returns a registered operand's [C, *axes] array from a layer's `Operands`; None for built-in operands.
    """

    name: str
    type: Type
    description: str
    latex: str
    per_class: bool = False
    paper: bool = False
    read: Reader | None = None


@dataclass(frozen=True)
class Vocabulary:
    """The operands, operators and constants that formulas are built from.

    Attributes:
      operands: names in `OPERANDS`.
      operators: names in `OPERATORS`; empty means every registered operator.
      literals: constants that random generation draws from; a formula may hold any finite number.
    """

    operands: tuple[str, ...]
    operators: tuple[str, ...] = ()
    literals: tuple[float, ...] = (1e-4, 0.05, 0.2, 0.5, 1.0, 2.0)

    def restrict(self, available: Iterable[str]) -> Vocabulary:
        """Returns the same vocabulary without the operands that are not in `available`.

        Example:
          >>> DEFAULT_VOCABULARY.restrict(["WI", "gamma"]).operands
          ('WI', 'gamma')
        """
        names = frozenset(available)
        return replace(self, operands=tuple(name for name in self.operands if name in names))


def _paper(name: str, axes: str, description: str, latex: str, per_class: bool = False) -> Operand:
    """Returns an operand of the paper's vocabulary; `axes` are separated by spaces."""
    return Operand(name, tuple(axes.split()), description, latex, per_class, paper=True)


OPERANDS: dict[str, Operand] = {
    operand.name: operand
    for operand in (
        _paper("X", "NX D", "activations of the channel, all examples", "X"),
        _paper("P", "N D", "activations of the channel, examples of class k", "X_{k}", per_class=True),
        _paper(
            "Q", "NQ D", "activations of the channel, examples of the other classes", r"X_{\bar{k}}",
            per_class=True,
        ),
        _paper("mX", "D", "mean of X over examples", r"\bar{x}"),
        _paper("mP", "D", "mean of P over examples", r"\bar{x}_{k}", per_class=True),
        _paper("mQ", "D", "mean of Q over examples", r"\bar{x}_{\bar{k}}", per_class=True),
        _paper("N", "", "number of examples of class k", "N_{k}", per_class=True),
        _paper("NQ", "", "number of examples of the other classes", r"N_{\bar{k}}", per_class=True),
        _paper("NX", "", "number of examples", "N"),
        _paper("WI", "F", "weights that produce the channel", "w"),
        _paper("W", "F C", "weights that produce all channels of the layer", "W"),
        Operand("gamma", (), "normalisation scale of the channel", r"\gamma"),
        Operand("beta", (), "normalisation shift of the channel", r"\beta"),
        Operand("WO", ("O",), "weights that consume the channel", r"w^{\mathrm{out}}"),
        Operand("GW", ("F",), "gradient of the mean loss with respect to WI", r"\nabla_{\!w}"),
        Operand(
            "GX", ("NX", "D"), "gradient of each example's own loss with respect to X", r"\nabla_{\!X}"
        ),
        Operand(
            "GW2",
            ("F",),
            "mean over examples of the squared gradient of each example's own loss with respect to WI",
            r"\overline{\nabla_{\!w}^{2}}",
            read=lambda operands: operands.extras.get("GW2"),
        ),
    )
}  # fmt: skip
"""Name -> operand, in the order in which they are listed; grows by `register_operand`."""

OF_ACTIVATIONS = frozenset({"X", "P", "Q", "mX", "mP", "mQ"})
"""Operands that are made of activations."""

CLASS_SIZES = frozenset({"N", "NQ", "NX"})
"""Operands that are the same for all channels."""

PAPER_VOCABULARY = Vocabulary(tuple(operand.name for operand in OPERANDS.values() if operand.paper))
"""What the paper's formulas read."""

DEFAULT_VOCABULARY = Vocabulary((*PAPER_VOCABULARY.operands, "gamma", "beta", "WO", "GW", "GX"))
"""The paper's operands, the normalisation's scale and shift, the consuming weights, and gradients of the loss.

`GW2` is left out because it needs a backward pass of its own for each example.
"""

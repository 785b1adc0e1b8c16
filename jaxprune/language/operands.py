"""Operands: what a pruning function may read about one channel, and vocabularies that choose among them."""

from __future__ import annotations

import keyword
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

from jaxprune.language.axes import AXES, Type, is_axis
from jaxprune.types import Array

Reader = Callable[[Any], Array | None]
"""From scoring's `Operands` to a [C, *axes] array, or None where the layer has none. (`Any`: scoring is above us.)"""


@dataclass(frozen=True)
class Operand:
    """One name a formula may read.

    Attributes:
      name: how formulas spell it.
      type: its axes for one channel and one class.
      description: one phrase for `jaxprune list` and for generated code.
      latex: its symbol.
      per_class: whether its value depends on the class k.
      paper: whether the paper's vocabulary has it.
      read: gets a registered operand's [C, *axes] array from scoring's `Operands`; None for built-in ones.
    """

    name: str
    type: Type
    description: str
    latex: str
    per_class: bool = False
    paper: bool = False
    read: Reader | None = None


_CODE_NAMES = frozenset(
    "features labels kernel outgoing weight_gradient feature_gradient is_class c k index dtype scores num_channels "
    "np jnp jax torch".split()
)
OPERANDS: dict[str, Operand] = {}
"""Name -> operand, in the order of the design; grows by `register_operand`."""


def register_operand(
    name: str,
    *,
    type: Type,
    read: Reader,
    description: str = "",
    latex: str | None = None,
    per_class: bool = False,
) -> Operand:
    """Makes one's own quantity readable by formulas; parsing, printing, scoring and evolution then know it.

    Args:
      name: a new identifier, as formulas will spell it.
      type: its axes for one channel, out of `D NX N NQ F O C`; `()` for one number a channel.
      read: takes scoring's `Operands`, returns a [C, *axes] array ([C, K, *axes] if `per_class`), or None
        where the layer has none.
      description: one phrase for lists and generated code.
      latex: its symbol; the name upright by default.
      per_class: whether its value depends on the class.

    Returns:
      The registered operand.

    Raises:
      ValueError: if the name is taken (by an operator or within generated code too) or no identifier, or the
        type has an unknown axis.

    Example:
      >>> entropy = register_operand("entropy", type=(), read=lambda operands: operands.extras.get("entropy"))
      >>> entropy.type
      ()
      >>> del OPERANDS["entropy"]
    """
    if not (name.isidentifier() and name.isascii()) or keyword.iskeyword(name):
        raise ValueError(
            f"An operand's name must be an ASCII identifier, got {name!r}. Use letters, digits, '_'."
        )
    if name in OPERANDS:
        raise ValueError(
            f"An operand's name must be new, got {name!r}, which is {OPERANDS[name].description or 'registered'}. "
            "Choose another name."
        )
    if name in _names_in_use():
        raise ValueError(
            f"An operand's name must be new, got {name!r}, which operators or generated code use. "
            "Choose another name."
        )
    unknown = [axis for axis in type if not is_axis(axis)]
    if unknown:
        raise ValueError(
            f"The type of operand {name!r} must be made of the axes {' '.join(AXES)}, got {unknown}. "
            "Use () for one number a channel."
        )
    if {"N", "NQ"} & set(type) and not per_class:
        raise ValueError(
            f"Operand {name!r} has rows of one class, so it depends on the class, got per_class=False. "
            "Pass per_class=True, or use NX for all examples."
        )
    symbol = latex if latex is not None else rf"\mathrm{{{name}}}".replace("_", r"\_")
    operand = Operand(name, tuple(type), description, symbol, per_class, read=read)
    OPERANDS[name] = operand
    return operand


def _names_in_use() -> frozenset[str]:
    """Names that an operand of one's own would hide in formulas or in generated code."""
    from jaxprune.language.operators import OPERATORS  # which builds on this module

    helpers = "\n".join(source for operator in OPERATORS.values() for source in operator.helper.values())
    return _CODE_NAMES.union(OPERATORS, re.findall(r"^def (\w+)", helpers, re.MULTILINE))


@dataclass(frozen=True)
class Vocabulary:
    """The operands, operators and constants that formulas are built from.

    Attributes:
      operands: names in `OPERANDS`.
      operators: names in `OPERATORS`; empty means every registered operator.
      literals: constants that random generation starts from; a formula may hold any finite number.
    """

    operands: tuple[str, ...]
    operators: tuple[str, ...] = ()
    literals: tuple[float, ...] = (1e-4, 0.05, 0.2, 0.5, 1.0, 2.0)

    def restrict(self, available: Iterable[str]) -> Vocabulary:
        """The same vocabulary without operands that are not in `available`.

        Example:
          >>> DEFAULT_VOCABULARY.restrict(["WI", "gamma"]).operands
          ('WI', 'gamma')
        """
        names = frozenset(available)
        return replace(self, operands=tuple(name for name in self.operands if name in names))


def _declare(
    name: str,
    axes: str,
    description: str,
    latex: str,
    per_class: bool = False,
    paper: bool = True,
    read: Reader | None = None,
) -> None:
    OPERANDS[name] = Operand(name, tuple(axes.split()), description, latex, per_class, paper, read)


_declare("X", "NX D", "activations of the channel, all examples", "X")
_declare("P", "N D", "activations of the channel, examples of class k", "X_{k}", per_class=True)
_declare(
    "Q", "NQ D", "activations of the channel, examples of the other classes", r"X_{\bar{k}}", per_class=True
)
_declare("mX", "D", "mean of X over examples", r"\bar{x}")
_declare("mP", "D", "mean of P over examples", r"\bar{x}_{k}", per_class=True)
_declare("mQ", "D", "mean of Q over examples", r"\bar{x}_{\bar{k}}", per_class=True)
_declare("N", "", "number of examples of class k", "N_{k}", per_class=True)
_declare("NQ", "", "number of examples of the other classes", r"N_{\bar{k}}", per_class=True)
_declare("NX", "", "number of examples", "N")
_declare("WI", "F", "weights that produce the channel", "w")
_declare("W", "F C", "weights that produce all channels of the layer", "W")
_declare("gamma", "", "normalisation scale of the channel", r"\gamma", paper=False)
_declare("beta", "", "normalisation shift of the channel", r"\beta", paper=False)
_declare("WO", "O", "weights that consume the channel", r"w^{\mathrm{out}}", paper=False)
_declare("GW", "F", "gradient of the mean loss with respect to WI", r"\nabla_{\!w}", paper=False)
_declare("GX", "NX D", "gradient of each example's own loss with respect to X", r"\nabla_{\!X}", paper=False)
_declare(
    "GW2",
    "F",
    "mean over examples of the squared gradient of each example's own loss with respect to WI",
    r"\overline{\nabla_{\!w}^{2}}",
    paper=False,
    read=lambda operands: operands.extras.get("GW2"),
)

PAPER_VOCABULARY = Vocabulary(tuple(operand.name for operand in OPERANDS.values() if operand.paper))
"""What the paper's formulas read."""

DEFAULT_VOCABULARY = Vocabulary((*PAPER_VOCABULARY.operands, "gamma", "beta", "WO", "GW", "GX"))
"""The paper's operands, the normalisation's scale and shift, the consuming weights, and gradients of the loss.

`GW2` is left out: it takes a backward pass of its own for each example.
"""

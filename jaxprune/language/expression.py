"""Expressions: immutable typed trees, equal subtrees of which are one object.

`operand`, `literal` and `apply` are the only ways to make one, and they refuse what is ill-typed. Because equal
trees are identical, comparing and hashing cost nothing, and a set of formulas is already a graph without repeats.
"""

from __future__ import annotations

import math
import threading
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, TypeVar
from weakref import WeakValueDictionary

from jaxprune.language.axes import Type
from jaxprune.language.operators import OPERATORS, Backend, IllTypedError, Params, infer_type
from jaxprune.language.vocabulary import OPERANDS

if TYPE_CHECKING:
    from sympy import Expr

OPERAND = "operand"
LITERAL = "literal"
_CHAINS = {"+": "sum", "-": "sum", "*": "product"}

Value = TypeVar("Value")


class Expression:
    """A typed formula: an operand, a literal number, or an operator applied to smaller formulas.

    Attributes:
      operator: a name in `OPERATORS`, or `"operand"` or `"literal"`.
      children: the arguments; empty for operands and literals.
      params: literal parameters of the operator, such as the width of `rbf`.
      name: an operand's name, "" otherwise.
      value: a literal's number, 0.0 otherwise.
      type: axes of its value for one channel and one class; `()` for a pruning function.
      size: number of nodes, repeated ones counted every time.
      depth: levels; a chain of `+` and `-`, or of `*`, is one level, and an operand or a literal is 1.
      complexity: sum over nodes of their operators' complexity, at least `size`.
      operands: names of the operands it reads.

    Example:
      >>> f = apply("sum", apply("abs", operand("WI")))
      >>> str(f), f.type, f.size, f.depth, sorted(f.operands)
      ('sum(abs(WI))', (), 3, 3, ['WI'])
      >>> f is apply("sum", apply("abs", operand("WI")))
      True
    """

    __slots__ = (
        "__weakref__", "_hash", "_text", "children", "complexity", "depth", "name", "operands", "operator", "params",
        "size", "type", "value",
    )  # fmt: skip

    operator: str
    children: tuple[Expression, ...]
    params: Params
    name: str
    value: float
    type: Type
    size: int
    depth: int
    complexity: int
    operands: frozenset[str]
    _hash: int
    _text: str | None

    def __new__(cls, *_: object, **__: object) -> Expression:
        """Refused: use `operand`, `literal`, `apply` or `parse`, which check types.

        Raises:
          TypeError: always.
        """
        raise TypeError(
            "An Expression is made by operand(), literal(), apply() or parse(), which check its types."
        )

    def __setattr__(self, attribute: str, value: object) -> None:
        raise AttributeError(
            f"An Expression cannot be changed (tried to set {attribute!r}); build a new one."
        )

    def __delattr__(self, attribute: str) -> None:
        raise AttributeError(
            f"An Expression cannot be changed (tried to delete {attribute!r}); build a new one."
        )

    def __hash__(self) -> int:
        return self._hash

    def __reduce__(self) -> tuple[Callable[..., Expression], tuple[object, ...]]:
        if self.is_operand:
            return operand, (self.name,)
        if self.is_literal:
            return literal, (self.value,)
        return _rebuild, (self.operator, self.children, self.params)

    def __copy__(self) -> Expression:
        return self

    def __deepcopy__(self, memo: dict[int, object]) -> Expression:
        return self

    def __str__(self) -> str:
        if self._text is None:
            from jaxprune.language.printing import to_text

            object.__setattr__(self, "_text", to_text(self))
        assert self._text is not None
        return self._text

    def __repr__(self) -> str:
        return f"parse({str(self)!r})"

    @property
    def is_operand(self) -> bool:
        """Whether it is a single operand."""
        return self.operator == OPERAND

    @property
    def is_literal(self) -> bool:
        """Whether it is a single number."""
        return self.operator == LITERAL

    def walk(self) -> Iterator[Expression]:
        """Its distinct nodes, every one after its children; itself last.

        Example:
          >>> [str(node) for node in apply("square", apply("+", operand("N"), operand("N"))).walk()]
          ['N', 'N + N', 'square(N + N)']
        """
        seen: set[Expression] = set()
        stack: list[tuple[Expression, bool]] = [(self, False)]
        while stack:
            node, is_expanded = stack.pop()
            if node in seen:
                continue
            if is_expanded:
                seen.add(node)
                yield node
            else:
                stack.append((node, True))
                stack.extend((child, False) for child in reversed(node.children))

    def fold(self, combine: Callable[[Expression, Sequence[Value]], Value]) -> Value:
        """The value of the root, when `combine(node, values of its children)` gives every node's, once each.

        Example:
          >>> f = apply("abs", operand("WI"))
          >>> f.fold(lambda node, depths: 1 + max(depths, default=0))
          2
        """
        values: dict[Expression, Value] = {}
        for node in self.walk():
            values[node] = combine(node, [values[child] for child in node.children])
        return values[self]

    def latex(self) -> str:
        """The formula as LaTeX math, without dollar signs; never fails."""
        from jaxprune.language.printing import to_latex

        return to_latex(self)

    def sympy(self) -> Expr:
        """The formula in SymPy, operators that SymPy lacks as functions; never fails."""
        from jaxprune.language.printing import to_sympy

        return to_sympy(self)

    def code(self, backend: Backend) -> str:
        """Source of a self-contained `pruning_function` in NumPy, JAX or PyTorch; see `codegen.to_code`."""
        from jaxprune.language.codegen import to_code

        return to_code(self, backend)


_INTERNED: WeakValueDictionary[tuple[object, ...], Expression] = WeakValueDictionary()
_LOCK = threading.Lock()


def operand(name: str) -> Expression:
    """The operand of this name.

    Raises:
      ValueError: if no operand has this name.

    Example:
      >>> operand("mX").type
      ('D',)
    """
    if name not in OPERANDS:
        raise ValueError(f"An operand must be one of {' '.join(OPERANDS)}, got {name!r}.")
    return _intern(OPERAND, (), (), name, 0.0, OPERANDS[name].type)


def literal(value: float) -> Expression:
    """A constant of type ().

    Raises:
      ValueError: if it is not finite.

    Example:
      >>> str(literal(0.05)), str(literal(2))
      ('0.05', '2')
    """
    number = float(value) + 0.0  # -0.0 prints as 0
    if not math.isfinite(number):
        raise ValueError(f"A literal must be a finite number, got {number}.")
    return _intern(LITERAL, (), (), "", number, ())


def apply(operator: str, *children: Expression, params: Sequence[float] = ()) -> Expression:
    """An operator of `OPERATORS` applied to formulas whose types it takes.

    Args:
      operator: `+ - * /` or a name such as `"var"`.
      *children: its arguments.
      params: its literal parameters: the width of `rbf`, the bounds of `slice`.

    Raises:
      IllTypedError: if the operator is unknown, its signatures do not take these types, or the parameters are wrong.

    Example:
      >>> str(apply("rbf", operand("P"), operand("Q"), params=(1,)))
      'rbf(P, Q, 1)'
    """
    numbers = tuple(float(param) + 0.0 for param in params)
    type = infer_type(operator, [child.type for child in children], numbers)
    return _intern(operator, children, numbers, "", 0.0, type)


def replace_children(node: Expression, children: Sequence[Expression]) -> Expression:
    """The same operator and parameters over other arguments, checked; operands and literals come back as they are.

    Raises:
      IllTypedError: if the operator does not take the new arguments' types.
    """
    if not node.children or tuple(children) == node.children:
        return node
    return apply(node.operator, *children, params=node.params)


def _rebuild(operator: str, children: tuple[Expression, ...], params: Params) -> Expression:
    return apply(operator, *children, params=params)


def _intern(
    operator: str, children: tuple[Expression, ...], params: Params, name: str, value: float, type: Type
) -> Expression:
    key = (operator, children, params, name, value, type)
    with _LOCK:
        known = _INTERNED.get(key)
        if known is not None:
            return known
        node: Expression = object.__new__(Expression)
        # Hashes are the same in every process, so that the order of sets never changes a run.
        digest = zlib.crc32(
            repr((operator, params, name, value, type, [child._hash for child in children])).encode()
        )
        fields: dict[str, object] = {
            "operator": operator,
            "children": children,
            "params": params,
            "name": name,
            "value": value,
            "type": type,
            "size": 1 + sum(child.size for child in children),
            "depth": _depth(operator, children),
            "complexity": _own_complexity(operator) + sum(child.complexity for child in children),
            "operands": frozenset({name} if name else ()).union(*(child.operands for child in children)),
            "_hash": digest,
            "_text": None,
        }
        for attribute, content in fields.items():
            object.__setattr__(node, attribute, content)
        _INTERNED[key] = node
        return node


def _depth(operator: str, children: tuple[Expression, ...]) -> int:
    chain = _CHAINS.get(operator)
    deepest = 0
    for child in children:
        continues_chain = chain is not None and _CHAINS.get(child.operator) == chain
        deepest = max(deepest, child.depth - (1 if continues_chain else 0))
    return deepest + 1


def _own_complexity(operator: str) -> int:
    return OPERATORS[operator].complexity if operator in OPERATORS else 1


__all__ = ["Expression", "IllTypedError", "apply", "literal", "operand", "replace_children"]

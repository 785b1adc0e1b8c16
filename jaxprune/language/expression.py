"""Expressions: immutable typed trees in which equal subtrees are one object.

Every expression is built by `operand`, `literal` and `apply`, which refuse ill-typed formulas. Because equal trees are
the same object, comparing and hashing cost nothing, and a set of formulas is already a graph without repeats.
"""

from __future__ import annotations

import math
import threading
import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, TypeVar
from weakref import WeakValueDictionary

from jaxprune.language.axes import Type
from jaxprune.language.operators import OPERATORS, Backend, Params, infer_type
from jaxprune.language.vocabulary import OPERANDS

if TYPE_CHECKING:
    from sympy import Expr

OPERAND = "operand"
LITERAL = "literal"
_CHAINS = {"+": "sum", "-": "sum", "*": "product"}
"""Operators whose nested applications count as one level -> the chain that they belong to."""

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
      size: number of nodes, counting repeated ones every time.
      depth: number of levels; a chain of `+` and `-`, or of `*`, is one level, and so is an operand or a literal.
      complexity: sum over all nodes of their operators' complexity, at least `size`.
      operands: names of the operands that it reads.

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
        """Refuses to build an expression without checks; use `operand`, `literal`, `apply` or `parse`.

        Raises:
          TypeError: always.
        """
        raise TypeError(
            "Build an Expression with operand(), literal(), apply() or parse(), which check types."
        )

    def __setattr__(self, attribute: str, value: object) -> None:
        raise AttributeError(
            f"An Expression cannot be changed, so {attribute!r} cannot be set; build a new one."
        )

    def __delattr__(self, attribute: str) -> None:
        raise AttributeError(
            f"An Expression cannot be changed, so {attribute!r} cannot be deleted; build a new one."
        )

    def __hash__(self) -> int:
        return self._hash

    def __reduce__(self) -> tuple[Callable[..., Expression], tuple[object, ...]]:
        if self.is_operand:
            return operand, (self.name,)
        if self.is_literal:
            return literal, (self.value,)
        return partial(apply, self.operator, params=self.params), self.children

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
        """Whether it is just an operand."""
        return self.operator == OPERAND

    @property
    def is_literal(self) -> bool:
        """Whether it is just a number."""
        return self.operator == LITERAL

    def walk(self) -> Iterator[Expression]:
        """Yields its distinct nodes, each one after its children, and itself last.

        Example:
          >>> [str(node) for node in apply("square", apply("+", operand("N"), operand("N"))).walk()]
          ['N', 'N + N', 'square(N + N)']
        """
        visited: set[Expression] = set()
        stack: list[tuple[Expression, bool]] = [(self, False)]
        while stack:
            node, is_expanded = stack.pop()
            if node in visited:
                continue
            if is_expanded:
                visited.add(node)
                yield node
            else:
                stack.append((node, True))
                stack.extend((child, False) for child in reversed(node.children))

    def fold(self, combine: Callable[[Expression, Sequence[Value]], Value]) -> Value:
        """Computes a value for every distinct node, from the leaves to the root.

        Args:
          combine: takes a node and the values of its children, returns the node's value.

        Returns:
          The value of the root.

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
        """Returns the formula as LaTeX math, without dollar signs; never fails."""
        from jaxprune.language.printing import to_latex

        return to_latex(self)

    def sympy(self) -> Expr:
        """Returns the formula in SymPy, with undefined functions for operators that SymPy lacks; never fails."""
        from jaxprune.language.printing import to_sympy

        return to_sympy(self)

    def code(self, backend: Backend) -> str:
        """Returns the source of a self-contained `pruning_function` in NumPy, JAX or PyTorch.

        Args:
          backend: "numpy", "jax" or "torch".

        Returns:
          Python source; see `codegen.to_code` for its arguments.

        Raises:
          ValueError: if the formula is not of type (), or the backend is unknown.
        """
        from jaxprune.language.codegen import to_code

        return to_code(self, backend)


def operand(name: str) -> Expression:
    """Returns the operand with this name.

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
    """Returns a constant of type ().

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
    """Applies an operator to formulas.

    Args:
      operator: `+ - * /` or a name in `OPERATORS` such as `"var"`.
      *children: its arguments.
      params: its literal parameters: the width of `rbf`, the bounds of `slice`.

    Returns:
      The formula, whose type follows from the operator's signatures.

    Raises:
      IllTypedError: if the operator is unknown, its signatures do not accept these types, or the parameters are wrong.

    Example:
      >>> str(apply("rbf", operand("P"), operand("Q"), params=(1,)))
      'rbf(P, Q, 1)'
    """
    numbers = tuple(float(param) + 0.0 for param in params)
    type = infer_type(operator, [child.type for child in children], numbers)
    return _intern(operator, children, numbers, "", 0.0, type)


def replace_children(node: Expression, children: Sequence[Expression]) -> Expression:
    """Applies the operator of `node`, with the same parameters, to other arguments.

    Args:
      node: any expression; an operand or a literal is returned unchanged.
      children: the new arguments.

    Returns:
      The new formula, or `node` itself if the arguments are its own.

    Raises:
      IllTypedError: if the operator does not accept the new arguments' types.
    """
    if not node.children or tuple(children) == node.children:
        return node
    return apply(node.operator, *children, params=node.params)


def continues_chain(operator: str, parent_operator: str) -> bool:
    """Returns whether a node starts no level of its own: a sum within a sum, or a product within a product.

    Args:
      operator: the node's operator.
      parent_operator: the operator directly above it, "" at the root.

    Example:
      >>> continues_chain("-", "+"), continues_chain("*", "+"), continues_chain("/", "/")
      (True, False, False)
    """
    return operator in _CHAINS and _CHAINS[operator] == _CHAINS.get(parent_operator)


_INTERNED: WeakValueDictionary[tuple[object, ...], Expression] = WeakValueDictionary()
_LOCK = threading.Lock()


def _intern(
    operator: str, children: tuple[Expression, ...], params: Params, name: str, value: float, type: Type
) -> Expression:
    """Returns the one expression with these parts, building it at first use."""
    key = (operator, children, params, name, value, type)
    with _LOCK:
        node = _INTERNED.get(key)
        if node is not None:
            return node
        node = object.__new__(Expression)
        own_complexity = OPERATORS[operator].complexity if operator in OPERATORS else 1
        # Hashes are the same in every process, so that the order of sets never changes a run.
        hashed = repr((operator, params, name, value, type, [child._hash for child in children]))
        fields: dict[str, object] = {
            "operator": operator,
            "children": children,
            "params": params,
            "name": name,
            "value": value,
            "type": type,
            "size": 1 + sum(child.size for child in children),
            "depth": 1
            + max((child.depth - continues_chain(child.operator, operator) for child in children), default=0),
            "complexity": own_complexity + sum(child.complexity for child in children),
            "operands": frozenset({name} if name else ()).union(*(child.operands for child in children)),
            "_hash": zlib.crc32(hashed.encode()),
            "_text": None,
        }
        for attribute, content in fields.items():
            object.__setattr__(node, attribute, content)
        _INTERNED[key] = node
        return node

"""From text to an expression: Python's own grammar, read with `ast` against a whitelist, never evaluated."""

from __future__ import annotations

import ast
import difflib
import math
import warnings
from collections.abc import Iterable, Sequence
from typing import NoReturn

from jaxprune.language.expression import Expression, apply, literal, operand
from jaxprune.language.operators import OPERATORS, IllTypedError
from jaxprune.language.vocabulary import OPERANDS, Vocabulary

MAX_CHARACTERS = 4_000
MAX_DEPTH = 64
MAX_NODES = 1_000

NAMED_FUNCTIONS: dict[str, str] = {}
"""Name of a known function -> the mapping that holds it; filled by `language.library`, for error messages."""

_BINARY: dict[type[ast.operator], str] = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/"}


class ParseError(ValueError):
    """Text that is not a well-typed formula.

    Attributes:
      text: what was parsed.
      column: where the trouble starts, counted from 0.
      reason: what was needed, what came, how to fix it.
    """

    def __init__(self, reason: str, text: str, column: int) -> None:
        self.reason, self.text, self.column = reason, text, column
        # A long text is shown around the offending column only.
        start = max(0, column - 60)
        shown = text[start : start + 120]
        super().__init__(f"{reason}\n  {shown}\n  {' ' * (column - start)}^")


def parse(text: str, vocabulary: Vocabulary | None = None) -> Expression:
    """Reads a formula in infix notation.

    Knows names, finite decimal numbers, `+ - * /`, calls of operators, `x**2` (which is `square(x)`) and parentheses.
    A minus before a number belongs to it; `-x` of anything else is `-1*x`.

    Args:
      text: at most 4,000 characters, 64 levels and 1,000 nodes.
      vocabulary: refuse operands and operators outside it; every registered one is known by default.

    Returns:
      The expression; its type need not be `()`.

    Raises:
      ParseError: if the text is not a formula, too large, ill-typed or has an unknown name; the message shows the
        text with a caret below the offending column.
      TypeError: if `text` is not a string.

    Example:
      >>> f = parse("var(P)/(var(Q) + 0.05)")
      >>> f.type, parse(str(f)) is f
      ((), True)
      >>> str(parse("-(mP - mX)**2"))
      '-1*square(mP - mX)'
    """
    if not isinstance(text, str):
        raise TypeError(
            f"parse needs a formula as text, got {type(text).__name__}. Write parse('sum(abs(WI))')."
        )
    flat = "".join(" " if character.isspace() else character for character in text)
    if len(flat) > MAX_CHARACTERS:
        raise ParseError(
            f"A formula has at most {MAX_CHARACTERS} characters, got {len(flat)}.", flat, MAX_CHARACTERS
        )
    return _Reader(flat, vocabulary).read()


class _Reader:
    """One text being read; holds what errors need to point at a column."""

    def __init__(self, text: str, vocabulary: Vocabulary | None) -> None:
        self.text = text
        self.num_indented = len(text) - len(text.lstrip())  # ast counts columns of the stripped text
        self.num_nodes = 0
        everything = vocabulary is None
        self.operands = tuple(OPERANDS) if everything or vocabulary is None else vocabulary.operands
        restricted = vocabulary.operators if vocabulary is not None else ()
        self.operators = restricted or tuple(OPERATORS)

    def read(self) -> Expression:
        if not self.text.strip():
            self.fail("A formula is needed, got empty text. Write something like sum(abs(WI)).", 0)
        for column, character in enumerate(self.text):
            if not character.isascii() or not character.isprintable() or character in "#;\\":
                self.fail(
                    f"A formula is plain ASCII infix text, got {character!r}. Remove that character.", column
                )
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                body = ast.parse(self.text.strip(), mode="eval").body
        except SyntaxError as error:
            is_at_end = not error.offset or error.lineno != 1  # Python stopped behind the last character
            start = len(self.text.strip()) if is_at_end or error.offset is None else error.offset - 1
            column = min(start + self.num_indented, len(self.text))
            self.fail(
                f"A formula like var(P)/(var(Q) + 0.05) is needed, got a syntax error: {error.msg}.", column
            )
        except (ValueError, MemoryError, RecursionError) as error:
            self.fail(
                f"A formula of at most {MAX_DEPTH} levels is needed, got one too deep to read ({error}).", 0
            )
        return self.expression(body, 1)

    def expression(self, node: ast.expr, level: int) -> Expression:
        self.count(node)
        if level > MAX_DEPTH:
            self.fail(f"A formula has at most {MAX_DEPTH} levels, got more here. Write it flatter.", node)
        if isinstance(node, ast.BinOp):
            return self.chain(node, level)
        if isinstance(node, ast.UnaryOp):
            return self.signed(node, level)
        if isinstance(node, ast.Call):
            return self.call(node, level)
        if isinstance(node, ast.Name):
            return self.name(node)
        if not isinstance(node, ast.Constant):
            self.fail(f"A formula has names, numbers, + - * / and calls, got {_kind(node)}.", node)
        return literal(self.number(node))

    def chain(self, node: ast.BinOp, level: int) -> Expression:
        """Reads `a + b + c ...` down its left spine, so that a long chain is neither deep nor recursive."""
        links = [node]
        while isinstance(links[-1].left, ast.BinOp):
            links.append(links[-1].left)
            self.count(links[-1])
        # Whatever the ast calls nested on the left is one level here; the tree's own depth is checked below.
        value = self.expression(links[-1].left, level + 1)
        for link in reversed(links):
            if isinstance(link.op, ast.Pow):
                value = self.power(link, value)
                continue
            symbol = _BINARY.get(type(link.op))
            if symbol is None:
                self.fail(
                    f"Between values a formula has {' '.join(_BINARY.values())}, got {_kind(link.op)}.", link
                )
            value = self.build(symbol, [value, self.expression(link.right, level + 1)], (), link)
        return value

    def power(self, node: ast.BinOp, base: Expression) -> Expression:
        exponent = self.number(node.right) if isinstance(node.right, ast.Constant) else None
        if exponent != 2:
            self.fail(
                "The only power is **2, which is square(x). Use products or sqrt for others.", node.right
            )
        return self.build("square", [base], (), node)

    def signed(self, node: ast.UnaryOp, level: int) -> Expression:
        if not isinstance(node.op, ast.USub | ast.UAdd):
            self.fail(f"Before a value a formula has + or -, got {_kind(node.op)}.", node)
        if isinstance(node.op, ast.USub) and isinstance(node.operand, ast.Constant):
            return literal(-self.number(node.operand))
        value = self.expression(node.operand, level + 1)
        if isinstance(node.op, ast.UAdd):
            return value
        return self.build("*", [literal(-1.0), value], (), node)

    def call(self, node: ast.Call, level: int) -> Expression:
        if not isinstance(node.func, ast.Name):
            self.fail(f"Only operators can be called, got {_kind(node.func)}.", node)
        name = node.func.id
        if name not in self.operators or OPERATORS[name].is_infix:
            self.fail_unknown("operator", name, (key for key in self.operators if key.isidentifier()), node)
        if node.keywords:
            self.fail(
                f"{name} takes its arguments by position, got {node.keywords[0].arg}=. Drop the name.", node
            )
        num_params = OPERATORS[name].num_params
        if len(node.args) <= num_params:
            signatures = " or ".join(map(str, OPERATORS[name].signatures))
            followed = f" followed by {num_params} numbers" if num_params else ""
            self.fail(f"{name} needs {signatures}{followed}, got {len(node.args)} arguments.", node)
        split = len(node.args) - num_params
        params = [self.parameter(name, argument) for argument in node.args[split:]]
        return self.build(
            name, [self.expression(argument, level + 1) for argument in node.args[:split]], params, node
        )

    def parameter(self, name: str, node: ast.expr) -> float:
        """A literal parameter, which counts as no node."""
        is_negative = isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub)
        inner = node.operand if isinstance(node, ast.UnaryOp) and is_negative else node
        if not isinstance(inner, ast.Constant):
            num_params = OPERATORS[name].num_params
            reason = (
                f"{name} ends with {num_params} literal numbers, got {_kind(inner)}. Write a number here."
            )
            self.fail(reason, node)
        return -self.number(inner) if is_negative else self.number(inner)

    def name(self, node: ast.Name) -> Expression:
        if node.id not in self.operands or node.id not in OPERANDS:
            self.fail_unknown("operand", node.id, self.operands, node)
        return operand(node.id)

    def number(self, node: ast.Constant) -> float:
        if isinstance(node.value, bool) or not isinstance(node.value, int | float):
            self.fail(f"A number is needed, got {node.value!r}.", node)
        try:
            value = float(node.value)
        except OverflowError:
            value = math.inf
        if not math.isfinite(value):
            self.fail(
                "A number must be finite in double precision, got one too large. Use a smaller one.", node
            )
        return value

    def build(
        self, operator: str, children: list[Expression], params: Sequence[float], node: ast.expr
    ) -> Expression:
        if operator not in self.operators:
            self.fail(f"This vocabulary has the operators {' '.join(self.operators)}, got {operator}.", node)
        try:
            value = apply(operator, *children, params=params)
        except IllTypedError as error:
            self.fail(str(error), _anchor(node))
        if value.depth > MAX_DEPTH:
            self.fail(f"A formula has at most {MAX_DEPTH} levels, got {value.depth}. Write it flatter.", node)
        return value

    def count(self, node: ast.expr) -> None:
        self.num_nodes += 1
        if self.num_nodes > MAX_NODES:
            self.fail(f"A formula has at most {MAX_NODES} nodes, got more here. Write a shorter one.", node)

    def fail_unknown(self, kind: str, name: str, known: Iterable[str], node: ast.expr) -> NoReturn:
        names = list(known)
        close = [other for other in names if other.lower() == name.lower()]
        close = close or difflib.get_close_matches(name, names, 1, 0.5)
        registered = name in OPERANDS or name in OPERATORS
        hint = f"Did you mean {close[0]}?" if close else "Is it registered?"
        if kind == "operand" and name in OPERATORS:
            hint = f"{name} is an operator: write {name}(...)."
        elif kind == "operator" and name in OPERANDS:
            hint = f"{name} is an operand: it takes no arguments."
        elif name in NAMED_FUNCTIONS:
            hint = f"{name} is a named function: take it from {NAMED_FUNCTIONS[name]}."
        elif registered:
            hint = "It exists but this vocabulary leaves it out."
        self.fail(f"The {kind} must be one of {' '.join(names)}, got {name!r}. {hint}", node)

    def fail(self, reason: str, where: ast.expr | int) -> NoReturn:
        column = where if isinstance(where, int) else where.col_offset + self.num_indented
        raise ParseError(reason, self.text, column) from None


def _anchor(node: ast.expr) -> ast.expr:
    """The part to point at for an ill-typed operation: the right side of a binary one, else its start."""
    return node.right if isinstance(node, ast.BinOp) and not isinstance(node.op, ast.Pow) else node


def _kind(node: ast.AST) -> str:
    """What a reader would call a piece of Python syntax."""
    return {
        "Attribute": "an attribute (a dot)",
        "Subscript": "a subscript [...] (use slice)",
        "Compare": "a comparison",
        "BoolOp": "and/or",
        "Pow": "a power",
        "BitXor": "^ (a square is **2)",
        "FloorDiv": "//",
        "Mod": "%",
        "MatMult": "@ (use matmul)",
        "Lambda": "a lambda",
        "IfExp": "if/else",
        "Constant": "a constant",
        "Name": "a name",
        "Call": "a call",
        "BinOp": "a formula",
        "Starred": "a starred argument",
    }.get(type(node).__name__, f"Python's {type(node).__name__}")

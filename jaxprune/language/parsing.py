"""Reads expressions from text.

Python's own parser reads the text; its syntax tree is then checked against what formulas may contain, and never
evaluated.
"""

from __future__ import annotations

import ast
import math
import warnings
from collections.abc import Sequence
from typing import NoReturn

from jaxprune.language.expression import Expression, apply, literal, operand
from jaxprune.language.operators import OPERATORS, IllTypedError
from jaxprune.language.vocabulary import OPERANDS, Vocabulary
from jaxprune.text import closest

MAX_CHARACTERS = 4_000
MAX_DEPTH = 64
MAX_NODES = 1_000

NAMED_FUNCTIONS: dict[str, str] = {}
"""Name of a known function -> the mapping that holds it; filled by `language.library` for error messages."""

_BINARY: dict[type[ast.operator], str] = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/"}


class ParseError(ValueError):
    """A text that is not a well-typed formula.

    Attributes:
      text: what was parsed.
      column: where the error is, counted from 0.
      reason: what is wrong, and how to correct it.
    """

    def __init__(self, reason: str, text: str, column: int) -> None:
        self.reason, self.text, self.column = reason, text, column
        start = max(0, column - 60)  # a long text is shown around the error only
        super().__init__(f"{reason}\n  {text[start : start + 120]}\n  {' ' * (column - start)}^")


def parse(text: str, vocabulary: Vocabulary | None = None) -> Expression:
    """Reads a formula in infix notation.

    A formula may contain names, finite decimal numbers, `+ - * /`, calls of operators, `x**2` (which is `square(x)`)
    and parentheses. A minus before a number belongs to the number; `-x` of anything else is `-1*x`.

    Args:
      text: at most 4,000 characters, 64 levels and 1,000 nodes.
      vocabulary: the operands and operators that are allowed; by default every registered one.

    Returns:
      The expression, of any type.

    Raises:
      ParseError: if the text is not a formula, is too large or ill-typed, or has an unknown name; the message shows
        the text with a caret below the error.
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
        reason = f"A formula has at most {MAX_CHARACTERS} characters, got {len(flat)}."
        raise ParseError(reason, flat, MAX_CHARACTERS)
    return _Reader(flat, vocabulary).read()


class _Reader:
    """Turns one text into an expression, counting nodes and levels on the way."""

    def __init__(self, text: str, vocabulary: Vocabulary | None) -> None:
        self.text = text
        self.num_spaces = len(text) - len(text.lstrip())  # ast counts columns of the stripped text
        self.num_nodes = 0
        self.operands = vocabulary.operands if vocabulary is not None else tuple(OPERANDS)
        self.operators = (vocabulary.operators if vocabulary is not None else ()) or tuple(OPERATORS)

    def read(self) -> Expression:
        if not self.text.strip():
            self.fail("The formula is empty. Write something like sum(abs(WI)).", 0)
        for column, character in enumerate(self.text):
            if not character.isascii() or not character.isprintable() or character in "#;\\":
                self.fail(f"A formula is plain ASCII infix text, so remove {character!r}.", column)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                body = ast.parse(self.text.strip(), mode="eval").body
        except SyntaxError as error:
            is_at_end = not error.offset or error.lineno != 1  # Python stopped behind the last character
            start = len(self.text.strip()) if is_at_end or error.offset is None else error.offset - 1
            column = min(start + self.num_spaces, len(self.text))
            self.fail(
                f"This is not a formula (syntax error: {error.msg}). Write it like var(P)/(var(Q) + 0.05).",
                column,
            )
        except (ValueError, MemoryError, RecursionError) as error:
            self.fail(f"A formula has at most {MAX_DEPTH} levels, this one is too deep to read ({error}).", 0)
        return self.expression(body, 1)

    def expression(self, node: ast.expr, level: int) -> Expression:
        """Reads any part of a formula."""
        self.count(node)
        if level > MAX_DEPTH:
            self.fail(f"A formula has at most {MAX_DEPTH} levels, got more here. Write it flatter.", node)
        match node:
            case ast.BinOp():
                return self.chain(node, level)
            case ast.UnaryOp():
                return self.signed(node, level)
            case ast.Call():
                return self.call(node, level)
            case ast.Name(id=name):
                if name not in self.operands or name not in OPERANDS:
                    self.fail_unknown("operand", name, self.operands, node)
                return operand(name)
        if not isinstance(node, ast.Constant):
            self.fail(f"A formula has names, numbers, + - * / and calls, got {_syntax_name(node)}.", node)
        return literal(self.number(node))

    def chain(self, node: ast.BinOp, level: int) -> Expression:
        """Reads `a + b + c ...` from left to right in a loop, so that a long chain is neither deep nor recursive."""
        links = [node]
        while isinstance(links[-1].left, ast.BinOp):
            links.append(links[-1].left)
            self.count(links[-1])
        # All links are one level here although `ast` nests them; `build` checks the depth of the expression itself.
        value = self.expression(links[-1].left, level + 1)
        for link in reversed(links):
            if isinstance(link.op, ast.Pow):
                exponent = self.number(link.right) if isinstance(link.right, ast.Constant) else None
                if exponent != 2:
                    reason = "The only power is **2, which is square(x). Use products or sqrt for others."
                    self.fail(reason, link.right)
                value = self.build("square", [value], (), link)
                continue
            symbol = _BINARY.get(type(link.op))
            if symbol is None:
                symbols = " ".join(_BINARY.values())
                self.fail(
                    f"The operator between two values must be one of {symbols}, got {_syntax_name(link.op)}.",
                    link,
                )
            value = self.build(symbol, [value, self.expression(link.right, level + 1)], (), link)
        return value

    def signed(self, node: ast.UnaryOp, level: int) -> Expression:
        """Reads `-x` or `+x`."""
        if not isinstance(node.op, ast.USub | ast.UAdd):
            self.fail(f"The sign before a value must be + or -, got {_syntax_name(node.op)}.", node)
        if isinstance(node.op, ast.USub) and isinstance(node.operand, ast.Constant):
            return literal(-self.number(node.operand))
        value = self.expression(node.operand, level + 1)
        if isinstance(node.op, ast.UAdd):
            return value
        return self.build("*", [literal(-1.0), value], (), node)

    def call(self, node: ast.Call, level: int) -> Expression:
        """Reads `name(arguments, parameters)`."""
        if not isinstance(node.func, ast.Name):
            self.fail(f"Only operators can be called, got {_syntax_name(node.func)}.", node)
        name = node.func.id
        if name not in self.operators or OPERATORS[name].is_infix:
            self.fail_unknown("operator", name, [key for key in self.operators if key.isidentifier()], node)
        if node.keywords:
            keyword = node.keywords[0].arg
            self.fail(f"{name} takes its arguments by position, got {keyword}=. Remove the name.", node)
        num_params = OPERATORS[name].num_params
        if len(node.args) <= num_params:
            signatures = " or ".join(map(str, OPERATORS[name].signatures))
            numbers = f" followed by {num_params} numbers" if num_params else ""
            self.fail(f"{name} needs {signatures}{numbers}, got {len(node.args)} arguments.", node)
        split = len(node.args) - num_params
        params = [self.parameter(name, argument) for argument in node.args[split:]]
        children = [self.expression(argument, level + 1) for argument in node.args[:split]]
        return self.build(name, children, params, node)

    def parameter(self, name: str, node: ast.expr) -> float:
        """Reads a literal parameter of the operator `name`; it does not count as a node."""
        sign, number = 1.0, node
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            sign, number = -1.0, node.operand
        if not isinstance(number, ast.Constant):
            num_params, kind = OPERATORS[name].num_params, _syntax_name(number)
            self.fail(
                f"{name} ends with {num_params} literal numbers, got {kind}. Write a number here.", node
            )
        return sign * self.number(number)

    def number(self, node: ast.Constant) -> float:
        """Reads a number."""
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
        """Applies an operator, if the vocabulary has it and the types match."""
        if operator not in self.operators:
            known = " ".join(self.operators)
            self.fail(f"This vocabulary has only the operators {known}, got {operator}.", node)
        try:
            value = apply(operator, *children, params=params)
        except (
            IllTypedError
        ) as error:  # a binary operation is marked at its right side, all else at its start
            if isinstance(node, ast.BinOp) and not isinstance(node.op, ast.Pow):
                node = node.right
            self.fail(str(error), node)
        if value.depth > MAX_DEPTH:
            self.fail(f"A formula has at most {MAX_DEPTH} levels, got {value.depth}. Write it flatter.", node)
        return value

    def count(self, node: ast.expr) -> None:
        """Counts a node."""
        self.num_nodes += 1
        if self.num_nodes > MAX_NODES:
            self.fail(f"A formula has at most {MAX_NODES} nodes, got more here. Write a shorter one.", node)

    def fail_unknown(self, kind: str, name: str, known_names: Sequence[str], node: ast.expr) -> NoReturn:
        """Refuses a name, with a hint about what the user may have meant."""
        if kind == "operand" and name in OPERATORS:
            hint = f" {name} is an operator: write {name}(...)."
        elif kind == "operator" and name in OPERANDS:
            hint = f" {name} is an operand: it takes no arguments."
        elif name in NAMED_FUNCTIONS:
            hint = f" {name} is a named function: take it from {NAMED_FUNCTIONS[name]}."
        elif name in OPERANDS or name in OPERATORS:
            hint = " It exists, but this vocabulary leaves it out."
        else:
            hint = closest(name, known_names) or " Is it registered?"
        self.fail(f"The {kind} must be one of {' '.join(known_names)}, got {name!r}.{hint}", node)

    def fail(self, reason: str, where: ast.expr | int) -> NoReturn:
        """Refuses the text; `where` is the column of the error or the node that starts there."""
        column = where if isinstance(where, int) else where.col_offset + self.num_spaces
        raise ParseError(reason, self.text, column) from None


def _syntax_name(node: ast.AST) -> str:
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

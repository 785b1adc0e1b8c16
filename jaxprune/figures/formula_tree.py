"""Draws a formula as a tree."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from jaxprune.figures.style import DARK, GREY, new_figure
from jaxprune.language.expression import Expression
from jaxprune.language.printing import number_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_ROW, _GAP, _HEIGHT = 0.74, 0.16, 0.34
"""Inches from one level to the next, between boxes side by side, and of a box."""

_KINDS = {
    "operator": ("white", GREY, "operator"),
    "weights": ("#cfe6f5", "#0072B2", "weights"),
    "activations": ("#ffe3b8", "#E69F00", "activations"),
    "scale": ("#c9ecdf", "#009E73", "normalisation"),
    "count": ("#ececec", GREY, "counts"),
    "own": ("#f3d9e8", "#CC79A7", "own operand"),
    "literal": ("white", "white", "literal"),
}
"""Kind of a box -> fill, edge, name in the legend."""

_KIND_OF_OPERAND = {
    **dict.fromkeys(("WI", "W", "WO", "GW"), "weights"),
    **dict.fromkeys(("X", "P", "Q", "mX", "mP", "mQ", "GX"), "activations"),
    **dict.fromkeys(("gamma", "beta"), "scale"),
    **dict.fromkeys(("N", "NQ", "NX"), "count"),
}
"""Operand -> kind; any other operand is the user's own."""

_SIGNS = {"*": "×", "-": "−", "/": "÷"}


@dataclass
class _Box:
    """One box of the drawing: an operator or chain of operators, an operand, or a literal."""

    label: str
    kind: str
    mark: str = ""
    children: list[_Box] = field(default_factory=list)
    x: float = 0.0

    @property
    def width(self) -> float:
        """Width in inches."""
        return 0.30 + 0.088 * len(self.label)


def tree_figure(f: Expression, title: str = "") -> Figure:
    """Draws a formula as a tree: operators above their arguments, operands coloured by what they read.

    A chain of `+` and `-`, or of `*`, is one box; a minus sign marks the terms that are subtracted.

    Args:
      f: any expression.
      title: a heading; empty for none.

    Returns:
      A figure for `save_figure`.

    Raises:
      ImportError: if matplotlib is missing.
    """
    root = _box_of(f)
    lefts, rights = _spread(root)
    boxes = list(_in_place(root, -min(lefts)))
    width, depth = max(rights) - min(lefts), len(lefts)
    height = depth * _ROW + (0.35 if title else 0.0) + 0.25
    drawn = {box.kind for box, _ in boxes} - {"operator", "literal"}
    with new_figure(max(width + 0.3, 3.5), height) as figure:
        axes = figure.add_subplot()
        axes.set_axis_off()
        axes.set_aspect("equal")
        shift = max(0.0, 3.2 - width) / 2
        axes.set_xlim(-shift - 0.05, width + shift + 0.05)
        axes.set_ylim(-depth * _ROW, 0.25)
        for box, level in boxes:
            for child in box.children:
                _draw_edge(axes, box, child, level)
        for box, level in boxes:
            _draw_box(axes, box, level)
        for number, kind in enumerate(kind for kind in _KINDS if kind in drawn):
            _, color, name = _KINDS[kind]
            x, y = -shift + 1.05 * number, -depth * _ROW + 0.13
            axes.text(x, y, f"■ {name}", color=color, fontsize=8, va="center")
        if title:
            axes.set_title(title)
    return figure


def _box_of(f: Expression, mark: str = "") -> _Box:
    """Returns the box of an expression, with its children; `mark` is the sign in front of it."""
    if f.is_operand:
        return _Box(f.name, _KIND_OF_OPERAND.get(f.name, "own"), mark)
    if f.is_literal:
        return _Box(number_text(f.value), "literal", mark)
    if f.operator in "+-*":
        children = [_box_of(term, sign) for term, sign in _terms(f, f.operator == "*")]
        label = "×" if f.operator == "*" else "−" if len(children) == 2 and f.operator == "-" else "+"
        if label == "−":  # a - b needs no further sign
            children[1].mark = ""
        return _Box(label, "operator", mark, children)
    label = _SIGNS.get(f.operator, f.operator)
    if f.params:
        separator = ":" if f.operator == "slice" else ", "
        label += f" {separator.join(number_text(param) for param in f.params)}"
    return _Box(label, "operator", mark, [_box_of(child) for child in f.children])


def _terms(f: Expression, is_product: bool, sign: str = "") -> list[tuple[Expression, str]]:
    """Returns the terms of a chain with their signs, in reading order."""
    if f.operator not in (("*",) if is_product else ("+", "-")):
        return [(f, sign)]
    left, right = f.children
    flipped = {"": "−", "−": ""}[sign] if f.operator == "-" else sign
    return _terms(left, is_product, sign) + _terms(right, is_product, flipped)


def _spread(box: _Box) -> tuple[list[float], list[float]]:
    """Moves children as close together as their subtrees allow, with `x` relative to their parent.

    Returns:
      The left and right edge of the subtree on each level, relative to `box`.
    """
    lefts: list[float] = []
    rights: list[float] = []
    for child in box.children:
        child_lefts, child_rights = _spread(child)
        apart = [right - left for right, left in zip(rights, child_lefts, strict=False)]
        child.x = max(apart, default=-_GAP) + _GAP if rights else 0.0
        for level, (left, right) in enumerate(zip(child_lefts, child_rights, strict=True)):
            if level < len(rights):
                rights[level] = child.x + right
            else:
                lefts.append(child.x + left)
                rights.append(child.x + right)
    middle = (box.children[0].x + box.children[-1].x) / 2 if box.children else 0.0
    for child in box.children:
        child.x -= middle
    half = box.width / 2
    return [-half, *(left - middle for left in lefts)], [half, *(right - middle for right in rights)]


def _in_place(box: _Box, x: float, level: int = 0) -> Iterator[tuple[_Box, int]]:
    """Yields all boxes with their levels, after making `x` absolute."""
    box.x += x
    yield box, level
    for child in box.children:
        yield from _in_place(child, box.x, level + 1)


def _draw_edge(axes: Axes, parent: _Box, child: _Box, level: int) -> None:
    """Draws the line from a box to its child, with the child's sign on it."""
    top, bottom = -level * _ROW - _HEIGHT / 2, -(level + 1) * _ROW + _HEIGHT / 2
    axes.plot([parent.x, child.x], [top, bottom], color="#b0b0b0", lw=1.2, zorder=1)
    if child.mark:
        axes.text(
            0.35 * parent.x + 0.65 * child.x, 0.35 * top + 0.65 * bottom, child.mark,
            ha="center", va="center", fontsize=10, color="#D55E00", fontweight="bold",
            bbox={"boxstyle": "circle,pad=0.08", "fc": "white", "ec": "none"},
        )  # fmt: skip


def _draw_box(axes: Axes, box: _Box, level: int) -> None:
    """Draws a box with its label."""
    from matplotlib.patches import FancyBboxPatch

    fill, edge, _ = _KINDS[box.kind]
    pad = 0.05
    width, height = box.width - 2 * pad - 0.04, _HEIGHT - 2 * pad
    axes.add_patch(
        FancyBboxPatch(
            (box.x - width / 2, -level * _ROW - height / 2), width, height,
            boxstyle=f"round,pad={pad},rounding_size=0.09", fc=fill, ec=edge, lw=1.1, zorder=2,
        )
    )  # fmt: skip
    is_literal = box.kind == "literal"
    axes.text(
        box.x, -level * _ROW - 0.005, box.label, ha="center", va="center", zorder=3,
        fontsize=9.5, color="#555555" if is_literal else DARK, style="italic" if is_literal else "normal",
    )  # fmt: skip

"""A formula drawn as a tree."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from jaxprune.figures.style import DARK, GREY, new_figure
from jaxprune.language.expression import Expression
from jaxprune.language.printing import number_text
from jaxprune.language.vocabulary import OPERANDS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


_ROW, _GAP, _BOX = 0.74, 0.16, 0.34


@dataclass
class _Node:
    """One box of a drawn tree."""

    label: str
    kind: str
    mark: str = ""
    children: list[_Node] = field(default_factory=list)
    x: float = 0.0

    @property
    def width(self) -> float:
        """In inches."""
        return 0.30 + 0.088 * len(self.label)


_FILLS = {
    "operator": ("white", GREY, "operator"),
    "weights": ("#cfe6f5", "#0072B2", "weights"),
    "activations": ("#ffe3b8", "#E69F00", "activations"),
    "scale": ("#c9ecdf", "#009E73", "normalisation"),
    "count": ("#ececec", GREY, "counts"),
    "own": ("#f3d9e8", "#CC79A7", "own operand"),
    "literal": ("white", "white", "literal"),
}


_SIGNS = {"*": "×", "-": "−", "/": "÷"}


def tree_figure(f: Expression, title: str = "") -> Figure:
    """The formula as a tree: operators above their arguments, operands coloured by what they read.

    A chain of `+` and `-`, or of `*`, is one node; what is subtracted carries a minus sign.

    Args:
      f: any expression.
      title: a heading; empty for none.

    Returns:
      A figure for `save_figure`.

    Raises:
      ImportError: if matplotlib is missing.
    """
    root = _tree(f)
    lefts, rights = _spread(root)
    nodes = list(_placed(root, -min(lefts)))
    width = max(rights) - min(lefts)
    depth = len(lefts)
    kinds = [
        kind for kind in _FILLS if kind not in ("operator", "literal") and kind in {n.kind for n, _ in nodes}
    ]
    height = depth * _ROW + (0.35 if title else 0.0) + 0.25
    with new_figure(max(width + 0.3, 3.5), height) as figure:
        axes = figure.add_subplot()
        axes.set_axis_off()
        axes.set_aspect("equal")
        shift = max(0.0, 3.2 - width) / 2
        axes.set_xlim(-shift - 0.05, width + shift + 0.05)
        axes.set_ylim(-depth * _ROW, 0.25)
        for node, level in nodes:
            for child in node.children:
                _draw_edge(axes, node, child, level)
        for node, level in nodes:
            _draw_node(axes, node, level)
        for number, kind in enumerate(kinds):
            _, color, text = _FILLS[kind]
            axes.text(
                -shift + 1.05 * number,
                -depth * _ROW + 0.13,
                f"■ {text}",
                color=color,
                fontsize=8,
                va="center",
            )
        if title:
            axes.set_title(title)
    return figure


def _tree(f: Expression) -> _Node:
    if f.is_operand:
        return _Node(f.name, _operand_kind(f.name))
    if f.is_literal:
        return _Node(number_text(f.value), "literal")
    if f.operator in "+-*":
        children = [_marked(child, sign) for child, sign in _terms(f, f.operator == "*")]
        label = "×" if f.operator == "*" else "−" if len(children) == 2 and f.operator == "-" else "+"
        if label == "−":  # a - b needs no further sign
            children[1].mark = ""
        return _Node(label, "operator", children=children)
    label = _SIGNS.get(f.operator, f.operator)
    if f.params:
        separator = ":" if f.operator == "slice" else ", "
        label += f" {separator.join(number_text(param) for param in f.params)}"
    return _Node(label, "operator", children=[_tree(child) for child in f.children])


def _terms(f: Expression, is_product: bool, sign: str = "") -> list[tuple[Expression, str]]:
    """The terms of a chain with their signs, in reading order."""
    chain = ("*",) if is_product else ("+", "-")
    if f.operator not in chain:
        return [(f, sign)]
    left, right = f.children
    flipped = {"": "−", "−": ""}[sign] if f.operator == "-" else sign
    return _terms(left, is_product, sign) + _terms(right, is_product, flipped)


def _marked(f: Expression, mark: str) -> _Node:
    node = _tree(f)
    node.mark = mark
    return node


def _operand_kind(name: str) -> str:
    if name in ("WI", "W", "WO", "GW"):
        return "weights"
    if name in ("X", "P", "Q", "mX", "mP", "mQ", "GX"):
        return "activations"
    if name in ("gamma", "beta"):
        return "scale"
    if name in ("N", "NQ", "NX"):
        return "count"
    assert name in OPERANDS
    return "own"


def _spread(node: _Node) -> tuple[list[float], list[float]]:
    """Places children beside each other as near as their subtrees allow, each `x` relative to its parent.

    Returns:
      The left and right edge of the subtree on each level, relative to `node`.
    """
    lefts: list[float] = []
    rights: list[float] = []
    for child in node.children:
        child_lefts, child_rights = _spread(child)
        apart = [right - left for right, left in zip(rights, child_lefts, strict=False)]
        child.x = max(apart, default=-_GAP) + _GAP if rights else 0.0
        for level, (left, right) in enumerate(zip(child_lefts, child_rights, strict=True)):
            if level < len(rights):
                rights[level] = child.x + right
            else:
                lefts.append(child.x + left)
                rights.append(child.x + right)
    middle = (node.children[0].x + node.children[-1].x) / 2 if node.children else 0.0
    for child in node.children:
        child.x -= middle
    half = node.width / 2
    return [-half, *(left - middle for left in lefts)], [half, *(right - middle for right in rights)]


def _placed(node: _Node, x: float, level: int = 0) -> Iterator[tuple[_Node, int]]:
    """All nodes with their levels, `x` made absolute."""
    node.x += x
    yield node, level
    for child in node.children:
        yield from _placed(child, node.x, level + 1)


def _draw_edge(axes: Axes, node: _Node, child: _Node, level: int) -> None:
    top, bottom = -level * _ROW - _BOX / 2, -(level + 1) * _ROW + _BOX / 2
    axes.plot([node.x, child.x], [top, bottom], color="#b0b0b0", lw=1.2, zorder=1)
    if child.mark:
        axes.text(
            0.35 * node.x + 0.65 * child.x,
            0.35 * top + 0.65 * bottom,
            child.mark,
            ha="center", va="center", fontsize=10, color="#D55E00", fontweight="bold",
            bbox={"boxstyle": "circle,pad=0.08", "fc": "white", "ec": "none"},
        )  # fmt: skip


def _draw_node(axes: Axes, node: _Node, level: int) -> None:
    from matplotlib.patches import FancyBboxPatch

    fill, edge, _ = _FILLS[node.kind]
    pad = 0.05
    width, height = node.width - 2 * pad - 0.04, _BOX - 2 * pad
    axes.add_patch(
        FancyBboxPatch(
            (node.x - width / 2, -level * _ROW - height / 2), width, height,
            boxstyle=f"round,pad={pad},rounding_size=0.09", fc=fill, ec=edge, lw=1.1, zorder=2,
        )
    )  # fmt: skip
    is_literal = node.kind == "literal"
    axes.text(
        node.x, -level * _ROW - 0.005, node.label, ha="center", va="center", zorder=3,
        fontsize=9.5, color="#555555" if is_literal else DARK, style="italic" if is_literal else "normal",
    )  # fmt: skip

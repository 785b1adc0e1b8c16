"""How every figure looks, and formulas drawn as trees.

Colours are the palette of Okabe and Ito, which people with any kind of colour vision can tell apart; each name
also has a marker and a line of its own.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxprune.language.expression import Expression
from jaxprune.language.printing import number_text
from jaxprune.language.vocabulary import OPERANDS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

DARK, GREY, LIGHT = "#222222", "#8a8a8a", "#d9d9d9"
DPI = 150
NAME_LENGTH = 26
"""Characters of a row's name that a figure shows."""


@dataclass(frozen=True)
class Look:
    """How one function looks in every figure."""

    color: str
    marker: str
    line: str | tuple[int, tuple[int, ...]]


LOOKS = {
    "winner": Look("#D55E00", "o", "-"),
    "l2": Look("#000000", "s", "--"),
    "l1": Look("#8a8a8a", "D", ":"),
    "random": Look("#E69F00", "X", "-."),
    "scratch": Look("#CC79A7", "v", (0, (5, 1, 1, 1, 1, 1))),
    "oracle": Look("#117733", "*", "-"),
}
"""The looks of the rows that every comparison has."""

OTHERS = (
    Look("#0072B2", "^", "-"),
    Look("#009E73", "P", "-"),
    Look("#56B4E9", "<", "--"),
    Look("#7a5195", ">", "-."),
    Look("#a07800", "h", ":"),
)
"""The looks of further functions, in their order."""

_RC: dict[Any, Any] = {
    "font.size": 10,
    "font.family": "DejaVu Sans",
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 9,
    "axes.labelsize": 10,
    "axes.edgecolor": GREY,
    "axes.labelcolor": DARK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "xtick.color": DARK,
    "ytick.color": DARK,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "grid.color": "#e6e6e6",
    "legend.frameon": False,
    "legend.fontsize": 9,
    "text.color": DARK,
    "text.parse_math": False,
}


def looks_of(names: Sequence[str]) -> dict[str, Look]:
    """A look for every name: fixed for winner, l2, l1 and the controls, the others in their order.

    Example:
      >>> looks_of(["winner", "fdr"])["fdr"].color
      '#0072B2'
    """
    others = [name for name in dict.fromkeys(names) if name not in LOOKS]
    return {
        name: LOOKS[name] if name in LOOKS else OTHERS[others.index(name) % len(OTHERS)] for name in names
    }


@contextmanager
def new_figure(width: float, height: float) -> Iterator[Figure]:
    """A figure in the common style, without any window or global state; draw it inside the `with`.

    Args:
      width, height: in inches.

    Raises:
      ImportError: if matplotlib is missing.
    """
    try:
        import matplotlib as mpl
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            'figures need matplotlib, which is not installed. Run pip install "jaxprune[report]".'
        ) from error
    with mpl.rc_context(_RC):
        figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
        FigureCanvasAgg(figure)
        yield figure


def save_figure(figure: Figure, path: str | os.PathLike[str]) -> Path:
    """Writes a figure as PNG in one step, making its folder; the same figure gives the same bytes.

    Returns:
      The path.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.tmp")
    with new_figure(1, 1):  # the style also holds while the text is laid out
        figure.savefig(beside, format="png", dpi=DPI, metadata={"Software": None})
    os.replace(beside, path)
    return path


def panels(figure: Figure, count: int, columns: int) -> list[Axes]:
    """`count` panels in rows of `columns`; what is left of the last row stays empty."""
    rows = -(-count // columns)
    found: list[Axes] = list(figure.subplots(rows, columns, squeeze=False).ravel())
    for axes in found[count:]:
        axes.set_axis_off()
    return found[:count]


def legend_below(figure: Figure, handles: Mapping[str, Line2D]) -> None:
    """One legend for all panels, in as many columns as fit."""
    column = 0.085 * max(map(len, handles)) + 0.65
    columns = max(1, min(len(handles), int(figure.get_figwidth() / column)))
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=columns)


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
_ROW, _GAP, _BOX = 0.74, 0.16, 0.34


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

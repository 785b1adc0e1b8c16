"""Sites: the places in a formula where another subtree may stand, and how much room each has."""

from __future__ import annotations

import functools
from typing import NamedTuple

from jaxprune.language.reachability import continues_chain
from jaxprune.language.sampling import Limits
from jaxprune.language.tree import Expression, replace_children

Path = tuple[int, ...]
"""Which child to follow at each node from the root; () is the root."""

_LEAF_WEIGHT = 0.4


class Site(NamedTuple):
    """A place in a formula.

    Attributes:
      path: how to get there from the root.
      node: the subtree that stands there.
      above: the operator right above, "" at the root.
      depth: levels a subtree there may have; one more if it continues the chain of the operator above.
      size: nodes a subtree there may have.
    """

    path: Path
    node: Expression
    above: str
    depth: int
    size: int

    def fits(self, new: Expression) -> bool:
        """Whether the formula stays within its limits with `new` here."""
        return new.size <= self.size and new.depth - continues_chain(new.operator, self.above) <= self.depth


def all_sites(f: Expression, limits: Limits) -> list[Site]:
    """Every place in `f`, the root first, repeated subtrees once for each place.

    Example:
      >>> from jaxprune.language.parsing import parse
      >>> [(str(site.node), site.size) for site in all_sites(parse("sum(abs(WI))"), Limits(max_size=10))]
      [('sum(abs(WI))', 10), ('abs(WI)', 9), ('WI', 8)]
    """
    slack = limits.max_size - f.size
    found = [Site((), f, "", limits.max_depth, limits.max_size)]
    for site in found:  # grows while it is walked
        below = site.depth + continues_chain(site.node.operator, site.above) - 1
        found.extend(
            Site((*site.path, index), child, site.node.operator, below, slack + child.size)
            for index, child in enumerate(site.node.children)
        )
    return found


def node_weight(node: Expression) -> float:
    """How often variation picks this node: leaves less often, since most nodes are leaves."""
    return 1.0 if node.children else _LEAF_WEIGHT


def require_within(caller: str, f: Expression, limits: Limits | None) -> Limits:
    """The limits, the default ones for None, after checking that `f` is within them.

    Raises:
      ValueError: if it is not.
    """
    limits = limits or Limits()
    if not limits.allow(f):
        raise ValueError(
            f"{caller} needs a formula of at most {limits.max_size} nodes and depth {limits.max_depth}, got "
            f"{f.size} nodes and depth {f.depth}: {f}. Shorten it or raise the limits."
        )
    return limits


def subtree_at(f: Expression, path: Path) -> Expression:
    """The subtree at `path`."""
    return functools.reduce(lambda node, index: node.children[index], path, f)


def transplant(f: Expression, path: Path, new: Expression) -> Expression:
    """`f` with `new` at `path`.

    Raises:
      IllTypedError: if an operator above does not take the type of `new`.

    Example:
      >>> from jaxprune.language.parsing import parse
      >>> str(transplant(parse("sum(abs(WI))"), (0, 0), parse("WO")))
      'sum(abs(WO))'
    """
    if not path:
        return new
    children = list(f.children)
    children[path[0]] = transplant(children[path[0]], path[1:], new)
    return replace_children(f, children)

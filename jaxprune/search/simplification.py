"""Makes a found formula shorter, shows which of its parts matter, and tunes its numbers.

How a formula behaves and how good it is are functions that the caller gives, so nothing here knows about networks.
Each call of them gets many formulas, which are cheaper together than one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from types import MappingProxyType

from jaxprune.language.canonical import canonical_form
from jaxprune.language.expression import (
    Expression,
    apply,
    continues_chain,
    literal,
    operand,
    replace_children,
)
from jaxprune.language.mutation import Path, all_subtrees, replace_subtree, subtree_at
from jaxprune.language.operators import IllTypedError
from jaxprune.language.sampling import Limits, is_constant
from jaxprune.types import Invalid

BehaviourOf = Callable[[Sequence[Expression]], Sequence[Hashable]]
"""Formulas -> what each one does, such as the digest of its plans on all bases, or `Invalid`."""

FitnessOf = Callable[[Sequence[Expression]], Sequence[float | None]]
"""Formulas -> the fitness of each one, None where it is invalid."""

_ARITHMETIC = frozenset("+-*/")
_PLAIN = MappingProxyType(
    {"P": "X", "Q": "X", "mP": "mX", "mQ": "mX", "N": "NX", "NQ": "NX", "GW": "WI", "GX": "X"}
)
"""Operand -> the one that takes away what is special about it: the class, or the gradient."""
_GRID = (0.25, 0.5, 2.0, 4.0)


def simplify(expression: Expression, behaviour_of: BehaviourOf, *, breadth: int = 8) -> Expression:
    """Returns the smallest formula found that behaves exactly like `expression`.

    Replaces a part by a smaller one of the same type from inside it, or drops an operand of `+ - * /`, again and again
    as long as a form behaves the same. Two parts that only matter together are therefore never dropped. On bases that
    `behaviour_of` does not know, the result may differ from `expression`.

    Args:
      expression: a valid formula of type ().
      behaviour_of: called once for `expression`, then once a round for all forms that are new.
      breadth: number of equal forms, the smallest ones, that the next round starts from, >= 1.

    Returns:
      A canonical form of lower complexity; `expression` itself if there is none. The same for the same behaviours.

    Raises:
      ValueError: if `expression` itself is invalid, or `breadth` is below 1.

    Example:
      >>> from jaxprune.language.parsing import parse
      >>> values = [{"mX": 1.0, "gamma": 3.0, "beta": 1.0}, {"mX": 2.0, "gamma": 1.0, "beta": 1.0}]
      >>> def order(formulas):  # of two channels; one value stands for all positions
      ...     return [score(f, values[0]) < score(f, values[1]) for f in formulas]
      >>> def score(f, of):
      ...     return f.fold(lambda node, parts: {"sum": lambda x: x, "sqrt": lambda x: x**0.5, "+": lambda x, y: x + y,
      ...         "operand": lambda: of[node.name], "literal": lambda: node.value}[node.operator](*parts))
      >>> str(simplify(parse("sqrt(sum(mX) + 0.5)"), order))
      'sum(mX)'
    """
    if breadth < 1:
        raise ValueError(f"simplify needs breadth >= 1, got {breadth}.")
    (target,) = behaviour_of([expression])
    if isinstance(target, Invalid):
        raise ValueError(f"simplify needs a valid formula, got {expression}, {target}.")
    best, frontier, seen = expression, [expression], {expression}
    while frontier:
        smaller = {form for parent in frontier for form in _reductions(parent)} - seen
        seen |= smaller
        forms = sorted(smaller, key=lambda form: (form.complexity, str(form)))
        behaviours = behaviour_of(forms) if forms else []
        equal = [form for form, behaviour in zip(forms, behaviours, strict=True) if behaviour == target]
        best = min([best, *equal], key=lambda form: form.complexity)
        frontier = equal[:breadth]
    return best


def ablations(expression: Expression) -> list[tuple[str, Expression]]:
    """Lists the formulas that lack one part of `expression`, to see which parts matter.

    A summand, factor, numerator or denominator is dropped; a function is replaced by its argument if that has the same
    type; and an operand is replaced everywhere by a plain one: that of a class by that of all examples, a gradient by
    what it is the gradient of.

    Args:
      expression: a formula of type ().

    Returns:
      (what was removed, the canonical form of the rest) pairs, outer parts first, operands last. The rest is of type
      (), reads something that differs among channels, and is neither `expression` nor listed twice. It may still be
      invalid on a network.

    Example:
      >>> from jaxprune.language.parsing import parse
      >>> for removed, rest in ablations(parse("std(GW)*std(WO)*sum(square(mP - mX))")):
      ...     print(f"{removed:22} {rest}")
      sum(square(mP - mX))   std(GW)*std(WO)
      std(GW)                std(WO)*sum(square(mP - mX))
      std(WO)                std(GW)*sum(square(mP - mX))
      square of mP - mX      std(GW)*std(WO)*sum(mP - mX)
      mP                     std(GW)*std(WO)*sum(square(mX))
      mX                     std(GW)*std(WO)*sum(square(mP))
      GW (WI instead)        std(WI)*std(WO)*sum(square(mP - mX))
    """
    candidates = [
        (removed, _replaced(expression, path, rest))
        for path, node in _places(expression)
        for removed, rest in _without_a_part(node)
    ]
    candidates += [
        (f"{name} ({_PLAIN[name]} instead)", _with_operand(expression, name, _PLAIN[name]))
        for name in dict.fromkeys(node.name for _, node in _places(expression))
        if name in _PLAIN
    ]
    found = {canonical_form(expression): ""}
    for removed, rest in candidates:
        if rest is not None and not any(map(_is_zero, rest.walk())):
            found.setdefault(canonical_form(rest), removed)
    return [(removed, rest) for rest, removed in found.items() if removed]


def tune_constants(
    expression: Expression, fitness_of: FitnessOf, *, threshold: float, rounds: int = 4
) -> Expression:
    """Changes the numbers of a formula one at a time, as long as its fitness improves clearly.

    Each round tries a quarter, half, twice and four times each number, and dropping it where it is a summand, and takes
    the best of these changes. Parameters of operators, such as the width of `rbf`, are not changed.

    Args:
      expression: a formula with a fitness.
      fitness_of: called once for `expression`, then once a round for all changed formulas; higher is better.
      threshold: by how much a change has to improve the fitness, in its unit, >= 0; the best of several noisy values
        looks better than it is.
      rounds: the largest number of changes, >= 0.

    Returns:
      The tuned formula; `expression` itself if it has no number other than 0 or no change is good enough.

    Raises:
      ValueError: if `expression` is invalid, or a number is negative.

    Example:
      >>> from jaxprune.language.parsing import parse
      >>> def fitness_of(formulas):  # best with 0.0125
      ...     return [-sum(abs(node.value - 0.0125) for node in f.walk() if node.is_literal) for f in formulas]
      >>> str(tune_constants(parse("var(P)/(var(Q) + 0.05)"), fitness_of, threshold=0.001))
      'var(P)/(var(Q) + 0.0125)'
    """
    if threshold < 0 or rounds < 0:
        raise ValueError(
            f"tune_constants needs threshold >= 0 and rounds >= 0, got {threshold} and {rounds}."
        )
    variants = _with_other_numbers(expression)
    if not variants:
        return expression
    (fitness,) = fitness_of([expression])
    if fitness is None:
        raise ValueError(f"tune_constants needs a valid formula, got {expression}, which has no fitness.")
    for _ in range(rounds):
        if not variants:
            break
        measured = zip(fitness_of(variants), variants, strict=True)
        valid = [(value, variant) for value, variant in measured if value is not None]
        best, variant = max(valid, key=lambda pair: pair[0], default=(fitness, expression))
        if best <= fitness + threshold:
            break
        fitness, expression, variants = best, variant, _with_other_numbers(variant)
    return expression


def _places(f: Expression) -> list[tuple[Path, Expression]]:
    """Every subtree with its path, the root first."""
    return [(subtree.path, subtree.node) for subtree in all_subtrees(f, Limits(f.size, f.depth))]


def _reductions(f: Expression) -> Iterator[Expression]:
    """Canonical forms of lower complexity that are one step away from `f`."""
    steps = [canonical_form(f)]
    for path, node in _places(f):
        parts = [part for part in node.walk() if part.type == node.type and part is not node]
        if node.operator in _ARITHMETIC:
            parts += [_without_operand(node, 0), _without_operand(node, 1)]
        rests = (_replaced(f, path, part) for part in parts)
        steps += [canonical_form(rest) for rest in rests if rest is not None]
    return (step for step in steps if step.complexity < f.complexity)


def _without_a_part(node: Expression) -> Iterator[tuple[str, Expression]]:
    """The ways to take something away at this node: what is removed, and what remains of the node."""
    for index, child in enumerate(node.children):
        if node.operator in _ARITHMETIC:
            # The members of a chain are dropped one by one, further down.
            if not continues_chain(child.operator, node.operator):
                yield str(child), _without_operand(node, index)
        elif child.type == node.type:
            yield f"{node.operator} of {child}", child


def _without_operand(node: Expression, index: int) -> Expression:
    """A sum, difference, product or quotient without one of its two operands."""
    other = node.children[1 - index]
    if index == 0 and node.operator == "-":
        return apply("-", literal(0), other)
    if index == 0 and node.operator == "/":
        return apply("/", literal(1), other)
    return other


def _replaced(f: Expression, path: Path, new: Expression) -> Expression | None:
    """The formula with another subtree, or None if it is ill typed, of another type, or the same for all channels."""
    try:
        rest = replace_subtree(f, path, new)
    except IllTypedError:
        return None
    return rest if rest.type == f.type and not is_constant(rest) else None


def _with_operand(f: Expression, name: str, other: str) -> Expression | None:
    """The formula with one operand replaced everywhere, or None as `_replaced`."""
    try:
        rest: Expression = f.fold(
            lambda node, children: operand(other) if node.name == name else replace_children(node, children)
        )
    except IllTypedError:
        return None
    return rest if rest.type == f.type and not is_constant(rest) else None


def _is_zero(node: Expression) -> bool:
    """Whether a node subtracts something from itself."""
    return node.operator == "-" and node.children[0] is node.children[1]


def _with_other_numbers(f: Expression) -> list[Expression]:
    """The formulas in which one number other than 0 is changed, or dropped where it is a summand."""
    variants = []
    for path, node in _places(f):
        if not node.is_literal or node.value == 0:
            continue
        numbers = [float(f"{node.value * factor:.3g}") for factor in _GRID]  # short numbers are easy to read
        variants += [_replaced(f, path, literal(number)) for number in numbers]
        parent = subtree_at(f, path[:-1])
        if parent.operator in ("+", "-"):
            variants.append(_replaced(f, path[:-1], _without_operand(parent, path[-1])))
    return list(dict.fromkeys(variant for variant in variants if variant is not None))

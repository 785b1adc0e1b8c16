"""Productions: the rules of the grammar that random generation follows, enumerated from a vocabulary.

Every operator, also a user's own, is applied to every tuple of useful types that it accepts. A few idioms of several
operators (a ridged quotient, a norm, the same statistic of class k and of the other classes) are single productions.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from jaxprune.language.axes import Type, is_position_axis, is_sample_axis, slice_range
from jaxprune.language.operators import OPERATORS, Operator, Params
from jaxprune.language.vocabulary import CLASS_SIZES, OPERANDS, Vocabulary

Style = Literal["useful", "uniform"]
"""`useful` favours what published metrics are made of; `uniform` draws operators evenly and uses no idioms."""
Kind = Literal["operand", "literal", "operator", "ridge", "norm", "energy", "contrast", "guarded_sqrt"]

_OPERATOR_WEIGHTS = {
    "+": 3.0, "-": 3.0, "*": 3.5, "/": 1.0, "square": 1.5, "abs": 1.5, "sqrt": 0.1,
    "sum": 4.0, "mean": 4.0, "var": 3.0, "std": 2.0, "mean_samples": 0.8, "product": 0.03, "count": 0.02,
    "inner": 0.6, "matmul": 0.06, "outer": 0.02, "transpose": 0.04, "trace": 0.06, "inverse": 0.03,
    "rbf": 0.06, "geometric_median": 0.25, "slice": 0.05,
}  # fmt: skip
_REDUCTIONS = frozenset({"sum", "mean", "var", "std", "product", "count"})
_SLICES: tuple[Params, ...] = ((0.0, 4.0), (4.0, 8.0), (2.0, 6.0), (0.0, 2.0), (6.0, 8.0))
_MAX_PARAMETER_CHOICES = 6
_LEAF_SHARE, _SCALAR_LEAF_SHARE, _CONSTANT_SHARE = 0.55, 0.06, 0.25
_LITERAL_WEIGHT, _CLASS_SIZE_WEIGHT = 4.0, 0.4


class Goal(NamedTuple):
    """What a tree must compute: a value of `type` that, if `informative`, differs among channels.

    Literals and class sizes are the same for all channels, so a formula made only of them would rank nothing.
    """

    type: Type
    informative: bool = True


class Part(NamedTuple):
    """A tree that a production leaves to be generated.

    Attributes:
      goal: what it must compute.
      parent_operator: the operator directly above it.
      levels: how many levels lie between the root of the production and its own root.
      copies: how many times it appears in the result.
    """

    goal: Goal
    parent_operator: str
    levels: int = 1
    copies: int = 1


@dataclass(frozen=True, slots=True)
class Production:
    """One way to reach a goal.

    Attributes:
      kind: how `sampling` builds it: a leaf, one operator, or an idiom of several.
      head: the operand's or operator's name, the outermost operator of an idiom, "" for a literal.
      parts: what to generate below it.
      nodes: how many nodes it has at most, without its parts.
      weight: its relative frequency.
      params: the operator's literal parameters; the value of a literal.
    """

    kind: Kind
    head: str
    parts: tuple[Part, ...] = ()
    nodes: int = 1
    weight: float = 1.0
    params: Params = ()

    @property
    def is_leaf(self) -> bool:
        """Whether it has no parts to generate."""
        return not self.parts


class Application(NamedTuple):
    """An operator applied to values of some types."""

    operator: str
    params: Params
    child_types: tuple[Type, ...]
    result: Type


def all_productions(vocabulary: Vocabulary, style: Style = "useful") -> dict[Goal, tuple[Production, ...]]:
    """Returns every way to reach every goal, for the types that the vocabulary's operands lead to.

    Args:
      vocabulary: operands, operators and literals to build from.
      style: see `Style`.

    Returns:
      Goal -> productions with positive weights, in a fixed order. Some goals may have no finite tree.
    """
    by_goal: dict[Goal, list[Production]] = {}
    constants = []
    for name in vocabulary.operands:
        if name in CLASS_SIZES:
            constants.append(Production("operand", name, weight=_CLASS_SIZE_WEIGHT))
        else:
            by_goal.setdefault(Goal(OPERANDS[name].type), []).append(Production("operand", name))
    for value in vocabulary.literals:
        weight = _LITERAL_WEIGHT / len(vocabulary.literals)
        constants.append(Production("literal", "", weight=weight, params=(float(value),)))
    applications = all_applications(vocabulary)
    for application, weight in _weighted(applications, style):
        for parts in _part_choices(application):
            by_goal.setdefault(Goal(application.result), []).append(
                Production("operator", application.operator, parts, 1, weight, application.params)
            )
    if style == "useful":
        _add_idioms({application.operator for application in applications}, by_goal)
    grammar = {
        goal: _with_leaf_share(productions, _LEAF_SHARE if goal.type else _SCALAR_LEAF_SHARE)
        for goal, productions in by_goal.items()
    }
    informative = _rescaled(grammar.get(Goal(()), ()), 1 - _CONSTANT_SHARE)
    grammar[Goal((), informative=False)] = (*informative, *_rescaled(constants, _CONSTANT_SHARE))
    return grammar


def all_applications(vocabulary: Vocabulary) -> list[Application]:
    """Returns every application of the vocabulary's operators to useful types it can reach, in a fixed order.

    Example:
      >>> vocabulary = Vocabulary(operands=("WI",), operators=("abs", "sum"))
      >>> [(call.operator, call.child_types, call.result) for call in all_applications(vocabulary)]
      [('abs', ((),), ()), ('abs', (('F',),), ('F',)), ('sum', (('F',),), ())]
    """
    operators = [
        OPERATORS[name] for name in OPERATORS if not vocabulary.operators or name in vocabulary.operators
    ]
    given_types = tuple(dict.fromkeys([(), *(OPERANDS[name].type for name in vocabulary.operands)]))
    reached_types = list(given_types)
    applications = []
    for index, newest in enumerate(reached_types):  # grows while it is walked
        for application in _applications_of(operators, newest, reached_types[: index + 1], given_types):
            applications.append(application)
            if application.result not in reached_types:
                reached_types.append(application.result)
    order = {operator.name: index for index, operator in enumerate(operators)}
    return sorted(applications, key=lambda application: (order[application.operator], application))


def _applications_of(
    operators: Iterable[Operator], newest: Type, known_types: Sequence[Type], given_types: Sequence[Type]
) -> Iterator[Application]:
    """Yields the applications whose arguments are of known types, `newest` among them."""
    for operator in operators:
        for arity in sorted({len(signature.arguments) for signature in operator.signatures}):
            types = known_types if arity <= 2 else [type for type in known_types if type in given_types]
            for child_types in itertools.product(types, repeat=arity):
                # A scalar's sum or mean is itself, and its variance is 0.
                is_idle = operator.name in _REDUCTIONS and child_types == ((),)
                if newest not in child_types or is_idle:
                    continue
                for params in _parameter_choices(operator):
                    results = (signature.infer(child_types, params) for signature in operator.signatures)
                    result = next((type for type in results if type is not None), None)
                    if result is not None and _is_useful(result, given_types):
                        yield Application(operator.name, params, child_types, result)


def _is_useful(type: Type, given_types: Sequence[Type]) -> bool:
    """Whether values of the type are worth computing: small or ordinary ones, so that the number of types is finite."""
    if len(type) < 2:
        return True
    first, second = type
    if type in given_types or (second, first) in given_types:
        return True
    if slice_range(second) is not None:
        return is_sample_axis(first)
    return is_sample_axis(first) and is_sample_axis(second) or type in (("D", "D"), ("C", "C"))


def _parameter_choices(operator: Operator) -> tuple[Params, ...]:
    """A few of the operator's parameters, evenly spread."""
    if operator.name == "slice":
        return _SLICES
    stride = -(-len(operator.parameter_choices) // _MAX_PARAMETER_CHOICES)
    return operator.parameter_choices[::stride]


def _weighted(applications: Sequence[Application], style: Style) -> Iterator[tuple[Application, float]]:
    """Splits each operator's weight, for each result type, among the types that it can be applied to."""
    frequencies = [
        math.prod(map(_type_weight, application.child_types), start=1.0) for application in applications
    ]
    totals: dict[tuple[str, Type], float] = {}
    for application, frequency in zip(applications, frequencies, strict=True):
        key = (application.operator, application.result)
        totals[key] = totals.get(key, 0.0) + frequency
    for application, frequency in zip(applications, frequencies, strict=True):
        scale = _OPERATOR_WEIGHTS.get(application.operator, 1.0) if style == "useful" else 1.0
        yield application, scale * frequency / totals[application.operator, application.result]


def _type_weight(type: Type) -> float:
    """How often an argument has this type, relative to others."""
    if any(slice_range(axis) is not None for axis in type):
        return 0.012
    if len(type) == 1:
        return 0.1 if is_sample_axis(type[0]) or type == ("C",) else 1.0
    if len(type) == 2 and not (is_sample_axis(type[0]) and is_position_axis(type[1])):
        return 0.12 if type == ("F", "C") else 0.02
    return 1.0


def _part_choices(application: Application) -> Iterator[tuple[Part, ...]]:
    """Yields the arguments' goals; if all are scalars, each in turn is the one that must differ among channels."""
    types, operator = application.child_types, application.operator
    if any(types):
        yield tuple(Part(Goal(type, bool(type)), operator) for type in types)
        return
    for informative in range(len(types)):
        yield tuple(Part(Goal((), index == informative), operator) for index in range(len(types)))


def _add_idioms(operators: set[str], by_goal: dict[Goal, list[Production]]) -> None:
    """Adds the productions of several operators that published metrics are made of."""
    scalar, position = Goal(()), Goal(("D",))
    vectors = [goal for goal in by_goal if len(goal.type) == 1 and _type_weight(goal.type) == 1.0]
    for goal in (scalar, position):
        if goal not in by_goal:
            continue
        if {"/", "+", "abs"} <= operators:
            parts: tuple[Part, ...] = (Part(goal, "/"), Part(scalar, "abs", levels=3))
            by_goal[goal].append(Production("ridge", "/", parts, nodes=4, weight=3.0))
        if "-" in operators:
            by_goal[goal].append(Production("contrast", "-", (Part(goal, "-", copies=2),), weight=2.5))
        if {"sqrt", "abs"} <= operators:
            parts = (Part(goal, "abs", levels=2),)
            by_goal[goal].append(Production("guarded_sqrt", "sqrt", parts, nodes=2, weight=0.6))
    for goal in vectors:
        if {"sum", "square"} <= operators:
            parts = (Part(goal, "square", levels=2),)
            by_goal[scalar].append(Production("energy", "sum", parts, nodes=2, weight=2.5 / len(vectors)))
        if {"sqrt", "sum", "square"} <= operators:
            parts = (Part(goal, "square", levels=3),)
            by_goal[scalar].append(Production("norm", "sqrt", parts, nodes=3, weight=1.2 / len(vectors)))


def _with_leaf_share(productions: Sequence[Production], leaf_share: float) -> tuple[Production, ...]:
    """Rescales weights so that leaves have `leaf_share` of the total and branches the rest."""
    leaves = [production for production in productions if production.is_leaf]
    branches = [production for production in productions if not production.is_leaf]
    return (*_rescaled(leaves, leaf_share), *_rescaled(branches, 1 - leaf_share))


def _rescaled(productions: Sequence[Production], total: float) -> tuple[Production, ...]:
    """Rescales weights so that they add up to `total`."""
    scale = total / sum(production.weight for production in productions) if productions else 0.0
    return tuple(replace(production, weight=production.weight * scale) for production in productions)

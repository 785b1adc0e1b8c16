"""Productions: the steps that random generation may take, enumerated from a vocabulary.

Every operator is applied to every tuple of useful types it takes, registered operators and operands included; a few
idioms of several operators (a ridged quotient, a norm, one statistic of both sides) are offered as single steps.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from jaxprune.language.axes import Type, is_position_axis, is_sample_axis, slice_range
from jaxprune.language.operators import OPERATORS, Operator, Params
from jaxprune.language.vocabulary import OPERANDS, Vocabulary

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
_CLASS_SIZES = frozenset({"N", "NQ", "NX"})
_SLICES: tuple[Params, ...] = ((0.0, 4.0), (4.0, 8.0), (2.0, 6.0), (0.0, 2.0), (6.0, 8.0))
_MAX_PARAMETER_CHOICES = 6
_LEAF_SHARE, _SCALAR_LEAF_SHARE, _CONSTANT_SHARE = 0.55, 0.06, 0.25
_LITERAL_WEIGHT, _CLASS_SIZE_WEIGHT = 4.0, 0.4


class Goal(NamedTuple):
    """What a step of generation must produce: a value of `type`, one that differs among channels if `informative`.

    Literals and class sizes are the same for all channels; a formula of them alone would rank nothing.
    """

    type: Type
    informative: bool = True


class Part(NamedTuple):
    """What a production leaves to generate: its goal, the operator right above, levels below, copies of it."""

    goal: Goal
    above: str
    levels: int = 1
    copies: int = 1


@dataclass(frozen=True, slots=True)
class Production:
    """One way to reach a goal.

    Attributes:
      kind: how `sampling` builds it: a leaf, one operator, or an idiom of several.
      head: the operand's or operator's name, the outermost operator of an idiom, "" for a literal.
      parts: what to generate below it.
      nodes: its own nodes at most, without its parts.
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
        """Whether nothing is left to generate below it."""
        return not self.parts


class Application(NamedTuple):
    """An operator applied to values of some types."""

    operator: str
    params: Params
    child_types: tuple[Type, ...]
    result: Type


def all_productions(vocabulary: Vocabulary, style: Style = "useful") -> dict[Goal, tuple[Production, ...]]:
    """Every way to reach every goal, for the types that the vocabulary's operands lead to.

    Args:
      vocabulary: operands, operators and literals to build from.
      style: see `Style`.

    Returns:
      Goal -> productions with positive weights, in a fixed order. Some goals may have no finite tree.
    """
    found: dict[Goal, list[Production]] = {}
    constants = list(_leaves(vocabulary, found))
    applications = all_applications(vocabulary)
    for application, weight in _weighted(applications, style):
        for parts in _part_choices(application):
            steps = found.setdefault(Goal(application.result), [])
            steps.append(Production("operator", application.operator, parts, 1, weight, application.params))
    if style == "useful":
        _add_idioms({application.operator for application in applications}, found)
    shared = {
        goal: _share(steps, _LEAF_SHARE if goal.type else _SCALAR_LEAF_SHARE) for goal, steps in found.items()
    }
    informative = _rescaled(shared.get(Goal(()), ()), 1 - _CONSTANT_SHARE)
    shared[Goal((), informative=False)] = (*informative, *_rescaled(constants, _CONSTANT_SHARE))
    return shared


def all_applications(vocabulary: Vocabulary) -> list[Application]:
    """Every application of the vocabulary's operators to useful types it can reach, in a fixed order.

    Example:
      >>> vocabulary = Vocabulary(operands=("WI",), operators=("abs", "sum"))
      >>> [(each.operator, each.child_types, each.result) for each in all_applications(vocabulary)]
      [('abs', ((),), ()), ('abs', (('F',),), ('F',)), ('sum', (('F',),), ())]
    """
    operators = [
        OPERATORS[name] for name in OPERATORS if not vocabulary.operators or name in vocabulary.operators
    ]
    given = tuple(dict.fromkeys([(), *(OPERANDS[name].type for name in vocabulary.operands)]))
    known: list[Type] = []
    waiting = list(given)
    applications = []
    while waiting:
        newest = waiting.pop(0)
        known.append(newest)
        for application in _applications_of(operators, newest, known, given):
            applications.append(application)
            if application.result not in known and application.result not in waiting:
                waiting.append(application.result)
    order = {operator.name: index for index, operator in enumerate(operators)}
    return sorted(applications, key=lambda each: (order[each.operator], each))


def _applications_of(
    operators: Iterable[Operator], newest: Type, known: Sequence[Type], given: Sequence[Type]
) -> Iterator[Application]:
    """Applications whose arguments are known types, `newest` among them."""
    for operator in operators:
        for arity in sorted({len(signature.arguments) for signature in operator.signatures}):
            pool = known if arity <= 2 else [type for type in known if type in given]
            for child_types in itertools.product(pool, repeat=arity):
                if newest not in child_types or _is_idle(operator.name, child_types):
                    continue
                for params in _parameter_choices(operator):
                    results = (signature.infer(child_types, params) for signature in operator.signatures)
                    result = next((type for type in results if type is not None), None)
                    if result is not None and _is_useful(result, given):
                        yield Application(operator.name, params, child_types, result)


def _is_idle(operator: str, child_types: tuple[Type, ...]) -> bool:
    """A scalar's sum or mean is itself and its variance is 0."""
    return operator in _REDUCTIONS and child_types == ((),)


def _is_useful(type: Type, given: Sequence[Type]) -> bool:
    """Whether values of the type are worth making: small or ordinary ones, so that the table stays finite."""
    if len(type) < 2:
        return True
    first, second = type
    if type in given or (second, first) in given:
        return True
    if slice_range(second) is not None:
        return is_sample_axis(first)
    both_samples = is_sample_axis(first) and is_sample_axis(second)
    return both_samples or type in (("D", "D"), ("C", "C"))


def _parameter_choices(operator: Operator) -> tuple[Params, ...]:
    if operator.name == "slice":
        return _SLICES
    step = -(-len(operator.parameter_choices) // _MAX_PARAMETER_CHOICES)
    return operator.parameter_choices[::step]


def _leaves(vocabulary: Vocabulary, found: dict[Goal, list[Production]]) -> Iterator[Production]:
    """Adds the operands that differ among channels to `found`; yields the leaves that do not."""
    for name in vocabulary.operands:
        if name in _CLASS_SIZES:
            yield Production("operand", name, weight=_CLASS_SIZE_WEIGHT)
        else:
            found.setdefault(Goal(OPERANDS[name].type), []).append(Production("operand", name))
    for value in vocabulary.literals:
        yield Production(
            "literal", "", weight=_LITERAL_WEIGHT / len(vocabulary.literals), params=(float(value),)
        )


def _weighted(applications: Sequence[Application], style: Style) -> Iterator[tuple[Application, float]]:
    """Splits each operator's weight, for each result type, among the types it can be applied to."""
    frequency = {each: float(_combination_weight(each)) for each in applications}
    totals: dict[tuple[str, Type], float] = {}
    for each, weight in frequency.items():
        totals[each.operator, each.result] = totals.get((each.operator, each.result), 0.0) + weight
    for each, weight in frequency.items():
        scale = _OPERATOR_WEIGHTS.get(each.operator, 1.0) if style == "useful" else 1.0
        yield each, scale * weight / totals[each.operator, each.result]


def _combination_weight(application: Application) -> float:
    weight = 1.0
    for type in application.child_types:
        weight *= _type_weight(type)
    return weight


def _type_weight(type: Type) -> float:
    if any(slice_range(axis) is not None for axis in type):
        return 0.012
    if len(type) == 1:
        return 0.1 if is_sample_axis(type[0]) or type == ("C",) else 1.0
    if len(type) == 2 and not (is_sample_axis(type[0]) and is_position_axis(type[1])):
        return 0.12 if type == ("F", "C") else 0.02
    return 1.0


def _part_choices(application: Application) -> Iterator[tuple[Part, ...]]:
    """The children's goals; where all are scalars, each in turn is the one that must differ among channels."""
    types, above = application.child_types, application.operator
    if any(types):
        yield tuple(Part(Goal(type, bool(type)), above) for type in types)
        return
    for chosen in range(len(types)):
        yield tuple(Part(Goal((), index == chosen), above) for index in range(len(types)))


def _add_idioms(operators: set[str], found: dict[Goal, list[Production]]) -> None:
    """Adds the steps of several operators that published metrics are made of."""
    scalar, position = Goal(()), Goal(("D",))
    vectors = [goal for goal in found if len(goal.type) == 1 and _type_weight(goal.type) == 1.0]
    for goal in (scalar, position):
        if goal in found and {"/", "+", "abs"} <= operators:
            parts = (Part(goal, "/"), Part(scalar, "abs", levels=3))
            found[goal].append(Production("ridge", "/", parts, nodes=4, weight=3.0))
        if goal in found and "-" in operators:
            found[goal].append(Production("contrast", "-", (Part(goal, "-", copies=2),), weight=2.5))
        if goal in found and {"sqrt", "abs"} <= operators:
            found[goal].append(
                Production("guarded_sqrt", "sqrt", (Part(goal, "abs", levels=2),), 2, weight=0.6)
            )
    for goal in vectors:
        if {"sum", "square"} <= operators:
            energy = (Part(goal, "square", levels=2),)
            found[scalar].append(Production("energy", "sum", energy, 2, weight=2.5 / len(vectors)))
        if {"sqrt", "sum", "square"} <= operators:
            norm = (Part(goal, "square", levels=3),)
            found[scalar].append(Production("norm", "sqrt", norm, 3, weight=1.2 / len(vectors)))


def _share(steps: Sequence[Production], leaf_share: float) -> tuple[Production, ...]:
    """The steps with leaves taking `leaf_share` of the weight where there is anything else to do."""
    leaves = [step for step in steps if step.is_leaf]
    branches = [step for step in steps if not step.is_leaf]
    return (*_rescaled(leaves, leaf_share), *_rescaled(branches, 1 - leaf_share))


def _rescaled(steps: Sequence[Production], total: float) -> tuple[Production, ...]:
    scale = total / sum(step.weight for step in steps) if steps else 0.0
    return tuple(replace(step, weight=step.weight * scale) for step in steps)

"""Which expressions to evaluate next: a pure function of the state.

Scoring and planning cost next to nothing compared with one fine-tuning, so a generation proposes in bulk,
plans everything, drops what is invalid or known, and picks plans that promise much and differ from others.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import jax

from jaxprune.keys import derive, generator
from jaxprune.language.canonical import canonical_form
from jaxprune.language.expression import Expression
from jaxprune.language.library import PAPER_SEEDS, library, own_seeds
from jaxprune.language.parsing import parse
from jaxprune.language.sampling import Limits, random_expression
from jaxprune.language.variation import VariationSettings, vary
from jaxprune.language.vocabulary import PAPER_VOCABULARY, Vocabulary
from jaxprune.search.evaluation import Proposal, largest_cost
from jaxprune.search.problem import Behaviour, TaskInfo, plan_distance
from jaxprune.search.state import REFERENCE_ID, Candidate, SearchState, Tally, one_per_behaviour
from jaxprune.search.surrogate import most_promising
from jaxprune.types import Invalid

ROUNDS = 4
"""How often a generation proposes in bulk before it makes do with fewer candidates than slots."""


@dataclass(frozen=True)
class Asked:
    """The proposals of one generation, and what became of the others."""

    proposals: tuple[Proposal, ...]
    tally: Tally


@dataclass(frozen=True)
class _Draft:
    """An expression on its way to become a candidate."""

    expression: Expression
    origin: str
    parents: tuple[int, ...] = ()


def ask(state: SearchState) -> tuple[Proposal, ...]:
    """Says what to evaluate next: new candidates, then the elites again.

    Generation 0 is the library, our own seeds and the guesses, once each. Later generations are variations
    of the population (or random expressions), none with a canonical form or behaviour seen before. Fewer
    than `population` come back when nothing new was found or `max_evaluations` leaves no room; none at all
    means that the search is over.

    Args:
      state: any state; it is not changed, and the same state gives the same proposals.

    Returns:
      Proposals for `evaluate`, new ones with ids that follow those of the state.

    Raises:
      ValueError: if l2 is invalid on the problem, so that there is nothing to pair differences with.
    """
    return propose(state).proposals


def propose(state: SearchState) -> Asked:
    """The same as `ask`, with the tally of what was proposed."""
    return _first_generation(state) if state.generation == 0 else _next_generation(state)


def seeds(config_seeds: str, vocabulary: Vocabulary) -> dict[str, Expression]:
    """What generation 0 starts from: origin -> expression, l2 first, limited to the vocabulary's operands."""
    named = {f"library:{name}": function for name, function in library.items()}
    named |= {f"seed:{name}": function for name, function in own_seeds.items()}
    if config_seeds == "paper":
        named = {f"library:{name}": library[name] for name in PAPER_SEEDS}
    named = {"library:l2": library["l2"], **named}
    readable = frozenset(vocabulary.operands)
    return {origin: function for origin, function in named.items() if function.operands <= readable}


def vocabulary_of(state: SearchState) -> Vocabulary:
    """The problem's vocabulary, or what it shares with the paper's."""
    if state.config.vocabulary == "paper":
        return PAPER_VOCABULARY.restrict(state.problem.vocabulary.operands)
    return state.problem.vocabulary


def _first_generation(state: SearchState) -> Asked:
    started = seeds(state.config.seeds, vocabulary_of(state))
    drafts = [_Draft(function, origin) for origin, function in started.items()]
    drafts += [_Draft(parse(text), "guess") for text in state.guesses]
    once = {canonical_text(str(draft.expression)): draft for draft in reversed(drafts)}  # the first of equals
    kept = [draft for draft in drafts if once[canonical_text(str(draft.expression))] is draft]
    found = _behaviours(state, [draft.expression for draft in kept])
    if isinstance(found[0], Invalid):
        raise ValueError(
            f"every difference is to l2, so a task needs a network that l2 can score; it is {found[0]}."
        )
    candidates = [_candidate(state, REFERENCE_ID + i, kept[i], found[i]) for i in range(len(kept))]
    num_invalid = sum(isinstance(behaviour, Invalid) for behaviour in found)
    tally = Tally(len(drafts), len(drafts) - len(kept), num_invalid, len(kept) - num_invalid)
    return Asked(tuple(Proposal(candidate) for candidate in candidates), tally)


def _next_generation(state: SearchState) -> Asked:
    elites = elites_of(state)
    num_slots = _num_slots(state, len(elites))
    if num_slots == 0:
        return Asked((), Tally())
    known = {canonical_text(candidate.text) for candidate in state.candidates}
    behaviours = {found.behaviour.digest for found in state.candidates if found.behaviour is not None}
    valid: list[tuple[_Draft, Behaviour]] = []
    proposed = duplicates = invalid = 0
    batch = num_slots * state.config.proposals_per_slot
    for start in range(0, ROUNDS * batch, batch):
        fresh = []
        for draft in _drafts(state, range(start, start + batch)):
            text = str(draft.expression)
            fresh += [] if text in known else [draft]
            known.add(text)
        proposed, duplicates = proposed + batch, duplicates + batch - len(fresh)
        for draft, found in zip(
            fresh, _behaviours(state, [draft.expression for draft in fresh]), strict=True
        ):
            if isinstance(found, Invalid):
                invalid += 1
            elif found.digest in behaviours:
                duplicates += 1
            else:
                behaviours.add(found.digest)
                valid.append((draft, found))
        if len(valid) >= num_slots:
            break
    picked = _pick(valid, state, num_slots)
    start_id = len(state.candidates)
    new = [Proposal(_candidate(state, start_id + i, *entry)) for i, entry in enumerate(picked)]
    again = [Proposal(elite, again=True) for elite in elites]
    return Asked((*new, *again) if new else (), Tally(proposed, duplicates, invalid, len(valid)))


def elites_of(state: SearchState) -> tuple[Candidate, ...]:
    """The leading candidates of the population, which are tried again."""
    return tuple(state.candidates[id_] for id_ in state.population[: state.config.elites])


def _num_slots(state: SearchState, num_elites: int) -> int:
    """How many new candidates fit into what `max_evaluations` leaves."""
    config = state.config
    if config.max_evaluations is None:
        return config.population
    left = config.max_evaluations - state.evaluations
    costs = (
        (n, largest_cost(n, state.tasks, config.promote_fraction, num_elites))
        for n in range(1, config.population + 1)
    )
    return max((n for n, cost in costs if cost <= left), default=0)


def _drafts(state: SearchState, numbers: range) -> Iterator[_Draft]:
    """Expressions in canonical form; the key of each follows from its number, not from what came before."""
    config, vocabulary = state.config, vocabulary_of(state)
    limits = Limits(max_size=config.max_size, max_depth=config.max_depth)
    settings = VariationSettings(preset=config.variation)
    root = derive(jax.random.key(config.seed), "ask", state.generation)
    parsed = {id_: state.candidates[id_].expression for id_ in state.population}
    fertile = [id_ for id_ in state.population if limits.allow(parsed[id_])]  # a guess may be larger
    for number in numbers:
        key = derive(root, number)
        parents: tuple[int, ...] = ()
        if config.strategy == "random" or not fertile:
            child, origin = random_expression(key, vocabulary, limits=limits), "random"
        else:
            couple = _tournaments(derive(key, "select"), fertile, config.tournament)
            functions = [parsed[parent] for parent in couple]
            child, origin = vary(derive(key, "vary"), functions, vocabulary, limits, settings)
            parents = _parents_used(origin, couple)
        simple = canonical_form(child)
        yield _Draft(simple if limits.allow(simple) else child, origin, parents)


def _parents_used(origin: str, parents: tuple[int, ...]) -> tuple[int, ...]:
    """Both parents of a crossover, once if they are one; the first of anything else; none of a random one."""
    if "crossover" in origin:
        return tuple(dict.fromkeys(parents))
    return () if origin == "random" else parents[:1]


def _tournaments(key: jax.Array, ranked: Sequence[int], size: int, num_parents: int = 2) -> tuple[int, ...]:
    """Per parent the best of a few drawn at random from ids that are ranked: the lowest place wins."""
    places = generator(key).integers(len(ranked), size=(num_parents, size)).min(axis=1)
    return tuple(ranked[int(place)] for place in places)


def _pick(
    valid: Sequence[tuple[_Draft, Behaviour]], state: SearchState, num_slots: int
) -> list[tuple[_Draft, Behaviour]]:
    """Picks the promising share, then in order of proposal; plans too near to others come last, farthest first."""
    plans = [found.behaviour.kept for found in state.candidates if found.behaviour is not None]
    picked: list[int] = []
    near: dict[int, float] = {}
    guided = _guided(valid, state, num_slots)
    for place in dict.fromkeys([*guided, *range(len(valid))]):
        if len(picked) == num_slots:
            break
        kept = valid[place][1].kept
        distance = min((plan_distance(kept, plan) for plan in plans), default=1.0)
        if distance < state.config.min_plan_distance:
            near[place] = distance
        else:
            picked.append(place)
            plans.append(kept)
    rest = sorted(near, key=lambda place: (-near[place], place))[: num_slots - len(picked)]
    return [valid[place] for place in (*picked, *rest)]


def _guided(valid: Sequence[tuple[_Draft, Behaviour]], state: SearchState, num_slots: int) -> list[int]:
    """Places of the proposals that most is expected of; none in the random control."""
    if state.config.strategy == "random":
        return []
    members = [
        member for member in one_per_behaviour(state.ranked()) if member.candidate.behaviour is not None
    ]
    return most_promising(
        [member.candidate.behaviour.kept for member in members if member.candidate.behaviour is not None],
        [member.fitness.mean for member in members],
        [member.fitness.se for member in members],
        [behaviour.kept for _, behaviour in valid],
        round(num_slots * state.config.guided_fraction),
    )


def _behaviours(state: SearchState, functions: Sequence[Expression]) -> list[Behaviour | Invalid]:
    """The problem's answer, checked: one result per function, one digest per search base."""
    found = list(state.problem.behaviours(functions)) if functions else []
    if len(found) != len(functions):
        raise ValueError(f"behaviours needs one result per function, got {len(found)} for {len(functions)}.")
    for behaviour in found:
        if isinstance(behaviour, Behaviour):
            _check_digests(behaviour.digests, state.tasks)
    return found


def _check_digests(digests: Mapping[str, tuple[str, ...]], tasks: Sequence[TaskInfo]) -> None:
    needed = {task.name: task.bases + task.extra_bases for task in tasks}
    came = {name: len(found) for name, found in digests.items()}
    if needed != came:
        raise ValueError(
            f"a behaviour needs one digest per task and search base, extra ones included: {needed}, got {came}."
        )


def _candidate(state: SearchState, id_: int, draft: _Draft, found: Behaviour | Invalid) -> Candidate:
    candidate = Candidate(
        id=id_,
        text=str(draft.expression),
        complexity=draft.expression.complexity,
        origin=draft.origin,
        parents=draft.parents,
        generation=state.generation,
        last_evaluated=state.generation,
    )
    if isinstance(found, Invalid):
        return dataclasses.replace(candidate, status="invalid", reason=found.reason)
    return dataclasses.replace(candidate, behaviour=found)


@lru_cache(maxsize=65536)
def canonical_text(text: str) -> str:
    """The canonical form of a formula, as text: equal for formulas that are equal by form."""
    return str(canonical_form(parse(text)))

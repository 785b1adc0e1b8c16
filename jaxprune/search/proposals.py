"""Decides which expressions to evaluate next, as a pure function of the state.

Scoring and planning take next to no time compared with one fine-tuning. So a generation proposes many expressions,
plans with all of them, drops the invalid and the known ones, and picks plans that promise much and differ from others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import jax

from jaxprune.keys import derive, generator
from jaxprune.language.canonical import canonical_form
from jaxprune.language.expression import Expression
from jaxprune.language.library import FOUND_BY_US, PAPER_SEEDS, library, own_seeds
from jaxprune.language.operators import OPERATORS
from jaxprune.language.parsing import parse
from jaxprune.language.sampling import Limits, random_expression
from jaxprune.language.variation import VariationSettings, vary
from jaxprune.language.vocabulary import PAPER_VOCABULARY, Vocabulary
from jaxprune.scoring.analysis import needs_samples
from jaxprune.search.evaluation import Proposal, max_fine_tunings, stop_if_asked
from jaxprune.search.problem import Behaviour, plan_distance
from jaxprune.search.selection import one_per_behaviour
from jaxprune.search.state import REFERENCE_ID, Candidate, SearchState, Tally
from jaxprune.search.surrogate import most_promising
from jaxprune.types import Invalid

ROUNDS = 4
"""How often a generation proposes a batch of expressions before it settles for fewer candidates than slots."""

LANDSCAPE_ROUNDS = 40
"""The same on a landscape, where a round is as many expressions as slots."""

SCORED_AT_ONCE = 256
"""Most expressions that are scored in one call, so that a time limit is looked at in between."""


_MATRICES = frozenset({"W", "GX"})
_MATRIX_OPERATORS = frozenset(
    {"transpose", "matmul", "outer", "trace", "inverse", "rbf", "geometric_median", "slice"}
)
"""What a search on a landscape does not draw. Formulas given or in the library may hold it all the same."""


@dataclass(frozen=True)
class ProposalBatch:
    """The proposals of one generation, and the counts of what became of the others."""

    proposals: tuple[Proposal, ...]
    tally: Tally


@dataclass(frozen=True)
class _Draft:
    """An expression that may become a candidate."""

    expression: Expression
    origin: str
    parents: tuple[int, ...] = ()


def ask(state: SearchState) -> tuple[Proposal, ...]:
    """Returns what to evaluate next: new candidates, then the elites again.

    Generation 0 is the library, our own seeds and the guesses, once each. Later generations are variations of the
    population (or random expressions), and none has a canonical form or behaviour that was seen before. There are fewer
    than `population` of them if nothing new was found or `max_evaluations` leaves no room; if there are none at all,
    the search is over.

    Args:
      state: any state; it is not changed, and the same state gives the same proposals.

    Returns:
      Proposals for `evaluate`; the ids of new candidates follow those of the state.

    Raises:
      ValueError: if l2 is invalid on the problem, so that there is nothing to take differences to.
    """
    return propose(state).proposals


def propose(state: SearchState, should_stop: Callable[[], str | None] = lambda: None) -> ProposalBatch:
    """Returns the proposals of `ask` together with the tally of the expressions that led to them.

    Args:
      state: as for `ask`.
      should_stop: called often; returns a reason to stop, or None to go on.

    Raises:
      SearchStopped: if `should_stop` gave a reason; nothing is lost, because proposals follow from the state.
      ValueError: as `ask`.
    """
    if state.generation == 0:
        return _first_generation(state, should_stop)
    return _next_generation(state, should_stop)


def seeds(config_seeds: str, vocabulary: Vocabulary) -> dict[str, Expression]:
    """Returns the formulas that generation 0 starts from.

    Args:
      config_seeds: "all" for the library and our own seeds, "handmade" for these without what our own searches found,
        "paper" for the paper's seven metrics.
      vocabulary: formulas that read other operands are left out.

    Returns:
      Origin ("library:NAME" or "seed:NAME") -> expression, l2 first.
    """
    formulas = {"library:l2": library["l2"]}
    formulas |= {
        f"library:{name}": library[name] for name in (PAPER_SEEDS if config_seeds == "paper" else library)
    }
    if config_seeds != "paper":
        found = FOUND_BY_US if config_seeds == "handmade" else ()
        formulas |= {f"seed:{name}": formula for name, formula in own_seeds.items() if name not in found}
    readable = frozenset(vocabulary.operands)
    return {origin: formula for origin, formula in formulas.items() if formula.operands <= readable}


@lru_cache(maxsize=65536)
def canonical_text(text: str) -> str:
    """Returns the canonical form of a formula as text, which is equal for formulas of equal form."""
    return str(canonical_form(parse(text)))


def _first_generation(state: SearchState, should_stop: Callable[[], str | None]) -> ProposalBatch:
    drafts = [_Draft(f, origin) for origin, f in seeds(state.config.seeds, _vocabulary(state)).items()]
    drafts += [_Draft(parse(text), "guess") for text in state.guesses]
    first: dict[str, _Draft] = {}
    for draft in drafts:
        first.setdefault(canonical_text(str(draft.expression)), draft)
    unique = list(first.values())
    behaviours = _behaviours(state, [draft.expression for draft in unique], should_stop)
    if isinstance(behaviours[0], Invalid):
        raise ValueError(
            f"every difference is to l2, so a task needs a network that l2 can score; it is {behaviours[0]}."
        )
    num_invalid = sum(isinstance(behaviour, Invalid) for behaviour in behaviours)
    tally = Tally(len(drafts), len(drafts) - len(unique), num_invalid, len(unique) - num_invalid)
    return ProposalBatch(
        _new_proposals(state, REFERENCE_ID, list(zip(unique, behaviours, strict=True))), tally
    )


def _next_generation(state: SearchState, should_stop: Callable[[], str | None]) -> ProposalBatch:
    num_elites = 0 if state.has_landscapes else state.config.elites
    elites = [state.candidates[id_] for id_ in state.population[:num_elites]]
    num_slots = _num_slots(state, len(elites))
    if num_slots == 0:
        return ProposalBatch((), Tally())
    texts = {canonical_text(candidate.text) for candidate in state.candidates}
    digests = {
        candidate.behaviour.digest for candidate in state.candidates if candidate.behaviour is not None
    }
    valid: list[tuple[_Draft, Behaviour]] = []
    proposed = duplicates = invalid = 0
    # On a landscape trying a function costs no more than proposing it, so nothing is gained by choosing.
    rounds = LANDSCAPE_ROUNDS if state.has_landscapes else ROUNDS
    batch = num_slots * (1 if state.has_landscapes else state.config.proposals_per_slot)
    for start in range(0, rounds * batch, batch):
        drafts = []
        for draft in _drafts(state, range(start, start + batch)):
            stop_if_asked(should_stop)
            text = str(draft.expression)
            drafts += [] if text in texts else [draft]
            texts.add(text)
        proposed, duplicates = proposed + batch, duplicates + batch - len(drafts)
        behaviours = _behaviours(state, [draft.expression for draft in drafts], should_stop)
        for draft, behaviour in zip(drafts, behaviours, strict=True):
            if isinstance(behaviour, Invalid):
                invalid += 1
            elif behaviour.digest in digests:
                duplicates += 1
            else:
                digests.add(behaviour.digest)
                valid.append((draft, behaviour))
        if len(valid) >= num_slots:
            break
    picked = valid[:num_slots] if state.has_landscapes else _pick(valid, state, num_slots, should_stop)
    new = _new_proposals(state, len(state.candidates), picked)
    again = [Proposal(elite, again=True) for elite in elites]
    return ProposalBatch((*new, *again) if new else (), Tally(proposed, duplicates, invalid, len(valid)))


def _vocabulary(state: SearchState) -> Vocabulary:
    """Returns the problem's vocabulary, or what it has in common with the paper's; no matrices on a landscape."""
    available = state.problem.vocabulary
    if state.config.vocabulary != "default":
        paper = PAPER_VOCABULARY.operands
        names = paper if state.config.vocabulary == "paper" else (*paper, "WO")
        available = replace(PAPER_VOCABULARY, operands=names).restrict(available.operands)
    return _without_matrices(available) if state.has_landscapes else available


def _without_matrices(vocabulary: Vocabulary) -> Vocabulary:
    """Leaves out whole matrices: they take most of the time, and no winner of a search has used them."""
    operators = vocabulary.operators or tuple(OPERATORS)
    return replace(
        vocabulary,
        operands=tuple(name for name in vocabulary.operands if name not in _MATRICES),
        operators=tuple(name for name in operators if name not in _MATRIX_OPERATORS),
    )


def _num_slots(state: SearchState, num_elites: int) -> int:
    """Computes how many new candidates `max_evaluations` leaves room for."""
    config = state.config
    if config.max_evaluations is None:
        return config.population
    num_slots, remaining = config.population, config.max_evaluations - state.evaluations
    while (
        num_slots
        and max_fine_tunings(num_slots, state.tasks, config.promote_fraction, num_elites) > remaining
    ):
        num_slots -= 1
    return num_slots


def _drafts(state: SearchState, numbers: range) -> Iterator[_Draft]:
    """Yields expressions in canonical form. The key of each follows from its number, not from those before it.

    On a landscape, those that read whole samples are left out: they take most of the time, and no winner was among
    them. What moments say is enough.
    """
    config, vocabulary = state.config, _vocabulary(state)
    limits = Limits(max_size=config.max_size, max_depth=config.max_depth)
    settings = VariationSettings(preset=config.variation)
    root = derive(jax.random.key(config.seed), "ask", state.generation)
    expressions = {id_: state.candidates[id_].expression for id_ in state.population}
    fertile = [id_ for id_ in state.population if limits.allow(expressions[id_])]  # a guess may be larger
    for number in numbers:
        key = derive(root, number)
        parents: tuple[int, ...] = ()
        if config.strategy == "random" or not fertile:
            child, origin = random_expression(key, vocabulary, limits=limits), "random"
        else:
            couple = _tournaments(derive(key, "select"), fertile, config.tournament)
            child, origin = vary(
                derive(key, "vary"), [expressions[id_] for id_ in couple], vocabulary, limits, settings
            )
            if "crossover" in origin:
                parents = tuple(dict.fromkeys(couple))  # once if both are the same
            elif origin != "random":
                parents = couple[:1]
        canonical = canonical_form(child)
        draft = _Draft(canonical if limits.allow(canonical) else child, origin, parents)
        if not (state.has_landscapes and needs_samples(draft.expression)):
            yield draft


def _tournaments(key: jax.Array, ranked: Sequence[int], size: int) -> tuple[int, ...]:
    """Selects two parents: each is the best of `size` ids drawn at random from the ids `ranked`, best first."""
    ranks = generator(key).integers(len(ranked), size=(2, size)).min(axis=1)
    return tuple(ranked[int(rank)] for rank in ranks)


def _pick(
    valid: Sequence[tuple[_Draft, Behaviour]],
    state: SearchState,
    num_slots: int,
    should_stop: Callable[[], str | None],
) -> list[tuple[_Draft, Behaviour]]:
    """Picks the most promising share, then in order of proposal; plans near to others come last, farthest first."""
    plans = [candidate.behaviour.kept for candidate in state.candidates if candidate.behaviour is not None]
    picked: list[int] = []
    near: dict[int, float] = {}
    for index in dict.fromkeys([*_promising(valid, state, num_slots), *range(len(valid))]):
        if len(picked) == num_slots:
            break
        stop_if_asked(should_stop)
        kept = valid[index][1].kept
        distance = min((plan_distance(kept, plan) for plan in plans), default=1.0)
        if distance < state.config.min_plan_distance:
            near[index] = distance
        else:
            picked.append(index)
            plans.append(kept)
    rest = sorted(near, key=lambda index: (-near[index], index))[: num_slots - len(picked)]
    return [valid[index] for index in (*picked, *rest)]


def _promising(valid: Sequence[tuple[_Draft, Behaviour]], state: SearchState, num_slots: int) -> list[int]:
    """Returns the indices of the proposals that the surrogate expects most of; none in the random control."""
    if state.config.strategy == "random":
        return []
    known = [
        (individual.candidate.behaviour.kept, individual.fitness)
        for individual in one_per_behaviour(state.ranked())
        if individual.candidate.behaviour is not None
    ]
    return most_promising(
        [kept for kept, _ in known],
        [fitness.mean for _, fitness in known],
        [fitness.se for _, fitness in known],
        [behaviour.kept for _, behaviour in valid],
        round(num_slots * state.config.guided_fraction),
    )


def _behaviours(
    state: SearchState, functions: Sequence[Expression], should_stop: Callable[[], str | None]
) -> list[Behaviour | Invalid]:
    """Asks the problem for behaviours; checks that there is one per function, with one digest per search base."""
    behaviours: list[Behaviour | Invalid] = []
    for start in range(0, len(functions), SCORED_AT_ONCE):
        stop_if_asked(should_stop)
        behaviours += state.problem.behaviours(functions[start : start + SCORED_AT_ONCE])
    if len(behaviours) != len(functions):
        raise ValueError(
            f"behaviours needs one result per function, got {len(behaviours)} for {len(functions)}."
        )
    needed = {task.name: task.bases + task.extra_bases for task in state.tasks}
    for behaviour in behaviours:
        if isinstance(behaviour, Behaviour):
            counts = {name: len(digests) for name, digests in behaviour.digests.items()}
            if counts != needed:
                raise ValueError(
                    "a behaviour needs one digest per task and search base, extra ones included: "
                    f"{needed}, got {counts}."
                )
    return behaviours


def _new_proposals(
    state: SearchState, first_id: int, drafts: Sequence[tuple[_Draft, Behaviour | Invalid]]
) -> tuple[Proposal, ...]:
    """Makes candidates of drafts, with ids from `first_id` on."""
    return tuple(
        Proposal(
            Candidate(
                id=id_,
                text=str(draft.expression),
                complexity=draft.expression.complexity,
                origin=draft.origin,
                parents=draft.parents,
                generation=state.generation,
                status="invalid" if isinstance(behaviour, Invalid) else "ok",
                reason=behaviour.reason if isinstance(behaviour, Invalid) else "",
                behaviour=None if isinstance(behaviour, Invalid) else behaviour,
                last_evaluated=state.generation,
            )
        )
        for id_, (draft, behaviour) in enumerate(drafts, start=first_id)
    )

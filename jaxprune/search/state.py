"""Candidates, the plain state of a search, and who survives: ranking, age, Pareto front, ancestry.

`SearchState` is frozen and says everything: the same state always leads to the same run. Files are not read
or written here; `plain.py` turns the state into plain data and back.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Literal

from jaxprune.language.parsing import parse
from jaxprune.search.fitness import Fitness, TaskScale, fitness_of
from jaxprune.search.problem import Behaviour, Problem, TaskInfo, TrialKey
from jaxprune.search.settings import EvolveConfig

if TYPE_CHECKING:
    from jaxprune.language.expression import Expression

REFERENCE_ID = 0
"""The candidate id of l2, which every run starts with: all differences are to it."""


@dataclass(frozen=True)
class Candidate:
    """One expression that was evaluated, or found invalid when it was a seed or a guess.

    Args:
      id: its number in order of proposal; l2 is 0.
      text: the canonical infix text.
      complexity: the expression's complexity.
      origin: where it is from: "library:NAME", "seed:NAME", "guess", "random" or the variation's name.
      parents: ids of the candidates it was made from.
      generation: in which it was born.
      status: "ok" or "invalid".
      reason: why it is invalid, else empty.
      behaviour: its plans on the search bases; None when invalid.
      last_evaluated: the last generation in which something was fine-tuned for it.
    """

    id: int
    text: str
    complexity: int
    origin: str
    parents: tuple[int, ...]
    generation: int
    status: Literal["ok", "invalid"] = "ok"
    reason: str = ""
    behaviour: Behaviour | None = None
    last_evaluated: int = 0

    @property
    def expression(self) -> Expression:
        """The text, parsed."""
        return parse(self.text)

    @property
    def digests(self) -> Mapping[str, tuple[str, ...]]:
        """Its plan digests by task; empty when invalid."""
        return self.behaviour.digests if self.behaviour is not None else {}


@dataclass(frozen=True)
class Individual:
    """A candidate with its fitness, as it stands in a population or archive."""

    candidate: Candidate
    fitness: Fitness

    @property
    def expression(self) -> Expression:
        """The candidate's expression."""
        return self.candidate.expression

    def __str__(self) -> str:
        return f"{self.candidate.text}   {self.fitness.mean:+.3f} +- {self.fitness.se:.3f}"


@dataclass(frozen=True)
class SearchState:
    """All that a search knows between two generations.

    Args:
      config: its settings.
      tasks: the problem's tasks.
      problem: what scores and fine-tunes; not part of the plain data.
      guesses: texts of the user's own formulas.
      generation: the generation to ask for next.
      candidates: everything evaluated so far, in order of id.
      population: ids of those that may become parents, best first.
      archive: ids of the Pareto front of fitness and complexity, simplest first.
      results: every accuracy found so far, by trial key.
      scales: task name -> variation measured in generation 0; empty before.
      evaluations: number of fine-tunings run, references included.
      summaries: one per generation told.
    """

    config: EvolveConfig
    tasks: tuple[TaskInfo, ...]
    problem: Problem = field(compare=False, repr=False)
    guesses: tuple[str, ...] = ()
    generation: int = 0
    candidates: tuple[Candidate, ...] = ()
    population: tuple[int, ...] = ()
    archive: tuple[int, ...] = ()
    results: Mapping[TrialKey, float] = field(default_factory=dict)
    scales: Mapping[str, TaskScale] = field(default_factory=dict)
    evaluations: int = 0
    summaries: tuple[GenerationSummary, ...] = ()

    @cached_property
    def fitnesses(self) -> dict[int, Fitness]:
        """Candidate id -> fitness, of every candidate that was tried on all tasks."""
        if not self.scales:
            return {}
        reference = self.candidates[REFERENCE_ID].digests
        found = {
            candidate.id: fitness_of(
                self.results, self.tasks, self.scales, candidate.digests, reference, self.config.fitness
            )
            for candidate in self.candidates
            if candidate.status == "ok"
        }
        return {id_: fitness for id_, fitness in found.items() if fitness is not None}

    def member(self, candidate_id: int) -> Individual:
        """The candidate with its fitness.

        Raises:
          ValueError: if it was never tried on all tasks.
        """
        if candidate_id not in self.fitnesses:
            raise ValueError(
                f"candidate {candidate_id} has no fitness: it is unknown, invalid, or not tried on every task."
            )
        return Individual(self.candidates[candidate_id], self.fitnesses[candidate_id])

    def ranked(self, ids: Iterable[int] | None = None) -> tuple[Individual, ...]:
        """Members with a fitness, best first: by mean minus standard error, then simpler, then older."""
        chosen = self.fitnesses if ids is None else [id_ for id_ in ids if id_ in self.fitnesses]
        members = [self.member(id_) for id_ in chosen]
        return tuple(sorted(members, key=_rank))


def _rank(member: Individual) -> tuple[float, int, int]:
    return (-member.fitness.lower, member.candidate.complexity, member.candidate.id)


def one_per_behaviour(members: Sequence[Individual]) -> tuple[Individual, ...]:
    """Of members with equal behaviour keeps the first, which is the better or simpler one when ranked."""
    first: dict[str, Individual] = {}
    for member in members:
        assert member.candidate.behaviour is not None
        first.setdefault(member.candidate.behaviour.digest, member)
    return tuple(first.values())


def survivors(state: SearchState) -> tuple[int, ...]:
    """The ids of the best candidates that are young enough to be parents, best first, one per behaviour.

    A candidate retires when nothing was fine-tuned for it in `max_age` generations: what once was lucky
    must show it again.
    """
    last = state.generation - 1
    young = [
        member for member in state.ranked() if last - member.candidate.last_evaluated <= state.config.max_age
    ]
    return tuple(member.candidate.id for member in one_per_behaviour(young)[: state.config.population])


def pareto_front(members: Iterable[Individual]) -> tuple[Individual, ...]:
    """The members that no other beats in both fitness (mean minus standard error) and complexity.

    Returns:
      Simplest first, each better than all simpler ones; of equals the older one.
    """
    front: list[Individual] = []
    best = -math.inf
    by_complexity = sorted(
        members, key=lambda member: (member.candidate.complexity, -member.fitness.lower, member.candidate.id)
    )
    for member in by_complexity:
        if member.fitness.lower > best:
            front.append(member)
            best = member.fitness.lower
    return tuple(front)


def ancestry(state: SearchState, candidate_id: int) -> tuple[Candidate, ...]:
    """The candidate and all it descends from, oldest first; `origin` and `parents` of each tell the story.

    Raises:
      ValueError: if there is no such candidate.
    """
    if not 0 <= candidate_id < len(state.candidates):
        raise ValueError(
            f"no candidate {candidate_id}: the run has candidates 0 to {len(state.candidates) - 1}."
        )
    family: set[int] = set()
    waiting = [candidate_id]
    while waiting:
        current = waiting.pop()
        if current not in family:
            family.add(current)
            waiting.extend(state.candidates[current].parents)
    return tuple(state.candidates[id_] for id_ in sorted(family))


# === merged: """One generation in one record: what the live table shows and the journal keeps."""


@dataclass(frozen=True)
class Tally:
    """What became of a generation's proposals before anything was fine-tuned.

    Args:
      proposed: expressions made.
      duplicates: those whose canonical form or behaviour was already known, or came twice.
      invalid: those whose scores were invalid.
      unique: those left; the generation is picked from them.
    """

    proposed: int = 0
    duplicates: int = 0
    invalid: int = 0
    unique: int = 0


@dataclass(frozen=True)
class GenerationSummary:
    """What one generation did, and where the search stands after it.

    Args:
      generation: its number; 0 is the library, own seeds and guesses.
      num_generations: number of the last generation that the config asks for.
      best_id, best_mean, best_se, best_text: the leader by mean minus standard error, after this generation.
      best_bases: bases the leader was tried on, over all tasks.
      proposed, unique, duplicates, invalid: see `Tally`.
      evaluated: new candidates fine-tuned in this generation.
      evaluated_total: the same, since the start.
      fine_tunings: fine-tunings run in this generation, references and re-evaluations included.
      fine_tunings_total: the same, since the start.
      references: fine-tunings of l2 under new keys, for the paired differences.
      reevaluations: fine-tunings of elites on further bases and keys.
      cache_hits: results that were already known from an equal plan.
      archive_size: number of members of the Pareto archive.
      seconds: wall-clock time of the generation, scoring included.
      eta_seconds: estimated time to the end, or None before it can be told.
    """

    generation: int
    num_generations: int
    best_id: int
    best_mean: float
    best_se: float
    best_text: str
    best_bases: int
    proposed: int
    unique: int
    duplicates: int
    invalid: int
    evaluated: int
    evaluated_total: int
    fine_tunings: int
    fine_tunings_total: int
    references: int
    reevaluations: int
    cache_hits: int
    archive_size: int
    seconds: float = 0.0
    eta_seconds: float | None = None


def estimate_seconds_left(seconds: list[float], generations_left: int) -> float | None:
    """The mean time of the last three generations, times those left; generation 0 only while alone.

    Example:
      >>> estimate_seconds_left([100.0, 10.0, 12.0, 14.0, 16.0], 2)
      28.0
    """
    recent = seconds[1:][-3:] or seconds
    return generations_left * sum(recent) / len(recent) if recent else None


def start_formulas(state: SearchState) -> list[Individual]:
    """Library functions and own seeds, the highest mean fitness first.

    By the mean, not the mean minus standard error: l2 has no error by definition, so it would too often come first.
    """
    known = [member for member in state.ranked() if member.candidate.origin.startswith(("library:", "seed:"))]
    return sorted(known, key=lambda member: -member.fitness.mean)


def origin_name(member: Individual) -> str:
    """The name of a library function or own seed, else what its origin is."""
    return member.candidate.origin.split(":")[-1]

"""The state of a search: candidates with their fitness, the population, the archive, and what each generation did.

`SearchState` is frozen and complete: the same state always leads to the same run. `serialization.py` turns it into
plain data and back; this module reads and writes no files.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Literal

from jaxprune.language.parsing import parse
from jaxprune.search.fitness import Fitness, TaskScale, fitness_of, mean_of, predicted_fitness
from jaxprune.search.problem import (
    BankFacts,
    Behaviour,
    Prediction,
    Problem,
    RowUse,
    StructuredProblem,
    TaskInfo,
    TrialKey,
)
from jaxprune.search.settings import EvolveConfig

if TYPE_CHECKING:
    from jaxprune.language.expression import Expression

REFERENCE_ID = 0
"""The id of the candidate l2, which every run starts with and to which all differences are taken."""


@dataclass(frozen=True)
class Candidate:
    """An expression that was evaluated, or a seed or guess that was found invalid.

    Args:
      id: its number in order of proposal; l2 is 0.
      text: the canonical infix text.
      complexity: the expression's complexity.
      origin: how it was made: "library:NAME", "seed:NAME", "guess", "random" or the name of the variation.
      parents: ids of the candidates it was made from.
      generation: the generation in which it was proposed.
      status: "ok" or "invalid".
      reason: why it is invalid, otherwise empty.
      behaviour: its plans on the search bases; None if it is invalid.
      last_evaluated: the last generation in which it was fine-tuned.
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
        """The parsed text."""
        return parse(self.text)

    @property
    def digests(self) -> Mapping[str, tuple[str, ...]]:
        """Task name -> digest of the plan on each search base; empty for an invalid candidate."""
        return self.behaviour.digests if self.behaviour is not None else {}


@dataclass(frozen=True)
class Individual:
    """A candidate with its fitness, as populations and archives rank it.

    Args:
      candidate: the candidate.
      fitness: its fitness.
      value: what it is compared by: the mean on a landscape, where all are judged on all bases; otherwise the mean
        minus the standard error.
      is_verified: whether it was fine-tuned on all search bases, on a landscape; otherwise always true.
      cost: what its complexity costs.
    """

    candidate: Candidate
    fitness: Fitness
    value: float
    is_verified: bool = True
    cost: float = 0.0

    @property
    def expression(self) -> Expression:
        """The candidate's expression."""
        return self.candidate.expression

    @property
    def order(self) -> tuple[bool, float, int, int]:
        """What sorts individuals, best first: verified ones, then by value minus cost; of equals the simpler, older."""
        return (not self.is_verified, self.cost - self.value, self.candidate.complexity, self.candidate.id)

    def __str__(self) -> str:
        return f"{self.candidate.text}   {self.fitness.mean:+.3f} +- {self.fitness.se:.3f}"


@dataclass(frozen=True)
class Tally:
    """Counts what became of a generation's proposals before anything was fine-tuned.

    Args:
      proposed: number of expressions proposed.
      duplicates: number of those whose canonical form or behaviour was known already or came twice.
      invalid: number of those whose scores were invalid.
      unique: number of the others, from which the generation is picked.
    """

    proposed: int = 0
    duplicates: int = 0
    invalid: int = 0
    unique: int = 0


@dataclass(frozen=True)
class GenerationSummary:
    """What one generation did and where the search stands after it: the live table shows it, the journal stores it.

    Args:
      generation: its number; generation 0 is the library, own seeds and guesses.
      num_generations: number of the last generation that the config asks for.
      best_id, best_mean, best_se, best_text: the leader after this generation, see `SearchState.ranked`.
      best_bases: number of bases that the leader was judged on, over all tasks.
      proposed, unique, duplicates, invalid: see `Tally`.
      evaluated: number of valid new candidates of this generation, fine-tuned or, on a landscape, predicted.
      evaluated_total: the same since the start.
      fine_tunings: number of fine-tunings run in this generation, references and re-evaluations included.
      fine_tunings_total: the same since the start.
      references: number of fine-tunings of l2 under new keys, which paired differences need.
      reevaluations: number of fine-tunings of elites on further bases and keys.
      cache_hits: number of results that were known already from an equal plan.
      archive_size: number of individuals in the Pareto archive.
      seconds: wall-clock time of the generation, scoring included.
      eta_seconds: estimated time to the end; None while nothing can be estimated.
      row_seconds: time of the rows in which members were fine-tuned together, since the generation before.
      idle_seconds: the share of it that went to copies, which fill rows; not in the journal, as it is no result.
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
    row_seconds: float = 0.0
    idle_seconds: float = 0.0

    @property
    def idle_share(self) -> float | None:
        """The share of devices' time that went to copies; None where members are trained one by one."""
        return RowUse(self.row_seconds, self.idle_seconds).idle_share


@dataclass(frozen=True)
class SearchState:
    """Everything that a search knows between two generations.

    Args:
      config: its settings.
      tasks: the problem's tasks.
      problem: scores and fine-tunes; not part of the plain data.
      guesses: texts of the user's own formulas.
      generation: the generation to ask for next.
      candidates: everything evaluated so far, in order of id.
      population: ids of the candidates that may become parents, best first.
      archive: ids of the Pareto front of fitness and complexity, simplest first.
      results: trial key -> validation accuracy in percent, of everything fine-tuned so far.
      scales: task name -> variation measured in generation 0; empty before it.
      evaluations: number of fine-tunings run, references included.
      summaries: one per generation that was completed.
      banks: task name -> what its bank shows; empty without landscapes.
      verified_at: the generation to ask for next when the leaders were verified; None before.
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
    banks: Mapping[str, BankFacts] = field(default_factory=dict)
    verified_at: int | None = None

    @property
    def has_landscapes(self) -> bool:
        """Whether fitness is predicted by landscapes, and leaders are verified by fine-tuning."""
        return self.config.fitness == "landscape"

    @cached_property
    def fitnesses(self) -> dict[int, Fitness]:
        """Candidate id -> fitness, of every candidate that was judged on all tasks.

        On a landscape it is what is predicted; for verified candidates, the mean of that and what was measured.
        """
        if not self.scales:
            return {}
        if self.has_landscapes:
            halves = {id_: mean_of(self.predicted[id_], measured) for id_, measured in self.verified.items()}
            return {**self.predicted, **halves}
        return self.measured(self.candidates)

    @cached_property
    def predicted(self) -> dict[int, Fitness]:
        """Candidate id -> what landscapes predict of its fitness; empty without landscapes."""
        return {
            candidate.id: self.predicted_fitness(candidate.behaviour.predicted)
            for candidate in self.candidates
            if self.has_landscapes and self.scales and candidate.behaviour is not None
        }

    def predicted_fitness(self, predicted: Mapping[str, Prediction]) -> Fitness:
        """Combines what landscapes predict of a function, task name -> prediction, as the search does."""
        return predicted_fitness(predicted, self.tasks, self.scales, self.config.joint)

    @cached_property
    def verified(self) -> dict[int, Fitness]:
        """Candidate id -> fitness measured by fine-tuning on all search bases; empty without landscapes."""
        if not self.has_landscapes or not self.results:
            return {}
        needed = sum(task.bases for task in self.tasks)
        return {
            id_: fitness
            for id_, fitness in self.measured(self.candidates).items()
            if sum(result.bases for result in fitness.tasks.values()) == needed
        }

    def measured(self, candidates: Iterable[Candidate]) -> dict[int, Fitness]:
        """Computes fitness from fine-tunings, on the bases where there are any.

        Args:
          candidates: some candidates.

        Returns:
          Candidate id -> fitness, of those that were fine-tuned on every task.
        """
        reference = self.candidates[REFERENCE_ID].digests
        fitnesses = {
            candidate.id: fitness_of(
                self.results, self.tasks, self.scales, candidate.digests, reference, self.config.joint
            )
            for candidate in candidates
            if candidate.status == "ok"
        }
        return {id_: fitness for id_, fitness in fitnesses.items() if fitness is not None}

    def individual(self, candidate_id: int) -> Individual:
        """Returns a candidate with its fitness.

        Raises:
          ValueError: if the candidate is unknown or was never tried on all tasks.
        """
        if candidate_id not in self.fitnesses:
            raise ValueError(
                f"candidate {candidate_id} has no fitness: it is unknown, invalid, or not tried on every task."
            )
        return self._individual(candidate_id, self.fitnesses)

    def _individual(self, candidate_id: int, fitnesses: Mapping[int, Fitness]) -> Individual:
        candidate, fitness = self.candidates[candidate_id], fitnesses[candidate_id]
        if not self.has_landscapes:
            return Individual(candidate, fitness, fitness.lower)
        cost = self.config.parsimony * candidate.complexity
        return Individual(candidate, fitness, fitness.mean, candidate_id in self.verified, cost)

    def ranked_by_prediction(self) -> tuple[Individual, ...]:
        """Ranks all candidates by what landscapes predict, as `ranked` did before any was verified."""
        individuals = [self._individual(id_, self.predicted) for id_ in self.predicted]
        return tuple(sorted(individuals, key=lambda individual: individual.order[1:]))

    def ranked(self, ids: Iterable[int] | None = None) -> tuple[Individual, ...]:
        """Ranks individuals by their value minus the cost of their complexity; verified ones come first.

        Of equals the simpler, then the older comes first.

        Args:
          ids: the candidates to rank; None for all. Those without a fitness are left out.

        Returns:
          The individuals, best first.
        """
        chosen = self.fitnesses if ids is None else [id_ for id_ in ids if id_ in self.fitnesses]
        return tuple(
            sorted((self.individual(id_) for id_ in chosen), key=lambda individual: individual.order)
        )


def ancestry(state: SearchState, candidate_id: int) -> tuple[Candidate, ...]:
    """Finds a candidate and all its ancestors; `origin` and `parents` of each say how it was made.

    Args:
      state: any state of the run.
      candidate_id: the candidate.

    Returns:
      The candidate and its ancestors, oldest first.

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


def guesses_without_operands(state: SearchState) -> dict[str, str]:
    """Finds the given formulas that read an operand which a network lacks, without any training.

    Args:
      state: of a search.

    Returns:
      Text of the guess -> what it lacks.
    """
    problem = state.problem
    if not isinstance(problem, StructuredProblem):
        return {}
    absences = {text: problem.absence(parse(text)) for text in state.guesses}
    return {text: absence for text, absence in absences.items() if absence}


def lost_guesses(candidates: Iterable[Candidate]) -> list[Candidate]:
    """Returns the given formulas among candidates that are invalid, so that nothing was fine-tuned for them."""
    return [c for c in candidates if c.origin == "guess" and c.status == "invalid"]


def ending(state: SearchState, stopped: str) -> str:
    """Says in a sentence why a search ended before its last generation.

    Args:
      state: the last complete state.
      stopped: the reason, as `SearchResult.stopped`; anything else where it is unknown.

    Returns:
      The sentence; empty if all generations are complete.

    Example:
      >>> from types import SimpleNamespace
      >>> ending(SimpleNamespace(config=EvolveConfig(generations=10), generation=1), "time")
      'The time limit ended the search: of 10 generations after the start formulas, 0 are complete.'
    """
    done, asked = state.generation - 1, state.config.generations
    if done >= asked:
        return ""
    search = "random search" if state.config.strategy == "random" else "search"
    endings = {
        "time": f"The time limit ended the {search}",
        "evaluations": f"The limit on fine-tunings ended the {search}",
        "exhausted": f"The {search} ended because it found no new formula",
    }
    first = endings.get(stopped, f"The {search} is not complete")
    return f"{first}: of {asked} generations after the start formulas, {done} {'is' if done == 1 else 'are'} complete."


def start_formulas(state: SearchState) -> list[Individual]:
    """Returns the library functions and own seeds of generation 0, the highest mean fitness first.

    They are ranked by the mean rather than by the mean minus standard error, because l2 has no error by definition
    and would come first too often; verified ones come first.
    """
    start = [individual for individual in state.ranked() if is_start_formula(individual)]
    return sorted(start, key=lambda individual: (not individual.is_verified, -individual.fitness.mean))


def is_start_formula(individual: Individual) -> bool:
    """Whether the individual is a library function or own seed of generation 0."""
    return individual.candidate.origin.startswith(("library:", "seed:"))


def origin_name(individual: Individual) -> str:
    """Returns the name of a library function or own seed; for other candidates their origin."""
    return individual.candidate.origin.split(":")[-1]

"""What a search on landscapes adds at its end: leaders with tuned constants, and a simpler form of the winner.

A search that goes on after it was verified begins by leaving them out again, so that it ends as one that was not
verified in between.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from jaxprune.language.expression import Expression
from jaxprune.search.evaluation import FINALISTS
from jaxprune.search.problem import Behaviour
from jaxprune.search.selection import apart
from jaxprune.search.simplification import simplify, tune_constants
from jaxprune.search.state import Candidate, Individual, SearchState

TUNED, SIMPLIFIED = "tuned", "simplified"
"""Origins of candidates that are added at the end."""

CLEAR_GAIN = 0.02
"""By how much tuning has to improve what is predicted, in units of the fitness."""


def tuned_leaders(state: SearchState) -> tuple[Candidate, ...]:
    """Changes the constants of the leaders that are to be verified on all bases, where landscapes predict a clear gain.

    Args:
      state: a state with landscapes.

    Returns:
      New candidates, with ids that follow those of the state; none whose plans are known.
    """
    new: list[Candidate] = []
    known = {candidate.behaviour.digest for candidate in state.candidates if candidate.behaviour is not None}

    def fitness_of(functions: Sequence[Expression]) -> list[float | None]:
        return [
            state.predicted_fitness(behaviour.predicted).mean if isinstance(behaviour, Behaviour) else None
            for behaviour in state.problem.behaviours(functions)
        ]

    for leader in apart(state.ranked_by_prediction(), state.config, FINALISTS):
        expression = tune_constants(leader.expression, fitness_of, threshold=CLEAR_GAIN)
        if expression != leader.expression:
            candidate = _candidate(state, len(new), expression, TUNED, leader)
            assert candidate.behaviour is not None  # it has a fitness
            if candidate.behaviour.digest not in known:
                known.add(candidate.behaviour.digest)
                new.append(candidate)
    return tuple(new)


def simplified_winner(state: SearchState) -> tuple[Candidate, ...]:
    """Leaves out the parts of the winner without which it makes the same plans on all search bases.

    Args:
      state: a state whose leaders are verified.

    Returns:
      A candidate that shares all results of the winner and costs less; nothing if no part can be left out.
    """
    winner = state.ranked()[0]

    def behaviour_of(functions: Sequence[Expression]) -> list[object]:
        return [
            behaviour.digest if isinstance(behaviour, Behaviour) else behaviour
            for behaviour in state.problem.behaviours(functions)
        ]

    expression = simplify(winner.expression, behaviour_of)
    if expression.complexity >= winner.candidate.complexity:
        return ()
    return (_candidate(state, 0, expression, SIMPLIFIED, winner),)


def without_finish(state: SearchState) -> SearchState:
    """Returns a state as it was before its leaders were verified, but for its archive, which `tell` makes anew.

    The journal still holds what was measured, so that nothing is fine-tuned again.
    """
    candidates = tuple(c for c in state.candidates if c.origin not in (TUNED, SIMPLIFIED))
    return dataclasses.replace(state, candidates=candidates, results={}, evaluations=0, verified_at=None)


def _candidate(
    state: SearchState, number: int, expression: Expression, origin: str, parent: Individual
) -> Candidate:
    """Makes a candidate of a formula that is valid on all bases."""
    (behaviour,) = state.problem.behaviours([expression])
    assert isinstance(behaviour, Behaviour), behaviour
    generation = state.generation - 1
    return Candidate(
        id=len(state.candidates) + number,
        text=str(expression),
        complexity=expression.complexity,
        origin=origin,
        parents=(parent.candidate.id,),
        generation=generation,
        behaviour=behaviour,
        last_evaluated=generation,
    )

"""A search's state as plain JSON data, and back: what `state.json` and the journal's lines hold."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from jaxprune.search.fitness import TaskScale
from jaxprune.search.problem import Behaviour, Problem, TaskInfo
from jaxprune.search.settings import EvolveConfig
from jaxprune.search.state import Candidate, GenerationSummary, Individual, SearchState

Plain = dict[str, Any]
"""What `json.loads` gives for an object."""


def candidate_to_json(candidate: Candidate) -> Plain:
    """The candidate as plain data; its behaviour is spread over `digests`, `fallbacks`, `ties` and `kept`."""
    plain: Plain = {
        "id": candidate.id,
        "text": candidate.text,
        "complexity": candidate.complexity,
        "origin": candidate.origin,
        "parents": list(candidate.parents),
        "generation": candidate.generation,
        "status": candidate.status,
        "reason": candidate.reason,
        "last_evaluated": candidate.last_evaluated,
    }
    if candidate.behaviour is not None:
        behaviour = candidate.behaviour
        plain["behaviour"] = behaviour.digest
        plain["digests"] = {task: list(behaviour.digests[task]) for task in behaviour.digests}
        plain |= {"fallbacks": behaviour.fallbacks, "ties": behaviour.ties, "kept": behaviour.kept}
    return plain


def candidate_from_json(plain: Mapping[str, Any]) -> Candidate:
    """The candidate that `candidate_to_json` wrote."""
    behaviour = None
    if "digests" in plain:
        digests = {task: tuple(found) for task, found in plain["digests"].items()}
        behaviour = Behaviour(digests, plain["fallbacks"], plain["ties"], plain["kept"])
    return Candidate(
        id=plain["id"],
        text=plain["text"],
        complexity=plain["complexity"],
        origin=plain["origin"],
        parents=tuple(plain["parents"]),
        generation=plain["generation"],
        status=plain["status"],
        reason=plain["reason"],
        behaviour=behaviour,
        last_evaluated=plain["last_evaluated"],
    )


def member_to_json(member: Individual) -> Plain:
    """A member of the archive as plain data: formula, fitness, per-task results and where it is from."""
    candidate, fitness = member.candidate, member.fitness
    return {
        "id": candidate.id,
        "text": candidate.text,
        "complexity": candidate.complexity,
        "mean": fitness.mean,
        "se": fitness.se,
        "tasks": {name: dataclasses.asdict(result) for name, result in fitness.tasks.items()},
        "origin": candidate.origin,
        "parents": list(candidate.parents),
        "generation": candidate.generation,
    }


def state_to_json(state: SearchState) -> Plain:
    """The state as plain data: everything but the problem."""
    return {
        "config": state.config.to_json(),
        "tasks": [dataclasses.asdict(task) for task in state.tasks],
        "guesses": list(state.guesses),
        "generation": state.generation,
        "candidates": [candidate_to_json(candidate) for candidate in state.candidates],
        "population": list(state.population),
        "archive": list(state.archive),
        "results": [[*key, accuracy] for key, accuracy in state.results.items()],
        "scales": {name: dataclasses.asdict(scale) for name, scale in state.scales.items()},
        "evaluations": state.evaluations,
        "summaries": [dataclasses.asdict(summary) for summary in state.summaries],
    }


def state_from_json(plain: Mapping[str, Any], problem: Problem) -> SearchState:
    """The state that `state_to_json` wrote, searching on `problem`."""
    return SearchState(
        config=EvolveConfig.from_json(plain["config"]),
        tasks=tuple(TaskInfo(**task) for task in plain["tasks"]),
        problem=problem,
        guesses=tuple(plain["guesses"]),
        generation=plain["generation"],
        candidates=tuple(candidate_from_json(found) for found in plain["candidates"]),
        population=tuple(plain["population"]),
        archive=tuple(plain["archive"]),
        results={
            (task, pool, base, repeat, digest): accuracy
            for task, pool, base, repeat, digest, accuracy in plain["results"]
        },
        scales={name: TaskScale(**scale) for name, scale in plain["scales"].items()},
        evaluations=plain["evaluations"],
        summaries=tuple(GenerationSummary(**found) for found in plain["summaries"]),
    )

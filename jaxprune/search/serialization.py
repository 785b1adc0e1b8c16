"""Turns the state of a search into plain JSON data and back, for `state.json` and the journal."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from jaxprune.search.fitness import TaskScale
from jaxprune.search.problem import BankFacts, Behaviour, Prediction, Problem, TaskInfo
from jaxprune.search.settings import EvolveConfig
from jaxprune.search.state import Candidate, GenerationSummary, Individual, SearchState

JsonObject = dict[str, Any]
"""A JSON object as `json.loads` returns it."""


def candidate_to_json(candidate: Candidate) -> JsonObject:
    """Returns the candidate as plain data, with the fields of its behaviour beside its own."""
    plain: JsonObject = {name: value for name, value in vars(candidate).items() if name != "behaviour"}
    plain["parents"] = list(candidate.parents)
    behaviour = candidate.behaviour
    if behaviour is not None:
        plain["behaviour"] = behaviour.digest
        plain["digests"] = {task: list(digests) for task, digests in behaviour.digests.items()}
        plain |= {"fallbacks": behaviour.fallbacks, "ties": behaviour.ties, "kept": behaviour.kept}
        if behaviour.predicted:
            plain["predicted"] = {
                task: dataclasses.asdict(prediction) for task, prediction in behaviour.predicted.items()
            }
    return plain


def candidate_from_json(plain: Mapping[str, Any]) -> Candidate:
    """Returns the candidate that `candidate_to_json` wrote."""
    behaviour = None
    if "digests" in plain:
        digests = {task: tuple(digests) for task, digests in plain["digests"].items()}
        predicted = {task: Prediction(**values) for task, values in plain.get("predicted", {}).items()}
        behaviour = Behaviour(digests, plain["fallbacks"], plain["ties"], plain["kept"], predicted)
    fields = {
        field.name: plain[field.name] for field in dataclasses.fields(Candidate) if field.name != "behaviour"
    }
    return Candidate(**fields | {"parents": tuple(plain["parents"]), "behaviour": behaviour})


def individual_to_json(individual: Individual) -> JsonObject:
    """Returns an individual of the archive as plain data: formula, fitness, results per task, and how it was made."""
    candidate, fitness = individual.candidate, individual.fitness
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


def state_to_json(state: SearchState) -> JsonObject:
    """Returns the state as plain data, without its problem."""
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
        "banks": {name: dataclasses.asdict(facts) for name, facts in state.banks.items()},
        "verified_at": state.verified_at,
    }


def state_from_json(plain: Mapping[str, Any], problem: Problem) -> SearchState:
    """Returns the state that `state_to_json` wrote.

    Args:
      plain: the plain data.
      problem: the problem that the state searches on.
    """
    return SearchState(
        config=EvolveConfig.from_json(plain["config"]),
        tasks=tuple(TaskInfo(**task) for task in plain["tasks"]),
        problem=problem,
        guesses=tuple(plain["guesses"]),
        generation=plain["generation"],
        candidates=tuple(candidate_from_json(candidate) for candidate in plain["candidates"]),
        population=tuple(plain["population"]),
        archive=tuple(plain["archive"]),
        results={
            (task, pool, base, repeat, digest): accuracy
            for task, pool, base, repeat, digest, accuracy in plain["results"]
        },
        scales={name: TaskScale(**scale) for name, scale in plain["scales"].items()},
        evaluations=plain["evaluations"],
        summaries=tuple(GenerationSummary(**summary) for summary in plain["summaries"]),
        banks={name: BankFacts(**facts) for name, facts in plain.get("banks", {}).items()},
        verified_at=plain.get("verified_at"),
    )

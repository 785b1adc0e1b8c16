"""Why a search ended, and which of the given formulas it left out, is told while it runs and in its report."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from made_up_runs import made_up_finals, searched
from toy_problem import SMALL, ToyProblem

from jaxprune.language.expression import Expression
from jaxprune.language.library import library
from jaxprune.report.result_sections import Run, verdict_section
from jaxprune.report.search_sections import search_section
from jaxprune.report.writing import render_report
from jaxprune.search.callbacks import Callback
from jaxprune.search.problem import Behaviour
from jaxprune.search.search import SearchResult, evolve_problem
from jaxprune.search.state import SearchState, ending
from jaxprune.types import Invalid


class Recorder(Callback):
    """Collects the messages."""

    def __init__(self) -> None:
        self.messages: list[str] = []

    def on_message(self, message: str) -> None:
        self.messages.append(message)


class Partial(ToyProblem):
    """Has no gamma; its other functions have one behaviour each, or all the same."""

    def __init__(self, *, is_dull: bool = False) -> None:
        super().__init__()
        self.is_dull = is_dull

    def behaviours(self, functions: Sequence[Expression]) -> list[Behaviour | Invalid]:
        found = super().behaviours([library["l1"]] * len(functions) if self.is_dull else functions)
        return [
            Invalid("operand gamma is missing") if "gamma" in f.operands else behaviour
            for f, behaviour in zip(functions, found, strict=True)
        ]


def run(run_dir: Path, problem: ToyProblem | None = None, guesses: Sequence[str] = (), **changes: Any) -> tuple[
    SearchResult, list[str]
]:  # fmt: skip
    recorder = Recorder()
    config = (
        SMALL.replace(generations=2, **changes) if "generations" not in changes else SMALL.replace(**changes)
    )
    result = evolve_problem(problem or Partial(), config, run_dir, callbacks=[recorder], guesses=guesses)
    return result, recorder.messages


@pytest.mark.parametrize(
    ("changes", "is_dull", "stopped", "message"),
    [
        ({"time_limit_seconds": 1e-6}, False, "time", "The time limit ended the search: of 2 generations"),
        ({"max_evaluations": 80}, False, "evaluations", "The limit on fine-tunings ended the search: of 2"),
        ({}, True, "exhausted", "The search ended because it found no new formula: of 2"),
        (
            {"max_evaluations": 9999},
            True,
            "exhausted",
            "The search ended because it found no new formula: of 2",
        ),
        ({"time_limit_seconds": 1e-6, "strategy": "random"}, False, "time", "ended the random search: of 2"),
    ],
    ids=["time", "evaluations", "exhausted", "exhausted with room", "random"],
)
def test_an_early_end_is_told_by_its_true_reason(
    tmp_path: Path, changes: dict[str, Any], is_dull: bool, stopped: str, message: str
) -> None:
    result, messages = run(tmp_path, Partial(is_dull=is_dull), **changes)
    assert result.stopped == stopped and message in messages[-1]
    assert messages[-1].endswith("after the start formulas, 0 are complete.")


@pytest.mark.parametrize("generations", [0, 1])
def test_a_complete_search_says_nothing_about_its_end(tmp_path: Path, generations: int) -> None:
    result, messages = run(tmp_path, generations=generations)
    assert result.stopped == "generations" and messages == []


@pytest.mark.parametrize("stopped", ["", "generations", "anything"])
def test_an_unknown_reason_is_not_made_up(stopped: str) -> None:
    state = dataclasses.replace(searched().state, config=SMALL.replace(generations=9))
    assert ending(state, stopped) == (
        "The search is not complete: of 9 generations after the start formulas, 3 are complete."
    )
    assert "3 are complete" in ending(state, "time") and ending(searched().state, stopped) == ""


def run_of(state: SearchState, stopped: str, **changes: Any) -> Run:
    return Run("made-up", state, made_up_finals(searched().state, **changes), stopped, {})


def after_start() -> SearchState:
    """A state after generation 0 of a longer search."""
    state = searched().state
    start = tuple(candidate for candidate in state.candidates if candidate.generation == 0)
    return dataclasses.replace(state, generation=1, candidates=start, summaries=state.summaries[:1])


def test_the_verdict_never_says_that_nothing_better_was_found_before_anything_was_tried() -> None:
    best = after_start().ranked()[0].candidate.id
    text = verdict_section(run_of(after_start(), "time", best_start="winner", winner_id=best))
    assert "nothing better" not in text and "no new formula came out ahead" not in text
    assert (
        "It is the best start formula itself: no new formula was evaluated. The time limit ended the search"
        in text
    )
    asked_none = dataclasses.replace(after_start(), config=SMALL.replace(generations=0))
    text = verdict_section(run_of(asked_none, "generations", best_start="winner", winner_id=best))
    assert "itself: no new formula was evaluated.\n" in text


@pytest.mark.parametrize("best_start", ["winner", "l2", "mean_shift"])
@pytest.mark.parametrize("stopped", ["time", "evaluations", "exhausted", ""])
def test_the_verdict_of_every_search_that_ended_early_says_so(best_start: str, stopped: str) -> None:
    state = dataclasses.replace(searched().state, config=SMALL.replace(generations=9))
    first_line = verdict_section(run_of(state, stopped, best_start=best_start)).splitlines()[0]
    assert first_line.endswith(ending(state, stopped)) and "3 are complete." in first_line
    whole = verdict_section(run_of(searched().state, "generations", best_start=best_start)).splitlines()[0]
    assert "complete" not in whole
    unchecked = dataclasses.replace(run_of(state, stopped), finals=None)
    assert ending(state, stopped) in verdict_section(unchecked)


def test_guesses_that_cannot_be_scored_are_told_with_the_reason(tmp_path: Path) -> None:
    guesses = ["mean(gamma)", "gamma - mean(X)", "sum(WI)*3"]
    result, messages = run(tmp_path, guesses=guesses, generations=1)
    lost = [c for c in result.state.candidates if c.origin == "guess" and c.status == "invalid"]
    told = [message for message in messages if message.startswith("The guess ")]
    assert len(lost) == len(told) >= 2
    for candidate, message in zip(lost, told, strict=True):
        assert (
            message == f"The guess {candidate.text} is left out, because it is invalid: {candidate.reason}."
        )
    assert "operand gamma is missing" in told[0] and not any("sum(WI)" in message for message in told)
    events = (tmp_path / "events.jsonl").read_text()
    assert events.count("is left out, because it is invalid") == len(told)
    text = render_report(tmp_path).read_text()
    assert f"left out:\n\n- `{lost[0].text}`: operand gamma is missing\n" in text
    assert "left out" not in search_section(run_of(searched().state, "generations"))


def test_a_search_without_callbacks_warns_of_lost_guesses(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=re.escape("operand gamma is missing")):
        evolve_problem(Partial(), SMALL.replace(generations=0), tmp_path, guesses=["mean(gamma)"])

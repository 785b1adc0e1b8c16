"""Which functions a final comparison has: controls that a search on landscapes cannot skip."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from cli_tasks import small
from made_up_runs import searched_on_landscapes

from jaxprune.comparison.final_comparison import machines_of
from jaxprune.comparison.final_rows import KNOWN, add_best_known, choose_rows
from jaxprune.language.parsing import parse
from jaxprune.scoring.lookup import FUNCTIONS, find_function
from jaxprune.scoring.metrics import Metric
from jaxprune.search.problem import Prediction
from jaxprune.search.state import start_formulas
from jaxprune.search.task_problem import TaskProblem
from jaxprune.training.batching import Batching
from jaxprune.types import Invalid


@pytest.mark.parametrize(
    ("searched", "unseen"),
    [
        ({"strategy": "vmap", "chunk": 3}, ("vmap", 3, "patches")),
        ({"strategy": "vmap", "convolution": "library"}, ("vmap", 16, "library")),
        ({"chunk": 3}, ("scan", 1, "patches")),
        ({"strategy": "loop"}, ("loop", 1, "library")),
    ],
)
def test_unseen_tasks_are_batched_as_those_that_are_searched_on(searched, unseen):
    problem = TaskProblem([small()], **searched)
    machines = machines_of(problem, [small().replace(name="other")])
    assert machines["other"].batching == unseen == machines["small"].batching


def test_unseen_tasks_take_the_chunk_that_a_search_measured():
    problem = TaskProblem([small()])
    problem.programs["small"].settle(Batching("vmap", 2, "library"))
    assert machines_of(problem, [small().replace(name="other")])["other"].batching == ("vmap", 2, "library")


class Predicting:
    """Predicts the better the later a function stands in a list; others are invalid on some base."""

    def __init__(self, names):
        self.functions = [find_function(name) for name in names]
        self.num_plans = []

    def fit_landscapes(self, num_plans):
        self.num_plans.append(num_plans)

    def predict(self, functions):
        return [
            {task: Prediction(self.functions.index(f), 0.0, 80.0) for task in ("digits", "fashion")}
            if f in self.functions
            else Invalid("a toy reason")
            for f in functions
        ]


def test_known_functions_are_there_whoever_wins():
    state = searched_on_landscapes().state
    rows = choose_rows(state, state.ranked()[0])
    assert set(KNOWN) <= set(rows.known) and "winner" not in rows.known
    assert isinstance(rows.functions["fisher"], Metric) and rows.formulas["fisher"] == "fisher"
    seed = start_formulas(state)[0]
    rows = choose_rows(state, seed)
    assert rows.best_start == "winner" and set(KNOWN) <= set(rows.known)


def test_full_rows_hold_every_known_function():
    state = searched_on_landscapes().state
    rows = choose_rows(state, state.ranked()[0], "full")
    assert set(FUNCTIONS) - {"random"} == set(rows.known)


def test_the_best_known_function_is_the_best_by_prediction():
    state = searched_on_landscapes().state
    rows, problem = choose_rows(state, state.ranked()[0]), Predicting(["l1", "fpgm"])
    assert "fpgm" not in rows.functions
    add_best_known(rows, problem, state)
    assert rows.best_known == "fpgm" and "fpgm" in rows.known
    assert rows.roles["fpgm"] == "best of 2 known functions, by what the landscapes predict"
    assert problem.num_plans == [state.config.plans]


def test_a_winner_that_is_the_best_known_function_has_no_second_row():
    state = searched_on_landscapes().state
    rows = choose_rows(state, state.ranked()[0])
    rows.functions["winner"] = find_function("norm_in_out")
    before = set(rows.functions)
    add_best_known(rows, Predicting(["l1", "norm_in_out"]), state)
    assert rows.best_known == "winner" and set(rows.functions) == before
    assert "best of 2 known functions" in rows.roles["winner"]


def test_a_role_that_a_row_has_already_is_kept():
    state = searched_on_landscapes().state
    rows = choose_rows(state, state.ranked()[0])
    name = next(name for name in rows.roles if name != "winner")
    add_best_known(rows, Predicting([name]), state)
    assert rows.roles[name].endswith(
        "on the search bases, best of 1 known functions, by what the landscapes predict"
    )


@pytest.mark.parametrize("text", ["mean(X)", "std(X)*sum(abs(WO))"])
def test_a_formula_is_a_row_by_its_text(text):
    winner = SimpleNamespace(expression=parse(text))
    rows = choose_rows(searched_on_landscapes().state, winner)
    assert rows.formulas["winner"] == text

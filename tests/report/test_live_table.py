"""The live table: one row per generation in a terminal, one plain line anywhere else."""

from __future__ import annotations

import dataclasses
import io
from types import SimpleNamespace

import pytest
from rich.console import Console

from jaxprune.report.live_table import LiveTable
from jaxprune.search.evaluation import TrialRecord
from jaxprune.search.settings import EvolveConfig
from jaxprune.search.state import GenerationSummary
from jaxprune.text import duration, shortened

FIRST = GenerationSummary(
    generation=0, num_generations=2, best_id=0, best_mean=0.0, best_se=0.0, best_text="sum(abs(WI[0]))", best_bases=10,
    proposed=20, unique=18, duplicates=1, invalid=1, evaluated=18, evaluated_total=18, fine_tunings=100,
    fine_tunings_total=100, references=0, reevaluations=0, cache_hits=5, archive_size=2, seconds=61.0,
    eta_seconds=122.0,
)  # fmt: skip
LAST = dataclasses.replace(FIRST, generation=2, best_mean=1.5, best_se=0.25, eta_seconds=0.0, seconds=0.5)
TRIAL = TrialRecord(1, 3, "screen", "digits", "search", 0, 0, "ab", 81.25)
STATE = SimpleNamespace(
    config=EvolveConfig(generations=2),
    tasks=(SimpleNamespace(name="digits", bases=4), SimpleNamespace(name="fashion", bases=1)),
    summaries=(),
    generation=0,
)


def written(tell, *, is_live=False, height=40):
    """What a table of 120 columns writes while `tell(table)` runs."""
    file = io.StringIO()
    with LiveTable(Console(file=file, width=120, height=height, force_terminal=is_live)) as table:
        tell(table)
    return file.getvalue()


def test_without_a_terminal_each_generation_is_one_plain_line():
    text = written(
        lambda table: (table.on_start(STATE), table.on_generation(FIRST), table.on_generation(LAST))
    )
    lines = text.splitlines()
    assert len(lines) == 3
    assert "digits (4 bases), fashion (1 base)" in lines[0]
    assert lines[1].startswith(
        "gen   0/2  best +0.00 +- 0.00 sd (n=10)  18 new of 18 unique  18 in all  5 cached  1:01"
    )
    assert lines[1].endswith("left 2:02  sum(abs(WI[0]))")
    assert "+1.50 +- 0.25 sd" in lines[2] and "left" not in lines[2]
    assert "\x1b" not in text


def test_rows_of_networks_have_an_idle_share():
    used = dataclasses.replace(FIRST, row_seconds=8.0, idle_seconds=1.0)
    assert "5 cached  12% idle  1:01" in written(lambda table: table.on_generation(used))
    assert "12%" in written(lambda table: table.on_generation(used), is_live=True)
    assert "idle" not in written(lambda table: table.on_generation(FIRST), is_live=True)


def test_in_a_terminal_the_table_is_redrawn_and_says_what_goes_on():
    def tell(table):
        table.on_start(STATE)
        table.on_generation(FIRST)
        table.on_evaluation(TRIAL)
        table.on_evaluation(dataclasses.replace(TRIAL, is_cached=True))
        table._live.refresh()

    text = written(tell, is_live=True)
    assert "\x1b" in text and "new/unique" in text and "sum(abs(WI[0]))" in text
    assert "1 fine-tuning, 1 cached; screen on digits, base 0: 81.2 %" in text


def test_a_small_terminal_shows_the_last_rows_and_the_end_shows_all():
    rows = [dataclasses.replace(FIRST, generation=number, num_generations=30) for number in range(30)]
    table = LiveTable(Console(file=io.StringIO(), width=120, height=12, force_terminal=True))
    with table:
        for row in rows:
            table.on_generation(row)
        during = Console(file=io.StringIO(), width=120, record=True)
        during.print(table)
    after = Console(file=io.StringIO(), width=120, record=True)
    after.print(table)
    during, after = during.export_text(), after.export_text()
    assert "29/30" in during and "20/30" not in during
    assert "29/30" in after and " 0/30" in after


def test_a_resumed_run_shows_the_generations_behind_it():
    state = SimpleNamespace(**{**vars(STATE), "summaries": (FIRST,), "generation": 1})
    assert "Going on after generation 0 of 2." in written(lambda table: table.on_start(state))


@pytest.mark.parametrize("kind", ["geometric", "arithmetic"])
def test_means_of_accuracies_are_in_percent(kind):
    state = SimpleNamespace(**{**vars(STATE), "config": EvolveConfig(joint=kind)})
    text = written(lambda table: (table.on_start(state), table.on_generation(FIRST)))
    assert f"{kind} mean of accuracies (%)" in text and "+0.00 +- 0.00 %" in text


@pytest.mark.parametrize("fitness", ["landscape", "finetune"])
def test_predicted_fitness_is_called_so(fitness):
    state = SimpleNamespace(**{**vars(STATE), "config": EvolveConfig(fitness=fitness)})
    text = written(lambda table: table.on_start(state))
    assert ("fitness: predicted difference to l2" in text) == (fitness == "landscape")


@pytest.mark.parametrize("is_live", [False, True])
def test_messages_and_base_networks_are_shown(is_live):
    def tell(table):
        table.on_message("a line [was] repaired")
        table.on_base("digits", SimpleNamespace(index=2, accuracy=94.25))
        if is_live:
            table._live.refresh()

    text = written(tell, is_live=is_live)
    assert "a line [was] repaired" in text and "94.2 %" in text


def test_status_is_a_line_of_its_own_without_a_terminal():
    assert written(lambda table: table.on_status("comparing")) == "comparing\n"


def test_closing_twice_does_nothing():
    table = LiveTable(Console(file=io.StringIO(), force_terminal=True))
    with table:
        pass
    table.close()


def test_a_search_tells_it_everything(tmp_path):
    from toy_problem import SMALL, ToyProblem

    from jaxprune.search.search import evolve_problem

    text = written(
        lambda table: evolve_problem(ToyProblem(), SMALL.replace(generations=1), tmp_path, callbacks=[table])
    )
    assert "gen   0/1" in text and "gen   1/1" in text


def test_times_and_formulas_are_short():
    assert [duration(seconds) for seconds in (0.04, 9.9, 59.4, 59.6, 3599.7)] == [
        "0.0 s", "9.9 s", "59 s", "1:00", "1:00:00",
    ]  # fmt: skip
    assert shortened("mean(X)", 7) == "mean(X)" and shortened("mean(X)", 4) == "mea…"

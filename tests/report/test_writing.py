"""Reports: the verdict follows from the numbers, whatever they are, and everything can be written again from files."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from made_up_runs import LEVELS, compared, layers, made_up_finals, searched

from jaxprune.comparison.final_rows import choose_rows
from jaxprune.comparison.finals import load_finals
from jaxprune.comparison.verdicts import Verdict, judged, overall_verdict, task_verdict
from jaxprune.datasets.guarded_split import GuardedSplit, Split
from jaxprune.files import RunDirectoryError
from jaxprune.language.library import library, own_seeds
from jaxprune.report.result_sections import Run, optimism_section, results_section, verdict_section
from jaxprune.report.search_sections import search_section
from jaxprune.report.winner_sections import formula_section
from jaxprune.report.writing import render_report, write_report
from jaxprune.search.fitness import TaskScale
from jaxprune.search.problem import TaskInfo
from jaxprune.search.settings import EvolveConfig
from jaxprune.search.state import start_formulas
from jaxprune.tasks.tasks import Schedule, Task
from jaxprune.training.recipes import RECIPES


def run_of(comparison=None, **changes):
    """A made-up run with its final comparison."""
    state = searched().state
    finals = made_up_finals(state, comparison, **changes)
    return Run("made-up", state, finals, "generations", {"digits": ("2026-01-01T00:00:00+00:00",)})


# Verdicts


@pytest.mark.parametrize(
    ("mean", "se", "bases", "judgement"),
    [
        (2.4, 1.0, 8, "better than"),
        (2.3, 1.0, 8, "not distinguishable from"),  # 2.36 standard errors with 8 bases
        (2.7, 1.0, 5, "not distinguishable from"),  # 2.78 with 5
        (-2.8, 1.0, 5, "worse than"),
        (12.0, 1.0, 2, "not distinguishable from"),  # 12.7 with 2
        (0.0, 0.0, 8, "not distinguishable from"),
        (9.0, None, 1, "not distinguishable from"),
    ],
)
def test_a_difference_counts_when_its_interval_leaves_out_zero(mean, se, bases, judgement):
    assert judged(mean, se, bases - 1) == judgement


def test_the_overall_verdict_knows_how_few_bases_are_behind_it():
    scales = {"a": TaskScale(1.0, 1.0, 80.0)}
    few = overall_verdict({"a": Verdict(2.5, 1.0, 5, "not distinguishable from")}, [TaskInfo("a")], scales)
    many = overall_verdict({"a": Verdict(2.5, 1.0, 9, "better than")}, [TaskInfo("a")], scales)
    assert few is not None and few.judgement == "not distinguishable from"
    assert many is not None and many.judgement == "better than"


def test_task_verdict_by_hand():
    comparison = compared({"l2": 80.0, "winner": 83.0}, tasks={"t": 2}, spread=0.0)
    assert task_verdict(comparison, "t", "winner", "l2") == Verdict(3.0, 0.0, 2, "better than")


def test_task_verdict_on_test_images_needs_them():
    comparison = compared({"l2": 80.0, "winner": 83.0}, tasks={"t": 2}, has_test=False)
    assert task_verdict(comparison, "t", "winner", "l2", on="test") is None


def test_an_invalid_winner_has_an_invalid_verdict():
    comparison = compared(refused={"winner": "digits"})
    verdict = task_verdict(comparison, "digits", "winner", "l2")
    assert verdict is not None and verdict.judgement == "invalid beside" and str(verdict) == "invalid"
    assert task_verdict(comparison, "digits", "l2", "winner") is None


def test_the_overall_verdict_is_a_weighted_mean_in_standard_deviations():
    scales = {"a": TaskScale(2.0, 1.0, 80.0), "b": TaskScale(1.0, 1.0, 80.0)}
    verdicts = {"a": Verdict(4.0, 0.4, 8, "better than"), "b": Verdict(1.0, 0.2, 5, "better than")}
    overall = overall_verdict(verdicts, [TaskInfo("a", weight=3.0), TaskInfo("b")], scales)
    assert overall is not None
    assert overall.mean == pytest.approx(0.75 * 2 + 0.25 * 1)
    assert overall.se == pytest.approx(math.hypot(0.75 * 0.2, 0.25 * 0.2))
    assert (overall.n, overall.judgement) == (13, "better than")


def test_without_a_verdict_on_every_task_there_is_none_overall():
    scales = {"a": TaskScale(2.0, 1.0, 80.0), "b": TaskScale(1.0, 1.0, 80.0)}
    tasks = [TaskInfo("a"), TaskInfo("b")]
    good = Verdict(4.0, 0.4, 8, "better than")
    assert overall_verdict({"a": good, "b": None}, tasks, scales) is None
    one_base = overall_verdict({"a": good, "b": Verdict(9.0, None, 1, judged(9.0, None, 0))}, tasks, scales)
    assert one_base is not None and one_base.se is None and one_base.judgement == "not distinguishable from"


# Who is compared


def test_standard_rows_are_winner_l1_l2_and_the_best_of_what_the_search_started_from():
    result = searched()
    rows = choose_rows(result.state, result.best)
    assert {"winner", "l1", "l2"} <= set(rows.functions) and len(rows.functions) <= 5
    started = [member for member in result.state.ranked() if member.candidate.generation == 0]
    best = max(started, key=lambda member: member.fitness.mean)
    assert rows.functions[rows.best_start] is best.expression
    assert rows.functions["winner"] is result.best.expression


def test_full_rows_hold_every_library_function_and_own_seed_once():
    result = searched()
    rows = choose_rows(result.state, result.best, "full")
    assert set(rows.functions) - {"winner"} == {*library, *own_seeds}


def test_a_winner_from_the_start_is_no_second_row():
    state = searched().state
    seed = start_formulas(state)[0]
    rows = choose_rows(state, seed, "full")
    assert rows.best_start == "winner" and "itself" in rows.roles["winner"]
    assert sum(f is seed.expression for name, f in rows.functions.items() if name != "l2") == 1


def test_other_controls_are_refused():
    result = searched()
    with pytest.raises(ValueError, match=r"controls needs to be \"standard\" or \"full\", got 'some'"):
        choose_rows(result.state, result.best, "some")


# Sections


def test_the_verdict_comes_first_and_says_better():
    text = verdict_section(run_of(compared(spread=0.1)))
    assert text.startswith("> **Verdict.** The winner is **better than** l2 (+")
    assert "**better than** the best start formula `mean_shift`" in text
    assert "7 base networks (4 + 3) that the search never saw" in text
    assert "> - digits: **better than** `l2`" in text and "> - on test images" in text


@pytest.mark.parametrize(
    ("level", "spread", "words"), [(80.0, 0.1, "worse than"), (86.0, 3.0, "not distinguishable from")]
)
def test_the_verdict_says_no_when_it_is_no(level, spread, words):
    text = verdict_section(run_of(compared({**LEVELS, "winner": level}, spread=spread)))
    assert f"The winner is **{words}** l2" in text


def test_the_verdict_of_one_base_says_that_it_cannot_tell():
    text = verdict_section(run_of(compared(tasks={"digits": 1, "fashion": 1})))
    assert "2 base networks (1 + 1)" in text
    assert "**not distinguishable from** l2" in text and "one base cannot tell" in text


def test_an_invalid_winner_is_called_invalid():
    run = run_of(compared(refused={"winner": "digits"}))
    assert "**invalid** on some final base, so it cannot replace l2" in verdict_section(run)
    assert "`winner` is invalid: base 0: 0/0" in results_section(run)
    assert "invalid" in optimism_section(run)


def test_an_invalid_start_formula_is_not_compared_with():
    text = verdict_section(run_of(compared(refused={"mean_shift": "digits"})))
    assert "not comparable with the best start formula `mean_shift`, which is invalid" in text


def test_a_winner_from_the_start_is_no_discovery():
    text = verdict_section(run_of(compared(), best_start="winner"))
    assert "It is the best start formula itself: the search found nothing better." in text


def test_the_verdict_on_one_task_is_in_points():
    run = run_of(compared(tasks={"digits": 4}, spread=0.0))
    run = dataclasses.replace(run, state=dataclasses.replace(run.state, tasks=run.state.tasks[:1]))
    text = verdict_section(run)
    assert "**better than** l2 (+4.00 ± 0.00 points)" in text and "all tasks" not in text
    assert "> - on test images: **better than** `l2` (+4.00 ± 0.00 points)" in text
    assert "all tasks" not in results_section(run) + optimism_section(run)


def test_l2_may_be_the_best_start_formula():
    text = verdict_section(run_of(compared(spread=0.1), best_start="l2"))
    assert (
        "**better than** l2, the best start formula (+" in text
        and "`mean_shift`" not in text.split("\n\n")[0]
    )


def test_without_a_final_comparison_there_is_no_verdict():
    run = dataclasses.replace(run_of(), finals=None)
    text = verdict_section(run)
    assert "**Verdict: none yet.**" in text and run.winner.candidate.text in text


def test_results_have_n_bases_differences_and_test_accuracies():
    text = results_section(run_of(compared(spread=0.0)))
    assert "| **winner** | 4 | 91.5 ± 0.6 | +4.0 ± 0.0 | 4/0/0 | 90.5 | +4.0 ± 0.0 | 9 |" in text
    assert "opened once, at 2026-01-01T00:00:00+00:00" in text
    assert "mean_shift (best own seed on the search bases): `sum(square(mP - mX))`" in text
    assert "mean over 3 random plans per base" in text


def test_results_say_how_often_test_images_were_opened():
    run = run_of()
    assert "No test images were opened." in results_section(dataclasses.replace(run, openings={}))
    twice = dataclasses.replace(run, openings={"digits": ("2026-01-01", "2026-01-02")})
    assert "opened 2 times (an interrupted or repeated report), each on record" in results_section(twice)


def test_results_without_test_images_have_no_such_columns():
    text = results_section(run_of(compared(has_test=False)))
    assert (
        "| function | n bases | validation % ± SE | difference to l2 ± SE | wins/ties/losses | complexity |"
        in text
    )


def test_a_random_search_of_equal_budget_is_reported():
    control = {"evaluations": 100, "candidates": 20, "origin": "random", "mean": 1.0, "se": 0.5}
    comparison = compared({**LEVELS, "random search": 89.5}, spread=0.1)
    text = results_section(run_of(comparison, random_search=control))
    assert "ran 100 fine-tunings for 20 candidates" in text and "the winner is **better than** it" in text


def test_optimism_is_the_search_value_minus_the_final_one():
    run = run_of(compared(spread=0.0))
    searched_value = run.winner.fitness.tasks["digits"].difference
    row = next(line for line in optimism_section(run).splitlines() if line.startswith("| digits"))
    assert row.split("|")[3].strip() == "+4.00 (n = 4)"
    assert float(row.split("|")[4]) == pytest.approx(searched_value - 4.0, abs=0.006)


def test_the_formula_is_shown_as_latex_code_and_with_its_ancestors():
    run = run_of()
    text = formula_section(run)
    assert run.winner.expression.latex() in text and "def pruning_function(" in text
    for parent in run.winner.candidate.parents:
        assert f"`{run.state.candidates[parent].text}`" in text


def test_the_search_is_counted():
    text = search_section(run_of())
    state = searched().state
    assert f"| fine-tunings run | {state.evaluations}, " in text
    assert "3 of 3, ended by: generations" in text and "in points: " in text
    assert "idle" not in text


def test_the_idle_share_of_rows_is_weighted_by_their_time():
    run = run_of()
    first, *others = run.state.summaries
    used = (
        dataclasses.replace(first, row_seconds=6.0, idle_seconds=0.0),
        dataclasses.replace(others[0], row_seconds=2.0, idle_seconds=1.0),
        *others[1:],
    )
    text = search_section(dataclasses.replace(run, state=dataclasses.replace(run.state, summaries=used)))
    assert "| idle share of devices (copies that fill rows of networks) | 12% |" in text


# Files


@pytest.fixture
def run_dir(tmp_path):
    """A run directory with a made-up final comparison."""
    shutil.copytree(searched().journal.parent, tmp_path / "run")
    finals = made_up_finals(searched().state)
    (tmp_path / "run" / "final.json").write_text(finals.to_json())
    return tmp_path / "run"


def test_finals_come_back_from_their_file(run_dir):
    assert load_finals(run_dir) == made_up_finals(searched().state)
    assert load_finals(run_dir.parent) is None


def test_a_report_is_rendered_from_files(run_dir):
    path = render_report(run_dir)
    text = path.read_text()
    assert path == run_dir / "report.md" and text.index("**Verdict.**") < 100
    figures = re.findall(r"\]\((figures/[^)]+)\)", text)
    assert len(figures) == len(set(figures)) >= 7
    assert {path.name for path in (run_dir / "figures").iterdir()} == {name.split("/")[1] for name in figures}
    again = text, {name: (run_dir / name).read_bytes() for name in figures}
    assert render_report(run_dir).read_text() == again[0]
    assert {name: (run_dir / name).read_bytes() for name in figures} == again[1]


def test_a_report_without_a_final_comparison_says_so(run_dir):
    (run_dir / "final.json").unlink()
    assert "Verdict: none yet." in render_report(run_dir).read_text()
    assert not (run_dir / "figures" / "ranks.png").exists()


def test_a_report_needs_a_run(tmp_path):
    with pytest.raises(RunDirectoryError, match="needs a run with at least one complete generation"):
        render_report(tmp_path)


def edit_finals(run_dir, edit):
    """Edits final.json as a version without checksums would have written it."""
    plain = json.loads((run_dir / "final.json").read_text())
    del plain["check"]
    edit(plain)
    (run_dir / "final.json").write_text(json.dumps(plain))


def test_newer_finals_are_refused(run_dir):
    edit_finals(run_dir, lambda plain: plain.update(format=99))
    with pytest.raises(RunDirectoryError, match=r"final\.json needs format 1 or older, got 99, of a newer"):
        load_finals(run_dir)


def test_damaged_finals_are_refused(run_dir):
    edit_finals(run_dir, lambda plain: plain.pop("views"))
    with pytest.raises(
        RunDirectoryError, match=r"final\.json needs .* it is damaged \(KeyError\('views'\)\)\. Delete it"
    ):
        load_finals(run_dir)


# The whole


def tiny_task(name):
    """A task that is fine-tuned in a blink."""
    from jaxprune.nets import PlainConvNet

    rng = np.random.default_rng(0)
    y = np.arange(60) % 2
    x = rng.normal(size=(60, 4, 4, 1)).astype(np.float32) + y[:, None, None, None]
    recipe = RECIPES["adam_short"].replace(epochs=1, batch_size=20)
    return Task(
        name, model=lambda rngs: PlainConvNet(rngs, widths=(4, 4, 4), num_classes=2, image_shape=(4, 4, 1)),
        train=(x, y), validation=(x, y), test=GuardedSplit(name, Split(x, y.astype(np.int32))),
        schedule=Schedule(kept_fraction=0.5), recipe=recipe, base_recipe=recipe, bases=2, extra_bases=0, final_bases=2,
    )  # fmt: skip


@pytest.mark.parametrize("controls", ["standard", pytest.param("full", marks=pytest.mark.slow)])
def test_a_report_is_written_at_the_end_of_a_real_search(tmp_path, controls):
    from jaxprune.search.search import evolve_problem, make_problem

    config = EvolveConfig(generations=1, population=3, fitness="finetune", proposals_per_slot=3)
    problem = make_problem([tiny_task("tiny")], config, tmp_path)
    result = evolve_problem(problem, config, tmp_path)
    messages = []
    listener = SimpleNamespace(
        on_message=messages.append, on_status=messages.append, on_base=lambda *base: messages.append(base)
    )
    text = write_report(tmp_path, problem, result, controls=controls, callbacks=[listener]).read_text()
    assert "**Verdict.**" in text and "on 2 base networks that the search never saw" in text
    assert any("Final comparison of" in str(message) for message in messages)
    assert any("networks fine-tuned" in str(message) for message in messages)
    record = json.loads((tmp_path / "test-tiny.json").read_text())
    assert len(record["opened"]) == 1 and record["opened"][0] in text
    finals = load_finals(tmp_path)
    assert (
        finals is not None and len(finals.comparison.of("winner", "tiny")[0].curve) == 3
    )  # as many as there are steps
    assert (
        ("random search" in finals.formulas) == (controls == "full") == (tmp_path / "random-search").exists()
    )

    messages.clear()
    assert (
        write_report(tmp_path, problem, result, controls=controls, callbacks=[listener]).read_text() == text
    )
    assert messages == ["The final comparison is stored already; only the report is written again."]
    assert render_report(tmp_path).read_text() == text
    assert len(layers()) == 2


@pytest.mark.parametrize("controls", ["standard", pytest.param("full", marks=pytest.mark.slow)])
def test_a_report_after_a_search_on_landscapes_has_its_controls_and_unseen_tasks(tmp_path, controls):
    from jaxprune.search.search import evolve_problem, make_problem

    config = EvolveConfig(generations=1, population=3, plans=10, leaders=2, seeds="paper", force=True)
    problem = make_problem([tiny_task("tiny")], config, tmp_path)
    result = evolve_problem(problem, config, tmp_path)
    unseen = [tiny_task("other")]
    text = write_report(tmp_path, problem, result, unseen=unseen, controls=controls).read_text()
    finals = load_finals(tmp_path)
    assert finals is not None and finals.unseen == ("other",) and finals.searched == ("tiny",)
    assert {"winner", "random search", "l1", "fisher", finals.best_known} <= set(finals.formulas)
    assert finals.random_search is not None and finals.random_search["generations"] == 1
    assert {row.name for row in finals.comparison.measurements if row.task == "other"} >= {
        "winner",
        "scratch",
    }
    assert set(finals.soundness) == set(finals.views) == {"tiny", "other"}
    oracles = {row.task for row in finals.comparison.measurements if row.name == "oracle"}
    assert oracles == ({"tiny"} if controls == "full" else set())
    for name in ("tiny", "other"):
        record = json.loads((tmp_path / f"test-{name}.json").read_text())
        assert len(record["opened"]) == 1 and record["opened"][0] in text
    for heading in ("What the search added", "What each part is worth", "The landscapes", "Optimism"):
        assert f"# {heading}" in text

    told = []
    again = SimpleNamespace(on_message=told.append)
    write_report(tmp_path, problem, result, unseen=unseen, controls=controls, callbacks=[again])
    assert told == ["The final comparison is stored already; only the report is written again."]
    assert render_report(tmp_path).read_text() == text
    with pytest.raises(ValueError, match="tasks need different names, got tiny, tiny"):
        write_report(tmp_path, problem, result, unseen=[tiny_task("tiny")], controls=controls)

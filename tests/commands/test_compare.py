"""`jaxprune compare` and `calibrate` write tables and figures, and explain what cannot be compared."""

from __future__ import annotations

import csv
import json
import os
import signal
from types import SimpleNamespace

import pytest
from made_up_runs import searched_on_landscapes
from toy_problem import LANDSCAPE, ToyLandscapeProblem

from jaxprune.cli import main
from jaxprune.commands.comparison_options import functions_named, split_formulas
from jaxprune.comparison.functions import Frozen, frozen_function, winner_of
from jaxprune.interrupts import SearchInterrupted
from jaxprune.language.library import library, own_seeds
from jaxprune.search.search import evolve_problem
from jaxprune.tasks.batching_speed import Timing
from jaxprune.text import columns
from jaxprune.training.batching import Batching

TASK = ["--task", "cli_tasks:small"]


def test_compare_writes_a_table_measurements_and_a_diagram(bases_dir, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    more = ["--bases", "2", "--out", str(tmp_path), "--bases-dir", str(bases_dir)]
    assert main(["compare", *TASK, "--metrics", "l1,l2,random,mean(X) + 1,bn_scale", *more]) == 0
    shown = capsys.readouterr().out
    assert "2 final bases" in shown and "mean(X) + 1" in shown and "difference to l2" in shown
    assert (tmp_path / "comparison.md").read_text() in shown + "\n"
    rows = list(csv.DictReader((tmp_path / "comparison.csv").open()))
    assert {row["name"] for row in rows} == {"l1", "l2", "random", "scratch", "mean(X) + 1"}
    assert (tmp_path / "ranks.png").read_bytes().startswith(b"\x89PNG")


def test_compare_takes_a_frozen_formula(bases_dir, tmp_path, capsys):
    more = [
        *"--bases 2 --draws 1 --no-scratch".split(),
        "--out",
        str(tmp_path),
        "--bases-dir",
        str(bases_dir),
    ]
    assert main(["compare", *TASK, "--function", "mean(X)*2", *more]) == 0
    shown = capsys.readouterr()
    assert "frozen formula: mean(X)*2" in shown.err and "| frozen" in shown.out and "scratch" not in shown.out


def test_compare_takes_the_winner_of_a_run(bases_dir, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        "jaxprune.comparison.functions.winner_of", lambda run_dir: Frozen(library["l1"], (TASK[1],), False)
    )
    more = [
        *"--bases 1 --draws 0 --no-scratch".split(),
        "--out",
        str(tmp_path / "out"),
        "--bases-dir",
        str(bases_dir),
    ]
    assert main(["compare", *TASK, "--function", str(tmp_path), "--metrics", "l2", *more]) == 0
    shown = capsys.readouterr()
    assert "frozen formula: sum(abs(WI))" in shown.err and "there this is no transfer" in shown.err
    assert "note: the run ended before its leaders were verified" in shown.err
    assert "| frozen" in shown.out and "| l1 " not in shown.out


def test_the_winner_of_a_run_on_landscapes_is_the_verified_one():
    result = searched_on_landscapes()
    frozen = frozen_function(str(result.journal.parent))
    assert frozen == Frozen(result.best.expression, ("digits", "fashion"), True)
    assert result.best.candidate.id != result.state.ranked_by_prediction()[0].candidate.id


def test_a_winner_that_was_not_verified_is_said_to_be_predicted(tmp_path):
    def stop(record):
        if record.purpose == "verify":
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(SearchInterrupted):
        evolve_problem(
            ToyLandscapeProblem(), LANDSCAPE, tmp_path, callbacks=[SimpleNamespace(on_evaluation=stop)]
        )
    frozen = winner_of(tmp_path)
    assert frozen.function == searched_on_landscapes().state.ranked_by_prediction()[0].expression
    assert not frozen.is_verified


def test_calibrate_writes_tables_and_a_figure(bases_dir, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    more = "--bases 4 --repeats 1 --draws 1 --oracle 8 --plans 10".split()
    assert main(["calibrate", *TASK, *more, "--out", str(tmp_path), "--bases-dir", str(bases_dir)]) == 0
    shown = capsys.readouterr().out
    assert "oracle" in shown and "rank correlation: landscape on half of the 4 bases" in shown
    assert json.loads((tmp_path / "calibration-small.json").read_text())["search_bases"] == 2
    assert (tmp_path / "calibration-small.md").exists()
    assert (tmp_path / "calibration-small.png").read_bytes().startswith(b"\x89PNG")


def test_calibrate_says_how_networks_are_best_batched(tmp_path, capsys, monkeypatch):
    def time_all(programs):
        yield Timing(Batching("scan", 1, "patches"), 2, 0.04, 3.0)
        yield Timing(Batching("vmap", 8, "library"), 8, 0.12, 5.0)

    monkeypatch.setattr("jaxprune.tasks.batching_speed.time_all", time_all)
    command = ["calibrate", "--batching", *TASK, "--out", str(tmp_path)]
    assert main(command) == 0
    shown = capsys.readouterr().out
    assert "| vmap | 8 | library | 8 | 15.0 (fastest) | 0.120 | 5.0 |" in shown
    assert "Fastest for `jaxprune evolve`: `--batching vmap --chunk 8 --convolution library`." in shown
    assert (tmp_path / "batching-small.md").read_text() == shown
    plain = json.loads((tmp_path / "batching-small.json").read_text())
    assert plain["fastest"] == {"strategy": "vmap", "chunk": 8, "convolution": "library"}
    assert [timing["seconds"] for timing in plain["timings"]] == [0.04, 0.12]
    assert main(command) == 2 and "batching-small.json" in capsys.readouterr().err
    assert main([*command, "--overwrite"]) == 0


def test_without_matplotlib_there_is_a_note_instead_of_a_figure(bases_dir, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    more = [
        *"--bases 1 --draws 0 --no-scratch".split(),
        "--out",
        str(tmp_path),
        "--bases-dir",
        str(bases_dir),
    ]
    assert main(["compare", *TASK, "--metrics", "l1", *more]) == 0
    assert 'Run pip install "jaxprune[report]" for it.' in capsys.readouterr().err
    assert (tmp_path / "comparison.csv").exists() and not (tmp_path / "ranks.png").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["compare", "--task", "digit"], "Did you mean 'digits'?"),
        (["compare", *TASK, "--metrics", "l1,l22"], "Did you mean 'l2'"),
        (["compare", *TASK, "--metrics", "l1,sum(abs(WI)"], "'(' was never closed"),
        (["compare", *TASK, "--metrics", "mX"], "a pruning function needs one number per channel"),
        (["compare", *TASK, "--metrics", " , "], "--metrics needs names or formulas separated by commas"),
        (["compare", *TASK, "--bases", "0"], "a comparison needs bases >= 1 (got 0)."),
        (["compare", *TASK, "--draws", "-1"], "a comparison needs draws >= 0 (got -1)."),
        (["compare", *TASK, *TASK], "tasks need different names, got small, small."),
        (["compare", *TASK, "--kept-fraction", "2"], "kept_fraction must be above 0 and at most 1, got 2.0"),
        (["calibrate", *TASK, "--repeats", "0"], "calibrate needs repeats >= 1 (got 0)."),
        (["calibrate", *TASK, "--oracle", "-1"], "calibrate needs oracle_evaluations >= 0 (got -1)."),
        (["calibrate", *TASK, "--plans", "9"], "or 0 to leave it out, got 9."),
        (
            ["calibrate", *TASK, "--kept-fraction", "0.25", "--rounds", "2"],
            "a bank of plans is for tasks of one round of pruning, got 2 of task 'small'",
        ),
        (["compare", *TASK, "--function", "l1o"], "Did you mean"),
        (["compare", *TASK, "--function", "runs/nowhere"], "There is no run folder of that name either."),
        (
            ["compare", *TASK, "--function", "/"],
            "/ needs a run with at least one complete generation",
        ),
        (["compare", "--task", "cli_tasks:one_class"], "class"),
        (["compare", "--task", "cli_tasks:infinite"], "NaN or infini"),
        (["compare", "--task", "cli_tasks:mislabelled"], "59"),
        (["compare", "--task", "cli_tasks:keeps_none"], "got first.kernel: 0 of 8"),
    ],
)
def test_what_cannot_be_compared_is_explained(arguments, message, tmp_path, capsys):
    assert main([*arguments, "--out", str(tmp_path / "out"), "--bases-dir", str(tmp_path / "bases")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists() and not (tmp_path / "bases").exists()


def test_all_is_the_library_and_our_seeds():
    assert set(functions_named(["all", "mean(X) + 1"])) == {*library, *own_seeds, "mean(X) + 1"}


def test_formulas_are_split_at_outer_commas_only():
    assert split_formulas("l1,,rbf(P, Q, 1) , slice(mX, 0, 4),") == ["l1", "rbf(P, Q, 1)", "slice(mX, 0, 4)"]


def test_columns_align_numbers_right():
    assert columns([("name", "n"), ("a", 5), ("b", 10)]) == "name   n\na      5\nb     10"
    assert columns([]) == ""

"""`jaxprune evolve` and `report`: settings reach the search, runs go on, and every bad directory is explained."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import sys
import time
from pathlib import Path

import cli_tasks
import pytest

from jaxprune.cli import main
from jaxprune.commands.evolve import default_run_dir, evolve_config
from jaxprune.config import RunConfig
from jaxprune.interrupts import SearchInterrupted
from jaxprune.search.run_directory import RunDirectory
from jaxprune.search.settings import PRESETS

SMALL = "--generations 2 --population 4 --plans 20 --leaders 4 --no-report".split()
FINETUNE = "--fitness finetune --proposals-per-slot 3".split()


@pytest.fixture
def toy(monkeypatch):
    """Makes searches take milliseconds: every task becomes a made-up one."""
    from toy_problem import ToyLandscapeProblem

    from jaxprune.search.problem import TaskInfo

    def make_problem(tasks, config, run_dir, **_):
        return ToyLandscapeProblem(
            [TaskInfo(task.name, bases=task.bases, fingerprint="toy") for task in tasks]
        )

    monkeypatch.setattr("jaxprune.search.search.make_problem", make_problem)


def evolve(run_dir: Path, *more: str) -> int:
    return main(["evolve", "--task", "digits", "--run-dir", str(run_dir), *SMALL, *more])


def lines_without_times(run_dir: Path) -> list[dict]:
    from jaxprune.search.journal import read_journal, without_times

    return [without_times(line) for line in read_journal(run_dir / "journal.jsonl")]


def test_settings_reach_the_search_and_its_config(toy, tmp_path, capsys):
    (tmp_path / "run.toml").write_text("seed = 7\npopulation = 9\n[bases]\ndigits = 2\n")
    more = ["--guess", "mean(X) + N", "--config", str(tmp_path / "run.toml")]
    more += [*FINETUNE, *"--time 20m --evaluations 500 --controls full".split()]
    assert evolve(tmp_path / "run", *more) == 0
    plain = json.loads((tmp_path / "run" / "config.json").read_text())
    search = plain["config"]
    assert (search["seed"], search["population"], search["time_limit_seconds"]) == (7, 4, 1200.0)
    assert search["max_evaluations"] == 500
    assert plain["guesses"] == ["mean(X) + N"] and plain["tasks"]["digits"]["bases"] == 2
    assert plain["settings"] == {
        "preset": "quick",
        "tasks": ["digits"],
        "task_options": {"bases": {"digits": 2}},
        "controls": "full",
        "batching": "auto",
        "unseen": list(PRESETS["quick"].unseen),
    }
    shown = capsys.readouterr().out
    assert "Best function: " in shown and "gen   2/2" in shown


def test_a_config_of_a_run_makes_the_same_run(toy, tmp_path):
    assert evolve(tmp_path / "a", "--seed", "3", "--guess", "mean(X) + N") == 0
    again = ["evolve", "--config", str(tmp_path / "a" / "config.json"), "--run-dir", str(tmp_path / "b")]
    assert main([*again, "--no-report"]) == 0
    assert lines_without_times(tmp_path / "a") == lines_without_times(tmp_path / "b")


def test_options_of_landscapes_reach_the_search(toy, tmp_path):
    options = "--fitness landscape --plans 21 --leaders 3 --parsimony 0.5 --joint geometric"
    assert evolve(tmp_path, *options.split()) == 0
    search = json.loads((tmp_path / "config.json").read_text())["config"]
    assert (search["plans"], search["leaders"], search["parsimony"]) == (21, 3, 0.5)
    assert (search["fitness"], search["joint"], search["force"]) == ("landscape", "geometric", False)
    (bank,) = (line for line in lines_without_times(tmp_path) if line["kind"] == "bank")
    assert (bank["task"], bank["plans"]) == ("digits", 21 * 16)


def test_tasks_that_cannot_tell_plans_apart_need_force(toy, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("toy_problem.TOY_CORRELATION", 0.1)
    assert evolve(tmp_path) == 2
    shown = capsys.readouterr().err
    assert "got 0.10 on digits" in shown and "(--force --resume) goes on all the same" in shown
    assert evolve(tmp_path, "--resume") == 2
    assert evolve(tmp_path, "--resume", "--force") == 0
    assert evolve(tmp_path, "--resume") == 0  # with its settings


def test_a_run_of_an_earlier_version_goes_on(toy, tmp_path, capsys):
    from earlier_runs import as_earlier

    assert evolve(tmp_path / "whole", *FINETUNE) == 0
    assert evolve(tmp_path / "run", *FINETUNE, "--generations", "1") == 0
    as_earlier(tmp_path / "run", "paired")
    assert main(["evolve", "--run-dir", str(tmp_path / "run"), "--resume", *SMALL[:2], SMALL[-1]]) == 0
    assert (tmp_path / "run" / "archive.json").read_text() == (
        tmp_path / "whole" / "archive.json"
    ).read_text()


def test_quiet_shows_no_table(toy, tmp_path, capsys):
    assert evolve(tmp_path / "run", "--quiet") == 0
    assert "gen " not in capsys.readouterr().out


def test_quiet_shows_messages_as_plain_sentences(toy, tmp_path, capsys, recwarn):
    guesses = [f"--guess=mean(X)*{number}" for number in range(2, 12)]  # the toy finds some of them invalid
    assert evolve(tmp_path / "run", "--quiet", *guesses) == 0
    told = capsys.readouterr().err
    assert "is left out, because it is invalid: a toy reason." in told
    assert all(re.fullmatch(r"[A-Z].*\.", line) for line in told.splitlines())
    assert "Warning" not in told and not [w for w in recwarn if "guess" in str(w.message)]


@pytest.mark.parametrize("fitness", [FINETUNE, []], ids=["finetune", "landscape"])
def test_resume_needs_no_other_flags_and_may_go_further(toy, tmp_path, fitness):
    assert evolve(tmp_path / "a", "--seed", "3", *fitness) == 0
    resume = ["evolve", "--run-dir", str(tmp_path / "a"), "--resume", "--no-report", "--generations", "4"]
    assert main(resume) == 0
    assert evolve(tmp_path / "b", "--seed", "3", "--generations", "4", *fitness) == 0
    lines = [lines_without_times(tmp_path / name) for name in "ab"]
    for line in (*lines[0], *lines[1]):
        line.pop("num_generations", None)
    # on a landscape the first journal has the verification after generation 2 as well
    kinds = ("candidate", "generation", "trial") if fitness else ("bank", "generation")
    first, second = ([line for line in part if line["kind"] in kinds] for part in lines)
    assert first == second
    for name in ("archive.json", "hall_of_fame.csv"):
        assert (tmp_path / "a" / name).read_text() == (tmp_path / "b" / name).read_text()


def test_a_resume_with_changed_settings_names_them(toy, tmp_path, capsys):
    assert evolve(tmp_path) == 0
    assert (
        main(["evolve", "--run-dir", str(tmp_path), "--resume", "--population", "5", "--controls", "full"])
        == 2
    )
    shown = capsys.readouterr().err
    assert "holds a run with other settings: population was 4 and is now 5" in shown
    assert "settings.controls was 'standard' and is now 'full'" in shown


def test_resume_without_a_directory(capsys):
    assert main(["evolve", "--resume"]) == 2
    assert "--resume needs the directory of the run to go on with, got none. Add --run-dir DIR." in (
        capsys.readouterr().err
    )


def test_a_directory_that_holds_a_run_is_refused(toy, tmp_path, capsys):
    assert evolve(tmp_path) == 0
    assert evolve(tmp_path) == 2
    assert "already holds a run. Go on with it by resume=True (--resume)" in capsys.readouterr().err


def test_a_directory_in_use_is_refused(toy, tmp_path, capsys):
    with RunDirectory(tmp_path):
        assert evolve(tmp_path) == 2
    assert f"is in use by process {os.getpid()} on" in capsys.readouterr().err


def test_a_newer_format_is_refused(toy, tmp_path, capsys):
    assert evolve(tmp_path) == 0
    plain = json.loads((tmp_path / "config.json").read_text())
    for changes in ({}, {"config": plain["config"] | {"mood": "a setting of the future"}}):
        (tmp_path / "config.json").write_text(json.dumps(plain | changes | {"format": 99}))
        assert evolve(tmp_path, "--resume") == 2
        assert "needs format 1 or older, got 99, of a newer jaxprune" in capsys.readouterr().err


def test_a_place_that_cannot_be_a_directory(toy, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert evolve(tmp_path / "file" / "run") == 2
    assert "error: could not create the run directory" in capsys.readouterr().err


def test_a_read_only_disk(toy, tmp_path, monkeypatch, capsys):
    def refused(*_, **__):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "mkdir", refused)
    assert evolve(tmp_path / "run") == 2
    assert "could not create the run directory" in capsys.readouterr().err


def test_a_full_disk_while_saving_loses_nothing(toy, tmp_path, monkeypatch, capsys):
    assert evolve(tmp_path / "whole") == 0
    real, calls = os.fsync, []

    def full(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == 60:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    assert evolve(tmp_path / "run") == 2
    assert "disk is full. Everything up to the last complete line is kept" in capsys.readouterr().err
    monkeypatch.setattr(os, "fsync", real)
    assert evolve(tmp_path / "run", "--resume") == 0
    assert lines_without_times(tmp_path / "run") == lines_without_times(tmp_path / "whole")


def test_a_truncated_journal_is_repaired_and_that_is_said(toy, tmp_path, capsys):
    assert evolve(tmp_path) == 0
    with (tmp_path / "journal.jsonl").open("a") as file:
        file.write('{"kind": "trial", "ta')
    assert evolve(tmp_path, "--resume") == 0
    shown = capsys.readouterr().out
    assert "last line" in shown and "dropped" in shown, shown


def test_a_damaged_state_is_named(toy, tmp_path, capsys):
    assert evolve(tmp_path) == 0
    (tmp_path / "state.json").write_text("{")
    assert evolve(tmp_path, "--resume") == 2
    assert "state.json" in capsys.readouterr().err


@pytest.mark.parametrize(("number", "status"), [(2, 130), (15, 143)])
def test_a_stopped_search_says_how_to_go_on(toy, tmp_path, monkeypatch, capsys, number, status):
    def stopped(*_, **__):
        raise SearchInterrupted("stopped by a signal.", number)

    monkeypatch.setattr("jaxprune.search.search.evolve_problem", stopped)
    assert evolve(tmp_path / "my run") == status
    shown = capsys.readouterr().err
    assert f"Go on with: jaxprune evolve --run-dir '{tmp_path / 'my run'}' --resume" in shown


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "sigterm"])
def test_a_report_that_is_stopped_says_how_to_go_on(toy, tmp_path, monkeypatch, capsys, number):
    pytest.importorskip("matplotlib")

    def stopped(*_, **__):
        os.kill(os.getpid(), number)
        time.sleep(10)

    monkeypatch.setattr("jaxprune.report.writing.write_report", stopped)
    arguments = [argument for argument in SMALL if argument != "--no-report"]
    assert main(["evolve", "--task", "digits", "--run-dir", str(tmp_path), *arguments]) == 128 + number
    assert "stopped in the final comparison. Go on with: jaxprune evolve --run-dir" in capsys.readouterr().err


def test_a_missing_matplotlib_is_told_before_the_search(toy, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(["evolve", "--task", "digits", "--run-dir", str(tmp_path / "run")]) == 2
    assert (
        'Run pip install "jaxprune[report]", or skip the report with --no-report.' in capsys.readouterr().err
    )
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--preset", "quik"],
            "a preset needs to be one of quick, thorough, paper, got 'quik'. Did you mean 'quick'?",
        ),
        (
            ["--preset", "paper", "--data-dir", "nowhere"],
            "To do so, run `jaxprune prepare mnist --data-dir nowhere`.",
        ),
        (["--task", "cli_tasks:small", "--scale", "1.5"], "scale needs to be a share above 0 and at most 1"),
        (["--task", "fashoin"], "Did you mean 'fashion'?"),
        (["--task", "cli_tasks:nothing"], "needs a module on the Python path with a function 'nothing'"),
        (["--task", "cli_tasks:no_task"], "needs to be, or return, a jaxprune Task, got int."),
        (["--task", "digits", "--task", "digits"], "tasks need different names"),
        (["--config", "none.toml"], "--config needs a TOML file, or config.json of a run, got none.toml"),
        (["--guess", "sum(abs(WI)"], "'(' was never closed"),
        (["--guess", "sum(abs(WJ))"], "'WJ'"),
        (["--guess", "mX"], "a guess needs to give one number per channel, got an array from mX."),
        (["--guess", "matmul(WI, mX)"], "matmul needs"),
        (["--guess", "+".join(["N"] * 1001)], "A formula has at most 1000 nodes"),
        (["--population", "1"], "EvolveConfig needs population >= 2 (got 1)."),
        (["--plans", "9"], "EvolveConfig needs plans >= 10 (got 9)."),
        (["--leaders", "0"], "EvolveConfig needs leaders >= 1 (got 0)."),
        (["--parsimony", "nan"], "EvolveConfig needs a finite parsimony (got nan)."),
        (["--evaluations", "100"], 'EvolveConfig needs fitness "finetune" with max_evaluations (got 100)'),
        (
            ["--task", "cli_tasks:small", "--kept-fraction", "0.5", "--rounds", "2"],
            "a bank of plans is for tasks of one round of pruning, got 2 of task 'small'",
        ),
        (["--seed", "-1"], "EvolveConfig needs seed >= 0 (got -1)."),
        (["--kept-fraction", "0"], "kept_fraction must be above 0 and at most 1, got 0.0"),
        (["--kept-fraction", "1.5"], "kept_fraction must be above 0 and at most 1, got 1.5"),
        (
            ["--task", "cli_tasks:keeps_none"],
            "kept counts must be from 1 to the group's width, got first.kernel: 0 of 8",
        ),
        (["--task", "cli_tasks:keeps_too_many"], "got first.kernel: 9 of 8"),
        (["--task", "cli_tasks:mislabelled"], "60"),
        (["--task", "cli_tasks:one_class"], "class"),
        (["--task", "cli_tasks:infinite"], "NaN or infini"),
    ],
)
def test_what_cannot_be_evolved_is_explained(arguments, message, tmp_path, capsys):
    run_dir = tmp_path / "run"
    assert main(["evolve", *arguments, "--run-dir", str(run_dir), "--no-report"]) == 2
    shown = capsys.readouterr().err
    assert message in shown and shown.startswith("jaxprune evolve: error: "), shown
    assert not (run_dir / "journal.jsonl").exists()


FINETUNE_SMALL = (
    "evolve --task cli_tasks:small --fitness finetune --seeds paper --generations 0 --no-report".split()
)


def test_a_run_says_beforehand_what_it_costs(tmp_path, capsys):
    assert main([*FINETUNE_SMALL, "--run-dir", str(tmp_path / "run")]) == 0
    shown = capsys.readouterr().out
    assert "This run costs at most 5.4e+05 FLOP: 2 base networks and 14 fine-tunings of small." in shown
    resume = ["evolve", "--run-dir", str(tmp_path / "run"), "--resume", "--no-report"]
    assert main(resume) == 0
    assert "This run costs" not in capsys.readouterr().out


def test_a_run_of_more_than_a_week_needs_yes(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("jaxprune.comparison.cost_estimate.TIMED_FROM", 0)
    monkeypatch.setattr("jaxprune.comparison.cost_estimate.measured_speed", lambda programs: 0.1)
    command = [*FINETUNE_SMALL, "--run-dir", str(tmp_path / "run")]
    assert main(command) == 2
    shown = capsys.readouterr()
    assert "about 63 days on this machine" in shown.out
    assert (
        "got an estimate of 63 days. Rehearse it on a share of images and epochs (--scale 0.05)" in shown.err
    )
    assert not (tmp_path / "run" / "journal.jsonl").exists()
    assert main([*command, "--yes"]) == 0


def test_a_stopped_run_on_prepared_images_says_where_they_are():
    from jaxprune.commands.evolve import _how_to_resume

    assert _how_to_resume(Path("a b"), Path("my data")) == (
        "Go on with: jaxprune evolve --run-dir 'a b' --data-dir 'my data' --resume"
    )


def test_a_factory_in_the_working_directory_is_found(tmp_path, monkeypatch):
    (tmp_path / "tasks_of_mine.py").write_text("from cli_tasks import small as make\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry not in ("", str(tmp_path))])
    (task,) = RunConfig.of({"task": "tasks_of_mine:make", "bases": 3}).make_tasks()
    assert (task.name, task.bases) == ("small", 3)


def test_run_directories_are_named_by_what_runs():
    assert default_run_dir(RunConfig.of({"seed": 4})).name.startswith("quick-seed4-20")
    assert default_run_dir(RunConfig.of({"task": "fashion"})).name.startswith("fashion-seed0-20")


def test_flags_win_over_the_run_that_is_resumed(toy, tmp_path):
    import argparse

    assert evolve(tmp_path, "--seed", "3") == 0
    arguments = argparse.Namespace(run_dir=tmp_path, resume=True, config=None, generations=9)
    config = evolve_config(arguments)
    assert (config.search.seed, config.search.generations, config.search.population) == (3, 9, 4)


def test_report_of_no_run(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    assert main(["report", str(tmp_path)]) == 2
    assert "needs a run with at least one complete generation, got no state.json" in capsys.readouterr().err


def test_report_of_a_search(toy, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    assert evolve(tmp_path) == 0
    assert main(["report", str(tmp_path)]) == 0
    assert f"Report: {tmp_path / 'report.md'}" in capsys.readouterr().out
    assert (tmp_path / "report.md").exists()


@pytest.mark.slow
def test_a_whole_run_ends_in_a_report_and_resumes_to_it(tmp_path, capsys):
    arguments = ["--task", "cli_tasks:small", "--unseen", "none", "--run-dir", str(tmp_path), *SMALL[:-1]]
    assert main(["evolve", *arguments]) == 0
    report = (tmp_path / "report.md").read_text()
    assert cli_tasks.small().name in report and (tmp_path / "final.json").exists()
    assert json.loads((tmp_path / "test-small.json").read_text())["opened"]
    assert main(["evolve", *arguments, "--resume"]) == 0
    assert (tmp_path / "report.md").read_text() == report
    assert len(json.loads((tmp_path / "test-small.json").read_text())["opened"]) == 1
    assert main(["report", str(tmp_path)]) == 0
    assert (tmp_path / "report.md").read_text() == report

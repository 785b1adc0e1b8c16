"""Whole searches: repeatable, resumable after anything, stopped by everything that stops them."""

from __future__ import annotations

import csv
import dataclasses
import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from toy_problem import SMALL, TASKS, ToyProblem

from jaxprune import files
from jaxprune.files import RunDirectoryError
from jaxprune.interrupts import SearchInterrupted
from jaxprune.language.expression import Expression
from jaxprune.language.library import library
from jaxprune.search.callbacks import Callback
from jaxprune.search.evaluation import TrialRecord
from jaxprune.search.journal import read_journal, without_times
from jaxprune.search.problem import Behaviour, InfrastructureError, Outcome, TaskInfo, Trial
from jaxprune.search.search import SearchResult, evolve_problem
from jaxprune.search.state import GenerationSummary, SearchState
from jaxprune.types import Invalid


def contents(run_dir: Path) -> tuple[list[object], str, str]:
    """What two runs of one seed have in common: journal apart from times, archive, hall of fame."""
    journal: list[object] = [without_times(line) for line in read_journal(run_dir / "journal.jsonl")]
    return journal, (run_dir / "archive.json").read_text(), (run_dir / "hall_of_fame.csv").read_text()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[SearchResult, Path]:
    run_dir = tmp_path_factory.mktemp("whole")
    return evolve_problem(ToyProblem(), SMALL, run_dir), run_dir


class Recorder(Callback):
    """Collects what the callbacks report."""

    def __init__(self) -> None:
        self.summaries: list[GenerationSummary] = []
        self.trials: list[TrialRecord] = []
        self.messages: list[str] = []
        self.started: list[SearchState] = []

    def on_start(self, state: SearchState) -> None:
        self.started.append(state)

    def on_evaluation(self, record: TrialRecord) -> None:
        self.trials.append(record)

    def on_generation(self, summary: GenerationSummary) -> None:
        self.summaries.append(summary)

    def on_message(self, message: str) -> None:
        self.messages.append(message)


def test_same_seed_twice_is_identical(whole: tuple[SearchResult, Path], tmp_path: Path) -> None:
    again = evolve_problem(ToyProblem(), SMALL, tmp_path)
    assert contents(tmp_path) == contents(whole[1])
    assert again.best == whole[0].best and again.archive == whole[0].archive
    other = tmp_path / "other"
    evolve_problem(ToyProblem(), SMALL.replace(seed=2), other)
    assert contents(other)[0] != contents(tmp_path)[0]


class Killed(BaseException):
    """Stands for SIGKILL: nothing in the package catches it."""


class DyingProblem(ToyProblem):
    """Dies at its n-th fine-tuning."""

    def __init__(self, last: int) -> None:
        super().__init__()
        self.last = last

    def run(self, trial: Trial) -> Outcome:
        if self.num_calls == self.last:
            raise Killed
        return super().run(trial)


@pytest.mark.parametrize("step", [pytest.param(1, marks=pytest.mark.slow), 9, 23, 50])
def test_killed_again_and_again_the_run_ends_the_same(
    whole: tuple[SearchResult, Path], tmp_path: Path, step: int
) -> None:
    for attempt in range(200):
        problem = DyingProblem(step)
        try:
            result = evolve_problem(problem, SMALL, tmp_path, resume=True, callbacks=[Recorder()])
            break
        except Killed:
            journal = tmp_path / "journal.jsonl"
            lines = journal.read_bytes()
            cut = attempt % 3  # sometimes in the middle of a line, as a kill or power cut does
            if cut and lines[-2:] == b"}\n" and b'"trial"' in lines.splitlines()[-1]:
                journal.write_bytes(lines[:-5] if cut == 1 and step > 1 else lines + b'{"kind": "tri')
    else:
        pytest.fail("the run never ended")
    assert contents(tmp_path) == contents(whole[1])
    assert result.best == whole[0].best
    assert not (tmp_path / "journal.discarded.jsonl").exists()


def run_program(run_dir: Path, delay: float) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    program = str(Path(__file__).parents[1] / "support" / "toy_problem.py")
    return subprocess.Popen(
        [sys.executable, program, str(run_dir), str(delay)], env=environment, stderr=subprocess.PIPE
    )


def wait_for_lines(run_dir: Path, num_lines: int) -> None:
    journal = run_dir / "journal.jsonl"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if journal.exists() and journal.read_bytes().count(b"\n") >= num_lines:
            return
        time.sleep(0.01)
    pytest.fail(f"no {num_lines} lines within a minute")


def test_sigkill_then_resume_is_identical(whole: tuple[SearchResult, Path], tmp_path: Path) -> None:
    for num_lines in (25, 70, 135):
        process = run_program(tmp_path, 0.005)
        wait_for_lines(tmp_path, num_lines)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
    evolve_problem(ToyProblem(), SMALL, tmp_path, resume=True, callbacks=[Recorder()])
    assert contents(tmp_path) == contents(whole[1])


def test_sigterm_saves_and_says_how_to_go_on(whole: tuple[SearchResult, Path], tmp_path: Path) -> None:
    process = run_program(tmp_path, 0.02)
    wait_for_lines(tmp_path, 60)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate()
    assert process.returncode not in (0, -signal.SIGTERM)
    assert b"SearchInterrupted: stopped by signal 15" in errors and b"go on with resume=True" in errors
    assert (tmp_path / "journal.jsonl").read_bytes().endswith(b"\n")
    evolve_problem(ToyProblem(), SMALL, tmp_path, resume=True)
    assert contents(tmp_path) == contents(whole[1])


class InterruptingProblem(ToyProblem):
    """Presses Ctrl-C during its n-th fine-tuning."""

    def __init__(self, when: int) -> None:
        super().__init__()
        self.when = when

    def run(self, trial: Trial) -> Outcome:
        if self.num_calls == self.when:
            os.kill(os.getpid(), signal.SIGINT)
        return super().run(trial)


def test_ctrl_c_ends_the_fine_tuning_under_way(whole: tuple[SearchResult, Path], tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGINT)
    problem = InterruptingProblem(when=90)
    with pytest.raises(SearchInterrupted, match=r"Everything is saved in .*--resume") as caught:
        evolve_problem(problem, SMALL, tmp_path)
    assert caught.value.exit_status == 130
    assert isinstance(caught.value, KeyboardInterrupt)
    assert len(problem.ran) == 91  # the one under way is kept
    assert signal.getsignal(signal.SIGINT) is before
    evolve_problem(ToyProblem(), SMALL, tmp_path, resume=True)
    assert contents(tmp_path) == contents(whole[1])


class SlowScoring(ToyProblem):
    """Is interrupted while it scores generation 1 (or trains its base networks)."""

    def behaviours(self, functions: Sequence[Expression]) -> list[Behaviour | Invalid]:
        if self.ran:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(30)
        return super().behaviours(functions)


def test_scoring_is_interrupted_at_once(whole: tuple[SearchResult, Path], tmp_path: Path) -> None:
    started = time.monotonic()
    with pytest.raises(SearchInterrupted, match=r"after 1 complete generation\(s\)") as caught:
        evolve_problem(SlowScoring(), SMALL, tmp_path)
    assert caught.value.exit_status == 143 and time.monotonic() - started < 20
    evolve_problem(ToyProblem(), SMALL, tmp_path, resume=True)
    assert contents(tmp_path) == contents(whole[1])


def test_resuming_a_finished_run_changes_nothing(whole: tuple[SearchResult, Path]) -> None:
    result, run_dir = whole
    before = contents(run_dir)
    problem = ToyProblem()
    again = evolve_problem(problem, SMALL, run_dir, resume=True)
    assert problem.num_calls == 0 and again.best == result.best
    assert contents(run_dir) == before


def test_more_generations_extend_a_run(whole: tuple[SearchResult, Path], tmp_path: Path) -> None:
    evolve_problem(ToyProblem(), SMALL.replace(generations=2), tmp_path)
    evolve_problem(ToyProblem(), SMALL, tmp_path, resume=True)
    ours, theirs = contents(tmp_path), contents(whole[1])
    without_total = [
        [
            {k: v for k, v in line.items() if k != "num_generations"}
            for line in journal
            if isinstance(line, dict)
        ]
        for journal in (ours[0], theirs[0])
    ]
    assert without_total[0] == without_total[1] and ours[1:] == theirs[1:]
    assert json.loads((tmp_path / "config.json").read_text())["config"]["generations"] == SMALL.generations


def test_time_limit_stops_between_fine_tunings_and_resumes(
    whole: tuple[SearchResult, Path], tmp_path: Path
) -> None:
    result = evolve_problem(ToyProblem(), SMALL.replace(time_limit_seconds=1e-6), tmp_path)
    assert result.stopped == "time" and result.state.generation == 1  # generation 0 always runs whole
    config = SMALL.replace(time_limit_seconds=0.8)
    limited = evolve_problem(ToyProblem(delay_seconds=0.05), config, tmp_path, resume=True)
    assert limited.stopped == "time" and limited.state.generation < 5
    evolve_problem(ToyProblem(), SMALL, tmp_path, resume=True)
    assert contents(tmp_path) == contents(whole[1])


def test_max_evaluations_is_never_exceeded(tmp_path: Path) -> None:
    config = SMALL.replace(generations=50, max_evaluations=150)
    result = evolve_problem(ToyProblem(), config, tmp_path)
    assert result.stopped == "evaluations"
    assert 130 < result.state.evaluations <= 150


def test_equal_budget_for_random_search(tmp_path: Path) -> None:
    config = SMALL.replace(generations=50, max_evaluations=160, strategy="random")
    result = evolve_problem(ToyProblem(), config, tmp_path)
    assert result.state.evaluations <= 160
    assert {candidate.origin for candidate in result.state.candidates if candidate.generation} == {"random"}


class DullProblem(ToyProblem):
    """Has one behaviour for everything."""

    def behaviours(self, functions: Sequence[Expression]) -> list[Behaviour | Invalid]:
        return super().behaviours([library["l1"]] * len(functions))


def test_nothing_new_ends_the_search(tmp_path: Path) -> None:
    result = evolve_problem(DullProblem(), SMALL, tmp_path)
    assert result.stopped == "exhausted" and result.state.generation == 1


def test_infrastructure_failure_is_saved_and_can_be_resumed(
    whole: tuple[SearchResult, Path], tmp_path: Path
) -> None:
    recorder = Recorder()
    with pytest.raises(InfrastructureError, match=r"failed 3 times.*is saved in .*resume=True"):
        evolve_problem(ToyProblem(fail_at=(80, 81, 82)), SMALL, tmp_path, callbacks=[recorder])
    assert sum("trying again" in message for message in recorder.messages) == 2
    evolve_problem(ToyProblem(fail_at=(5,)), SMALL, tmp_path, resume=True, callbacks=[recorder])
    assert contents(tmp_path) == contents(whole[1])


class CrampedProblem(ToyProblem):
    """Runs out of memory at its n-th and later scorings, so many times."""

    def __init__(self, when: int, times: int) -> None:
        super().__init__()
        self.scorings, self.when, self.times = 0, when, times

    def behaviours(self, functions: Sequence[Expression]) -> list[Behaviour | Invalid]:
        self.scorings += 1
        if self.when <= self.scorings < self.when + self.times:
            raise MemoryError("no room")
        return super().behaviours(functions)


def test_scoring_is_tried_again_too(whole: tuple[SearchResult, Path], tmp_path: Path) -> None:
    recorder = Recorder()
    with pytest.raises(
        InfrastructureError,
        match=r"scoring for generation 1 failed 3 times, .*MemoryError: no room\. .* is saved in .*resume=True",
    ):
        evolve_problem(CrampedProblem(2, times=3), SMALL, tmp_path, callbacks=[recorder])
    evolve_problem(CrampedProblem(1, times=2), SMALL, tmp_path, resume=True, callbacks=[recorder])
    assert sum("scoring for generation 1 failed" in message for message in recorder.messages) == 4
    assert contents(tmp_path) == contents(whole[1])


def test_a_full_disk_at_a_checkpoint_loses_nothing(
    whole: tuple[SearchResult, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace = os.replace
    calls = 0

    def full(source: Path, target: Path) -> None:
        nonlocal calls
        calls += 1
        if calls == 8:  # a file of the second checkpoint
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "replace", full)
        with pytest.raises(RunDirectoryError, match="the disk is full"):
            evolve_problem(ToyProblem(), SMALL, tmp_path)
    assert json.loads((tmp_path / "state.json").read_text())["state"]["generation"] == 1
    evolve_problem(ToyProblem(), SMALL, tmp_path, resume=True)
    assert contents(tmp_path) == contents(whole[1])


def test_a_deleted_state_is_built_again_from_the_journal(
    whole: tuple[SearchResult, Path], tmp_path: Path
) -> None:
    evolve_problem(ToyProblem(), SMALL, tmp_path)
    (tmp_path / "state.json").unlink()
    problem = ToyProblem()
    evolve_problem(problem, SMALL, tmp_path, resume=True)
    assert problem.num_calls == 0
    assert contents(tmp_path) == contents(whole[1])


def test_a_used_directory_is_refused_without_resume(whole: tuple[SearchResult, Path]) -> None:
    with pytest.raises(
        RunDirectoryError, match=r"already holds a run. Go on with it by resume=True \(--resume\)"
    ):
        evolve_problem(ToyProblem(), SMALL, whole[1])


def test_changed_settings_are_named(whole: tuple[SearchResult, Path]) -> None:
    run_dir = whole[1]
    before = contents(run_dir)
    with pytest.raises(RunDirectoryError, match=r"population was 6 and is now 7; seed was 1 and is now 9"):
        evolve_problem(ToyProblem(), SMALL.replace(population=7, seed=9), run_dir, resume=True)
    changed = [dataclasses.replace(TASKS[0], fingerprint="b"), TASKS[1]]
    with pytest.raises(RunDirectoryError, match=r"tasks\.digits\.fingerprint was 'a' and is now 'b'"):
        evolve_problem(ToyProblem(changed), SMALL, run_dir, resume=True)
    with pytest.raises(RunDirectoryError, match=r"guesses was \[\] and is now \['mean\(X\)'\]"):
        evolve_problem(ToyProblem(), SMALL, run_dir, resume=True, guesses=["mean(X)"])
    with pytest.raises(RunDirectoryError, match=r"settings\.preset was 'absent' and is now 'quick'"):
        evolve_problem(ToyProblem(), SMALL, run_dir, resume=True, settings={"preset": "quick"})
    assert contents(run_dir) == before


@pytest.mark.parametrize("name", ["config.json", "state.json"])
def test_a_newer_format_is_refused(tmp_path: Path, name: str) -> None:
    config = SMALL.replace(generations=0)
    evolve_problem(ToyProblem(), config, tmp_path)
    plain = json.loads((tmp_path / name).read_text())
    (tmp_path / name).write_text(json.dumps({**plain, "format": 2}))
    with pytest.raises(
        RunDirectoryError, match=r"needs format 1 or older, got 2, of a newer jaxprune. Upgrade"
    ):
        evolve_problem(ToyProblem(), config, tmp_path, resume=True)


def test_settings_with_tuples_are_accepted_back(tmp_path: Path) -> None:
    config, settings = SMALL.replace(generations=0), {"tasks": ("a", "b"), "nested": {"weights": (1, 2)}}
    evolve_problem(ToyProblem(), config, tmp_path, settings=settings)
    evolve_problem(ToyProblem(), config, tmp_path, settings=settings, resume=True)


def test_callbacks_see_everything(whole: tuple[SearchResult, Path], tmp_path: Path) -> None:
    recorder = Recorder()
    result = evolve_problem(ToyProblem(), SMALL, tmp_path, callbacks=[recorder, object()])
    assert [summary.generation for summary in recorder.summaries] == list(range(SMALL.generations + 1))
    assert sum(not trial.is_cached for trial in recorder.trials) == result.state.evaluations
    assert recorder.started[0].generation == 0
    etas = [summary.eta_seconds for summary in recorder.summaries]
    assert etas[-1] == 0.0 and all(eta is not None for eta in etas)


def test_fine_tunings_are_for_unseen_plans(whole: tuple[SearchResult, Path]) -> None:
    lines = list(read_journal(whole[1] / "journal.jsonl"))
    trials = [line for line in lines if line["kind"] == "trial" and line["purpose"] in ("screen", "promote")]
    plans = [(line["task"], line["base"], line["digest"]) for line in trials]
    assert len(set(plans)) / len(plans) >= 0.97


def test_hall_of_fame_and_table(whole: tuple[SearchResult, Path]) -> None:
    result, run_dir = whole
    with (run_dir / "hall_of_fame.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows[0]["formula"] == result.best.candidate.text
    lowers = [float(row["lower"]) for row in rows]
    assert lowers == sorted(lowers, reverse=True) and len(rows) <= 20
    table = result.to_dataframe()
    assert table["id"].iloc[0] == result.best.candidate.id
    assert set(table.loc[table["in_archive"], "id"]) == set(result.state.archive)
    archive = json.loads((run_dir / "archive.json").read_text())["members"]
    assert [member["id"] for member in archive] == list(result.state.archive)
    assert str(result.best).startswith(result.best.candidate.text)


def test_one_task_with_one_base_works(tmp_path: Path) -> None:
    config = SMALL.replace(generations=2, fitness="geometric", variation="paper", elites=0)
    result = evolve_problem(ToyProblem([TaskInfo("only")]), config, tmp_path)
    assert result.state.generation == 3 and result.best.fitness.mean > 50

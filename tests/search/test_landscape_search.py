"""Whole searches on landscapes: what is verified, what wins, what a kill loses, what is refused."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
from earlier_runs import as_earlier
from hypothesis import given, settings
from hypothesis import strategies as st
from test_search import Recorder, contents
from toy_problem import LANDSCAPE, SMALL, TASKS, ToyBatchProblem, ToyLandscapeProblem, ToyProblem, noise

from jaxprune.files import RunDirectoryError
from jaxprune.interrupts import SearchInterrupted
from jaxprune.language.expression import Expression
from jaxprune.language.library import library
from jaxprune.search.evaluation import FINALISTS, FIRST_BASES, START_FORMULAS
from jaxprune.search.fitness import Fitness, fitness_of, predicted_fitness
from jaxprune.search.journal import read_journal
from jaxprune.search.landscape import MIN_PLANS, NUM_FOLDS
from jaxprune.search.problem import (
    BankFacts,
    Behaviour,
    InfrastructureError,
    Outcome,
    TaskInfo,
    Trial,
    plan_distance,
)
from jaxprune.search.run_directory import load_run
from jaxprune.search.search import SearchResult, evolve_problem
from jaxprune.search.settings import EvolveConfig
from jaxprune.search.state import Candidate, is_start_formula
from jaxprune.types import Invalid

WIDE = (TaskInfo("wide", bases=30), TaskInfo("narrow", bases=3))
TINY = LANDSCAPE.replace(generations=1, population=3, leaders=2, seeds="paper")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[SearchResult, Path]:
    """A search whose winner is neither the best by prediction alone nor by measurement alone."""
    run_dir = tmp_path_factory.mktemp("whole")
    return evolve_problem(ToyLandscapeProblem(), LANDSCAPE, run_dir), run_dir


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> tuple[SearchResult, Path]:
    """A search with more bases than leaders are all verified on."""
    run_dir = tmp_path_factory.mktemp("wide")
    config = LANDSCAPE.replace(generations=1, population=20, leaders=12)
    return evolve_problem(ToyLandscapeProblem(WIDE), config, run_dir), run_dir


def lines(run_dir: Path, kind: str) -> list[dict[str, object]]:
    return [line for line in read_journal(run_dir / "journal.jsonl") if line["kind"] == kind]


def measured(result: SearchResult, candidate: Candidate) -> Fitness | None:
    state = result.state
    reference = state.candidates[0].digests
    return fitness_of(state.results, state.tasks, state.scales, candidate.digests, reference)


def predicted(result: SearchResult, candidate: Candidate) -> Fitness:
    assert candidate.behaviour is not None
    return predicted_fitness(candidate.behaviour.predicted, result.state.tasks, result.state.scales)


def num_bases(result: SearchResult, candidate: Candidate) -> dict[str, int]:
    """Task name -> number of bases on which the plan of a candidate was fine-tuned."""
    known = result.state.results
    return {
        name: sum((name, "search", base, 0, digest) in known for base, digest in enumerate(digests))
        for name, digests in candidate.digests.items()
    }


def leaders_of(result: SearchResult) -> list[Candidate]:
    """Those that should be verified, from the definitions: the best by prediction whose plans are apart."""
    state, selected = result.state, list[Candidate]()
    ranked = sorted(
        (c for c in state.candidates if c.behaviour is not None and c.origin != "simplified"),
        key=lambda c: (state.config.parsimony * c.complexity - predicted(result, c).mean, c.complexity, c.id),
    )
    for candidate in ranked:
        if len(selected) < state.config.leaders and all(
            distance(candidate, other) >= state.config.min_plan_distance for other in selected
        ):
            selected.append(candidate)
    return selected


def distance(one: Candidate, other: Candidate) -> float:
    assert one.behaviour is not None and other.behaviour is not None
    return plan_distance(one.behaviour.kept, other.behaviour.kept)


class TestWinner:
    def test_it_is_best_by_half_predicted_half_measured_minus_complexity(
        self, whole: tuple[SearchResult, Path]
    ) -> None:
        result, _ = whole
        needed = {task.name: task.bases for task in TASKS}
        values, parts = {}, {}
        for candidate in result.state.candidates:
            if candidate.status == "ok" and num_bases(result, candidate) == needed:
                outcome = measured(result, candidate)
                assert outcome is not None
                parts[candidate.id] = predicted(result, candidate).mean, outcome.mean
                values[candidate.id] = sum(parts[candidate.id]) / 2 - 0.008 * candidate.complexity
        best = max(values, key=lambda id_: values[id_])
        assert result.best.candidate.id == best and len(values) >= 10
        assert result.best.fitness.mean == pytest.approx(sum(parts[best]) / 2)
        assert any(abs(half - other) > 0.1 for half, other in parts.values())  # predictions are not the truth

    def test_complexity_decides_between_near_equals(self, tmp_path: Path) -> None:
        cheap = evolve_problem(ToyLandscapeProblem(), LANDSCAPE.replace(parsimony=0.0), tmp_path / "cheap")
        dear = evolve_problem(ToyLandscapeProblem(), LANDSCAPE.replace(parsimony=1.0), tmp_path / "dear")
        assert dear.best.candidate.complexity < cheap.best.candidate.complexity
        assert dear.best.fitness.mean < cheap.best.fitness.mean

    def test_nothing_unverified_is_called_the_best_or_in_the_archive(
        self, whole: tuple[SearchResult, Path], wide: tuple[SearchResult, Path]
    ) -> None:
        for (result, _), tasks in ((whole, TASKS), (wide, WIDE)):
            needed = {task.name: task.bases for task in tasks}
            assert result.best.is_verified and result.best.candidate.id in result.state.archive
            for individual in (result.best, *result.archive):
                assert num_bases(result, individual.candidate) == needed
            better = [
                c for c in result.state.candidates if c.status == "ok" and num_bases(result, c) != needed
            ]
            assert better and not any(result.state.individual(c.id).is_verified for c in better)

    def test_archive_is_the_front_of_value_and_complexity(self, wide: tuple[SearchResult, Path]) -> None:
        front = [(individual.candidate.complexity, individual.value) for individual in wide[0].archive]
        assert front == sorted(front) and sorted(value for _, value in front) == [value for _, value in front]
        verified = [individual for individual in wide[0].state.ranked() if individual.is_verified]
        for individual in verified:
            assert any(
                complexity <= individual.candidate.complexity and value >= individual.value
                for complexity, value in front
            )

    def test_table_has_verified_ones_first(self, whole: tuple[SearchResult, Path]) -> None:
        result, run_dir = whole
        flags = [individual.is_verified for individual in result.state.ranked()]
        assert flags == sorted(flags, reverse=True) and 0 < sum(flags) < len(flags)
        assert (run_dir / "hall_of_fame.csv").read_text().splitlines()[1].split(",")[1] == str(
            result.best.candidate.id
        )


class TestVerification:
    def test_leaders_and_start_formulas_are_verified_and_nothing_else(
        self, whole: tuple[SearchResult, Path]
    ) -> None:
        result, run_dir = whole
        leaders = {candidate.id for candidate in leaders_of(result)}
        tried = {line["candidate"] for line in lines(run_dir, "trial") if line["purpose"] == "verify"}
        start = [c for c in result.state.ranked_by_prediction() if is_start_formula(c)][:START_FORMULAS]
        allowed = leaders | {individual.candidate.id for individual in start}
        assert tried <= allowed and len(leaders) == LANDSCAPE.leaders
        for id_ in allowed:
            assert num_bases(result, result.state.candidates[id_]) == {"digits": 3, "fashion": 2}

    def test_leaders_have_different_plans(self, wide: tuple[SearchResult, Path]) -> None:
        _, run_dir = wide
        ids = {line["candidate"] for line in lines(run_dir, "trial") if line["purpose"] == "verify"}
        state = wide[0].state
        chosen = [c for c in leaders_of(wide[0]) if c.id in ids]
        assert len(chosen) >= 8
        for one, other in itertools.combinations(chosen, 2):
            assert distance(one, other) >= state.config.min_plan_distance

    def test_the_best_are_tried_on_all_bases_and_the_others_on_24(self, tmp_path: Path) -> None:
        class Surprising(ToyLandscapeProblem):
            """Measures something else than it predicts, so that finalists are neither the predicted nor the start."""

            def run(self, trial: Trial) -> Outcome:
                return Outcome(
                    super().run(trial).accuracy / 2 + 25.0 * (1.0 + noise("surprise", trial.digest))
                )

        config = LANDSCAPE.replace(generations=1, population=20, leaders=12)
        result = evolve_problem(Surprising(WIDE), config, tmp_path)
        leaders = leaders_of(result)
        assert len(leaders) == 12
        first = {key: value for key, value in result.state.results.items() if key[2] < FIRST_BASES}
        reference = result.state.candidates[0].digests

        def value(candidate: Candidate) -> float:
            outcome = fitness_of(first, result.state.tasks, result.state.scales, candidate.digests, reference)
            assert outcome is not None
            half = (predicted(result, candidate).mean + outcome.mean) / 2
            return half - config.parsimony * candidate.complexity

        finalists = sorted(leaders, key=value, reverse=True)[:FINALISTS]
        ranked = [
            individual for individual in result.state.ranked_by_prediction() if is_start_formula(individual)
        ]
        start = [individual.candidate for individual in ranked[:START_FORMULAS]]
        assert {c.id for c in finalists} != {c.id for c in leaders[:FINALISTS]}
        assert not {c.digests["wide"][24:] for c in start} <= {c.digests["wide"][24:] for c in finalists}
        everywhere = (*finalists, *start, result.state.candidates[0])
        for base in range(30):
            tried = {key[4] for key in result.state.results if key[:3] == ("wide", "search", base)}
            chosen = everywhere if base >= 24 else (*everywhere, *leaders)
            assert tried == {candidate.digests["wide"][base] for candidate in chosen}, base

    def test_start_formulas_are_verified_without_being_leaders(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setattr(
            "jaxprune.search.evaluation.START_FORMULAS", 6
        )  # the first three share their plans
        config = LANDSCAPE.replace(generations=1, leaders=1)
        state = evolve_problem(ToyLandscapeProblem(), config, tmp_path).state
        start = [individual for individual in state.ranked_by_prediction() if is_start_formula(individual)]
        for individual in start[:6]:
            assert state.individual(individual.candidate.id).is_verified

    def test_every_plan_is_fine_tuned_once_and_counted(self, wide: tuple[SearchResult, Path]) -> None:
        result, run_dir = wide
        trials = lines(run_dir, "trial")
        keys = [tuple(line[name] for name in ("task", "pool", "base", "repeat", "digest")) for line in trials]
        assert len(keys) == len(set(keys)) == result.state.evaluations == len(result.state.results)
        at_most = 24 * (12 + 3 + 1) + 6 * (6 + 3 + 1) + 3 * (12 + 3 + 1)
        assert at_most / 2 < len(keys) <= at_most
        assert {line["purpose"] for line in trials} == {"reference", "verify"}

    def test_the_search_itself_fine_tunes_nothing(self, whole: tuple[SearchResult, Path]) -> None:
        result, run_dir = whole
        assert [summary.fine_tunings_total for summary in result.state.summaries] == [0] * 5
        kinds = [line["kind"] for line in read_journal(run_dir / "journal.jsonl")]
        last = max(number for number, kind in enumerate(kinds) if kind == "generation")
        assert "trial" not in kinds[:last] and "trial" in kinds[last:]

    def test_many_at_a_time_make_the_same_run(self, whole: tuple[SearchResult, Path], tmp_path: Path) -> None:
        class Batch(ToyLandscapeProblem, ToyBatchProblem):
            pass

        evolve_problem(Batch(), LANDSCAPE, tmp_path)
        assert contents(tmp_path) == contents(whole[1])


class TestJournal:
    def test_it_has_bank_candidates_generations_and_verification(
        self, whole: tuple[SearchResult, Path]
    ) -> None:
        result, run_dir = whole
        bank = [{name: line[name] for name in ("task", "plans", "digest")} for line in lines(run_dir, "bank")]
        assert bank == [
            {"task": "digits", "plans": 36, "digest": "d0"},
            {"task": "fashion", "plans": 24, "digest": "d0"},
        ]
        ids = [line["id"] for line in lines(run_dir, "candidate")]
        assert ids == list(range(len(result.state.candidates)))
        assert [line["generation"] for line in lines(run_dir, "generation")] == [0, 1, 2, 3, 4]
        (last,) = lines(run_dir, "verification")
        assert (last["best_id"], last["best_mean"]) == (
            result.best.candidate.id,
            result.best.fitness.mean,
        )
        predicted = lines(run_dir, "candidate")[3]["predicted"]
        assert isinstance(predicted, dict) and set(predicted) == {"digits", "fashion"}

    def test_the_same_seed_gives_the_same_run(self, whole: tuple[SearchResult, Path], tmp_path: Path) -> None:
        again = evolve_problem(ToyLandscapeProblem(), LANDSCAPE, tmp_path / "again")
        assert contents(tmp_path / "again") == contents(whole[1])
        assert (again.best, again.archive) == (whole[0].best, whole[0].archive)
        evolve_problem(ToyLandscapeProblem(), LANDSCAPE.replace(seed=2), tmp_path / "other")
        assert contents(tmp_path / "other")[0] != contents(whole[1])[0]

    def test_random_search_proposes_random_formulas_only(
        self, whole: tuple[SearchResult, Path], tmp_path: Path
    ) -> None:
        problem = ToyLandscapeProblem()
        result = evolve_problem(problem, LANDSCAPE.replace(strategy="random"), tmp_path)
        later = {c.origin for c in result.state.candidates if c.generation}
        assert later - {"tuned", "simplified"} == {"random"}
        assert len(result.state.candidates) == pytest.approx(len(whole[0].state.candidates), abs=8)
        assert {c.origin for c in whole[0].state.candidates if c.generation} > {"crossover"}

    def test_the_state_that_reports_read_is_the_verified_one(self, whole: tuple[SearchResult, Path]) -> None:
        result, run_dir = whole
        state = load_run(run_dir, ToyLandscapeProblem())
        assert state.ranked() == result.state.ranked() and state.archive == result.state.archive
        assert state.banks == result.state.banks and state == result.state


def bases_of_a_run(run_dir: Path) -> dict[int, Path]:
    """Runs `TINY`, and keeps a copy of its files at each checkpoint: number of journal lines -> folder."""
    copies = {0: run_dir / "copy-0"}
    problem, whole = ToyLandscapeProblem(), run_dir / "whole"

    def keep(_: object) -> None:
        saved = json.loads((whole / "state.json").read_text())["journal_lines"]
        copies[saved] = run_dir / f"copy-{saved}"
        shutil.copytree(whole, copies[saved])

    def begin(_: object) -> None:
        shutil.copytree(whole, copies[0])

    evolve_problem(problem, TINY, whole, callbacks=[SimpleNamespace(on_start=begin, on_generation=keep)])
    return copies


class TestKills:
    def test_a_kill_between_any_two_lines_changes_nothing(self, tmp_path: Path) -> None:
        copies = bases_of_a_run(tmp_path)
        expected = contents(tmp_path / "whole")
        whole = (tmp_path / "whole" / "journal.jsonl").read_bytes().splitlines(keepends=True)
        kinds = [json.loads(line)["kind"] for line in whole]
        assert len(copies) == 3 and {"bank", "candidate", "generation", "trial", "verification"} < set(kinds)
        for num_lines in range(1, len(whole) + 1):
            run_dir = tmp_path / f"killed-{num_lines}"
            checkpoint = max(number for number in copies if number <= num_lines)
            shutil.copytree(copies[checkpoint], run_dir)
            rest = whole[num_lines][: 7 * (num_lines % 3)] if num_lines < len(whole) else b""
            (run_dir / "journal.jsonl").write_bytes(b"".join(whole[:num_lines]) + rest)
            problem = ToyLandscapeProblem()
            evolve_problem(problem, TINY, run_dir, resume=True, callbacks=[Recorder()])
            assert contents(run_dir) == expected, (num_lines, kinds[num_lines - 1])
            assert problem.num_calls == kinds[num_lines:].count("trial")
            assert not (run_dir / "journal.discarded.jsonl").exists()

    def test_killed_again_and_again_while_verifying(
        self, whole: tuple[SearchResult, Path], tmp_path: Path
    ) -> None:
        class Killed(BaseException):
            pass

        class Dying(ToyLandscapeProblem):
            def run(self, trial: Trial) -> Outcome:
                if self.num_calls == 7:
                    raise Killed
                return super().run(trial)

        num_calls = 0
        for _ in range(50):
            problem = Dying()
            try:
                evolve_problem(problem, LANDSCAPE, tmp_path, resume=True)
                break
            except Killed:
                num_calls += problem.num_calls
        assert contents(tmp_path) == contents(whole[1])
        assert num_calls + problem.num_calls == whole[0].state.evaluations  # nothing was run twice

    def test_a_deleted_state_is_built_again_without_fine_tuning(
        self, whole: tuple[SearchResult, Path], tmp_path: Path
    ) -> None:
        shutil.copytree(whole[1], tmp_path / "run")
        (tmp_path / "run" / "state.json").unlink()
        problem = ToyLandscapeProblem()
        evolve_problem(problem, LANDSCAPE, tmp_path / "run", resume=True)
        assert problem.num_calls == 0 and contents(tmp_path / "run") == contents(whole[1])

    def test_resuming_a_finished_run_changes_nothing(
        self, whole: tuple[SearchResult, Path], tmp_path: Path
    ) -> None:
        shutil.copytree(whole[1], tmp_path / "run")
        problem = ToyLandscapeProblem()
        again = evolve_problem(problem, LANDSCAPE, tmp_path / "run", resume=True)
        assert problem.num_calls == 0 and again.best == whole[0].best
        assert contents(tmp_path / "run") == contents(whole[1])

    @pytest.mark.parametrize("when", [1, 9])
    def test_a_signal_while_verifying_keeps_what_was_measured(
        self, whole: tuple[SearchResult, Path], tmp_path: Path, when: int
    ) -> None:
        class Interrupting(ToyLandscapeProblem):
            def run(self, trial: Trial) -> Outcome:
                if self.num_calls == when:
                    os.kill(os.getpid(), signal.SIGINT)
                return super().run(trial)

        problem = Interrupting()
        with pytest.raises(SearchInterrupted, match=r"after 5 complete generation\(s\)"):
            evolve_problem(problem, LANDSCAPE, tmp_path)
        assert problem.num_calls == when + 1
        rest = ToyLandscapeProblem()
        evolve_problem(rest, LANDSCAPE, tmp_path, resume=True)
        assert rest.num_calls == whole[0].state.evaluations - when - 1
        assert contents(tmp_path) == contents(whole[1])

    def test_a_signal_while_measuring_the_bank_ends_it_at_once(
        self, whole: tuple[SearchResult, Path], tmp_path: Path
    ) -> None:
        class Interrupting(ToyLandscapeProblem):
            def fit_landscapes(
                self, num_plans: int, on_status: Callable[[str], None] = lambda message: None
            ) -> dict[str, BankFacts]:
                os.kill(os.getpid(), signal.SIGTERM)
                pytest.fail("it went on")

        with pytest.raises(SearchInterrupted, match=r"signal 15 after 0 complete .*--resume") as caught:
            evolve_problem(Interrupting(), LANDSCAPE, tmp_path)
        assert caught.value.exit_status == 143
        evolve_problem(ToyLandscapeProblem(), LANDSCAPE, tmp_path, resume=True)
        assert contents(tmp_path) == contents(whole[1])


class Failing(ToyLandscapeProblem):
    """Runs out of memory where it fits landscapes, or where it scores after the last generation, so many times."""

    def __init__(self, fitting: int = 0, finishing: int = 0) -> None:
        super().__init__()
        self.left = {"fitting": fitting, "finishing": finishing}
        self.is_finishing = False

    def on_status(self, message: str) -> None:
        self.is_finishing |= message.startswith("verifying")

    def fail(self, place: str) -> None:
        self.left[place] -= 1
        if self.left[place] >= 0:
            raise MemoryError("no room")

    def fit_landscapes(
        self, num_plans: int, on_status: Callable[[str], None] = lambda message: None
    ) -> dict[str, BankFacts]:
        self.fail("fitting")
        return super().fit_landscapes(num_plans, on_status)

    def behaviours(self, functions: Sequence[Expression]) -> list[Behaviour | Invalid]:
        if self.is_finishing:
            self.fail("finishing")
        return super().behaviours(functions)


@pytest.mark.parametrize(
    ("place", "action"),
    [
        ("fitting", "training base networks or measuring banks of plans"),
        ("finishing", "scoring for the verification"),
    ],
)
def test_what_fails_is_tried_again(
    whole: tuple[SearchResult, Path], tmp_path: Path, place: str, action: str
) -> None:
    problem, recorder = Failing(**{place: 3}), Recorder()
    with pytest.raises(
        InfrastructureError,
        match=rf"{action} failed 3 times, .*MemoryError: no room\. .* is saved in .*resume",
    ):
        evolve_problem(problem, LANDSCAPE, tmp_path, callbacks=[problem, recorder])
    problem = Failing(**{place: 2})
    evolve_problem(problem, LANDSCAPE, tmp_path, resume=True, callbacks=[problem, recorder])
    assert sum(f"{action} failed" in message for message in recorder.messages) == 4
    assert contents(tmp_path) == contents(whole[1])


class TestLimits:
    def test_a_time_limit_leaves_room_for_the_verification(
        self, whole: tuple[SearchResult, Path], tmp_path: Path
    ) -> None:
        config = LANDSCAPE.replace(time_limit_seconds=1e-6)
        result = evolve_problem(ToyLandscapeProblem(), config, tmp_path)
        assert result.stopped == "time" and result.state.generation == 1
        assert result.best.is_verified and result.state.evaluations > 10
        assert len(lines(tmp_path, "verification")) == 1

    def test_going_on_after_a_time_limit_ends_as_without_one(
        self, whole: tuple[SearchResult, Path], tmp_path: Path
    ) -> None:
        limited = LANDSCAPE.replace(time_limit_seconds=1e-6)
        first = evolve_problem(ToyLandscapeProblem(), limited, tmp_path)
        assert first.best != whole[0].best  # so that it would be noticed if it were kept
        problem = ToyLandscapeProblem()
        result = evolve_problem(problem, LANDSCAPE, tmp_path, resume=True)
        assert_ends_as(result, tmp_path, whole)
        assert 0 < problem.num_calls < whole[0].state.evaluations  # what was measured is not measured again

    @pytest.mark.parametrize("stops", [[0], [1, 3], [0, 1, 2, 3]])
    def test_more_generations_end_as_if_asked_for_at_once(
        self, whole: tuple[SearchResult, Path], tmp_path: Path, stops: list[int]
    ) -> None:
        for generations in stops:
            stopped = evolve_problem(
                ToyLandscapeProblem(), LANDSCAPE.replace(generations=generations), tmp_path, resume=True
            )
            assert stopped.best.is_verified
        result = evolve_problem(ToyLandscapeProblem(), LANDSCAPE, tmp_path, resume=True)
        assert_ends_as(result, tmp_path, whole)
        assert len(lines(tmp_path, "verification")) == len(stops) + 1
        (tmp_path / "state.json").unlink()
        problem = ToyLandscapeProblem()
        evolve_problem(problem, LANDSCAPE, tmp_path, resume=True, callbacks=[Recorder()])
        assert problem.num_calls == 0 and contents(tmp_path)[1:] == contents(whole[1])[1:]

    def test_more_bases_than_leaders_are_tried_on_change_nothing_about_that(
        self, wide: tuple[SearchResult, Path], tmp_path: Path
    ) -> None:
        config = wide[0].state.config
        evolve_problem(ToyLandscapeProblem(WIDE), config.replace(generations=0), tmp_path)
        result = evolve_problem(ToyLandscapeProblem(WIDE), config, tmp_path, resume=True)
        assert_ends_as(result, tmp_path, wide)

    def test_a_search_that_was_verified_and_finds_nothing_new_stays_as_it_is(self, tmp_path: Path) -> None:
        class Dull(ToyLandscapeProblem):
            def behaviours(self, functions: Sequence[Expression]) -> list[Behaviour | Invalid]:
                return super().behaviours([library["l1"]] * len(functions))

        first = evolve_problem(Dull(), TINY, tmp_path)
        assert first.stopped == "exhausted" and first.best.is_verified
        before, problem = contents(tmp_path), Dull()
        again = evolve_problem(problem, TINY.replace(generations=3), tmp_path, resume=True)
        assert again.best == first.best and problem.num_calls == 0 and contents(tmp_path) == before


def assert_ends_as(result: SearchResult, run_dir: Path, whole: tuple[SearchResult, Path]) -> None:
    """Checks that a search has the result of one that was not stopped in between."""
    assert (result.best, result.archive) == (whole[0].best, whole[0].archive)
    assert result.state.candidates == whole[0].state.candidates
    assert result.state.results == whole[0].state.results
    assert result.state.evaluations == whole[0].state.evaluations
    assert contents(run_dir)[1:] == contents(whole[1])[1:]


class TestRefusals:
    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"plans": 20}, "plans was 12 and is now 20"),
            ({"leaders": 3}, "leaders was 8 and is now 3"),
            ({"parsimony": 0.1}, r"parsimony was 0\.008 and is now 0\.1"),
            ({"joint": "geometric"}, "joint was 'paired' and is now 'geometric'"),
            ({"fitness": "finetune"}, "fitness was 'landscape' and is now 'finetune'"),
            ({"min_plan_distance": 0.5}, r"min_plan_distance was 0\.02 and is now 0\.5"),
        ],
    )
    def test_other_settings_are_named(
        self, whole: tuple[SearchResult, Path], changes: dict[str, object], message: str
    ) -> None:
        before = contents(whole[1])
        with pytest.raises(RunDirectoryError, match=f"holds a run with other settings: {message}"):
            evolve_problem(ToyLandscapeProblem(), LANDSCAPE.replace(**changes), whole[1], resume=True)
        assert contents(whole[1]) == before

    def test_tasks_that_cannot_tell_plans_apart_are_refused_before_the_search(self, tmp_path: Path) -> None:
        problem = ToyLandscapeProblem(correlations=(0.5, 0.19))
        with pytest.raises(
            ValueError, match=r"0\.2 or more, got 0\.19 on fashion\. .*--force --resume"
        ) as caught:
            evolve_problem(problem, LANDSCAPE, tmp_path)
        assert "harsher schedule, more bases or plans, or other data" in str(caught.value)
        assert not problem.ran and not problem.num_scored
        with pytest.raises(ValueError, match=r"got -0\.10 on digits, nan on fashion"):
            evolve_problem(
                ToyLandscapeProblem(correlations=(-0.1, float("nan"))), LANDSCAPE, tmp_path, resume=True
            )
        result = evolve_problem(problem, LANDSCAPE.replace(force=True), tmp_path, resume=True)
        assert result.state.banks["fashion"].correlation == 0.19 and result.best.is_verified

    @pytest.mark.parametrize("correlation", [0.2, 1.0])
    def test_tasks_that_just_can_are_not(self, tmp_path: Path, correlation: float) -> None:
        problem = ToyLandscapeProblem(correlations=(correlation, correlation))
        assert evolve_problem(problem, TINY.replace(generations=0), tmp_path).best.is_verified

    def test_a_problem_without_predictions_is_refused_with_advice(self, tmp_path: Path) -> None:
        with pytest.raises(
            ValueError, match=r"needs a problem with fit_landscapes .*got ToyProblem\. Use .*finetune"
        ):
            evolve_problem(ToyProblem(), LANDSCAPE, tmp_path / "run")
        assert not (tmp_path / "run").exists()

    def test_enough_plans_to_hold_some_out(self) -> None:
        """Two thirds of the smallest bank are enough to fit a landscape."""
        with pytest.raises(ValueError, match=r"plans >= 10 \(got 9\)"):
            EvolveConfig(plans=9)
        assert 10 - -(-10 // NUM_FOLDS) >= MIN_PLANS

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            (
                {"max_evaluations": 100},
                r'fitness "finetune" with max_evaluations \(got 100\): .* use generations',
            ),
            ({"leaders": 0}, r"leaders >= 1 \(got 0\)"),
            ({"parsimony": -0.1}, r"parsimony >= 0 \(got -0\.1\)"),
            ({"parsimony": float("nan")}, r"needs a finite parsimony \(got nan\)"),
            ({"parsimony": float("inf")}, r"needs a finite parsimony \(got inf\)"),
            ({"fitness": "best"}, "fitness one of landscape, finetune"),
            ({"joint": "harmonic"}, "joint one of paired, geometric, arithmetic"),
        ],
    )
    def test_settings_that_cannot_work(self, changes: dict[str, object], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            LANDSCAPE.replace(**changes)

    def test_l2_needs_to_be_valid(self, tmp_path: Path) -> None:
        class WithoutL2(ToyLandscapeProblem):
            def behaviours(self, functions: Sequence[Expression]) -> list[Behaviour | Invalid]:
                found = super().behaviours(functions)
                return [
                    Invalid("zero") if f == library["l2"] else b
                    for f, b in zip(functions, found, strict=True)
                ]

        with pytest.raises(ValueError, match="every difference is to l2"):
            evolve_problem(WithoutL2(), LANDSCAPE, tmp_path)

    def test_behaviours_without_predictions_are_refused(self, tmp_path: Path) -> None:
        class Forgetful(ToyLandscapeProblem):
            def fit_landscapes(
                self, num_plans: int, on_status: Callable[[str], None] = lambda message: None
            ) -> dict[str, BankFacts]:
                facts = super().fit_landscapes(num_plans, on_status)
                self.num_plans.clear()
                return facts

        with pytest.raises(ValueError, match="needs what landscapes predict of l2, got nothing"):
            evolve_problem(Forgetful(), LANDSCAPE, tmp_path)


def test_a_guess_that_is_invalid_is_recorded_and_never_verified(tmp_path: Path) -> None:
    class Picky(ToyLandscapeProblem):
        def behaviours(self, functions: Sequence[Expression]) -> list[Behaviour | Invalid]:
            found = super().behaviours(functions)
            return [
                Invalid("task fashion, base 1: not finite") if "P" in f.operands else b
                for f, b in zip(functions, found, strict=True)
            ]

    recorder = Recorder()
    result = evolve_problem(
        Picky(), LANDSCAPE.replace(generations=1), tmp_path, guesses=["mean(P)/mean(Q)"], callbacks=[recorder]
    )
    (guess,) = [c for c in result.state.candidates if c.origin == "guess"]
    assert (guess.status, guess.reason) == ("invalid", "task fashion, base 1: not finite")
    assert any(
        "is left out, because it is invalid: task fashion, base 1" in told for told in recorder.messages
    )
    assert guess.id not in result.state.fitnesses
    tried = {line["candidate"] for line in lines(tmp_path, "trial")}
    assert not any("P" in result.state.candidates[id_].expression.operands for id_ in tried)


def test_another_bank_is_told(whole: tuple[SearchResult, Path], tmp_path: Path) -> None:
    shutil.copytree(whole[1], tmp_path / "run")
    for digest, is_told in (("d0", False), ("d1", True)):
        problem, recorder = ToyLandscapeProblem(), Recorder()
        problem.bank_digest = digest
        evolve_problem(problem, LANDSCAPE, tmp_path / "run", resume=True, callbacks=[recorder])
        told = "The bank of plans of digits, fashion is another than before"
        assert any(message.startswith(told) for message in recorder.messages) == is_told


def test_one_task_with_one_base(tmp_path: Path) -> None:
    result = evolve_problem(ToyLandscapeProblem([TaskInfo("only")]), TINY, tmp_path)
    assert result.best.is_verified and num_bases(result, result.best.candidate) == {"only": 1}


@pytest.mark.parametrize("joint", ["geometric", "arithmetic"])
def test_fitness_in_percent_of_accuracy(tmp_path: Path, joint: str) -> None:
    config = LANDSCAPE.replace(generations=1, joint=joint)
    result = evolve_problem(ToyLandscapeProblem(), config, tmp_path)
    reference = {name: scale.reference for name, scale in result.state.scales.items()}
    l2 = result.state.individual(0)
    expected = (reference["digits"] * 2 + reference["fashion"]) / 3
    assert l2.fitness.mean == pytest.approx(expected, abs=0.5) and l2.is_verified
    assert result.best.is_verified and result.best.value - result.best.cost >= l2.value - l2.cost


class TestEarlierRuns:
    @pytest.mark.parametrize("joint", ["paired", "geometric", "arithmetic"])
    def test_they_go_on_and_end_the_same(self, tmp_path: Path, joint: str) -> None:
        config = SMALL.replace(joint=joint)
        evolve_problem(ToyProblem(), config.replace(generations=2), tmp_path / "run")
        as_earlier(tmp_path / "run", joint)
        state = load_run(tmp_path / "run", ToyProblem())
        assert (state.config.fitness, state.config.joint) == ("finetune", joint)
        result = evolve_problem(ToyProblem(), config, tmp_path / "run", resume=True)
        expected = evolve_problem(ToyProblem(), config, tmp_path / "whole")
        assert result.best == expected.best
        assert contents(tmp_path / "run")[1:] == contents(tmp_path / "whole")[1:]
        written = json.loads((tmp_path / "run" / "config.json").read_text())["config"]
        assert (written["fitness"], written["joint"]) == ("finetune", joint)

    def test_other_settings_are_refused_by_their_names_of_today(self, tmp_path: Path) -> None:
        evolve_problem(ToyProblem(), SMALL.replace(generations=0), tmp_path)
        as_earlier(tmp_path, "geometric")
        before = (tmp_path / "state.json").read_bytes()
        for problem, config, message in (
            (ToyProblem(), SMALL, r"settings: joint was 'geometric' and is now 'paired'\. Resume"),
            (
                ToyLandscapeProblem(),
                SMALL.replace(fitness="landscape"),
                "fitness was 'finetune' and is now 'lands",
            ),
        ):
            with pytest.raises(RunDirectoryError, match=message):
                evolve_problem(problem, config, tmp_path, resume=True)
        assert (tmp_path / "state.json").read_bytes() == before

    @given(st.sampled_from(["paired", "geometric", "arithmetic"]), st.integers(0, 99))
    @settings(max_examples=10)
    def test_their_settings_are_read_by_name(self, joint: str, seed: int) -> None:
        config = EvolveConfig.from_json({"fitness": joint, "seed": seed})
        assert config == EvolveConfig(fitness="finetune", joint=joint, seed=seed)  # type: ignore[arg-type]
        assert EvolveConfig.from_json(config.to_json()) == config

"""The loop of a search: proposes, evaluates and saves generation by generation, and verifies the leaders at the end."""

from __future__ import annotations

import dataclasses
import gc
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TypeVar

from jaxprune.interrupts import Interrupts, SearchInterrupted
from jaxprune.search.callbacks import notify
from jaxprune.search.evaluation import (
    FAILURES,
    Record,
    SearchStopped,
    evaluate,
    report_failure,
    stop_if_asked,
    verify,
)
from jaxprune.search.finishing import simplified_winner, tuned_leaders, without_finish
from jaxprune.search.problem import BankFacts, BatchedProblem, LandscapeProblem, RowUse
from jaxprune.search.proposals import ProposalBatch, propose
from jaxprune.search.run_directory import RunDirectory
from jaxprune.search.serialization import candidate_to_json
from jaxprune.search.state import Candidate, SearchState, guesses_without_operands, lost_guesses
from jaxprune.search.update import archive_of, tell, tell_verified

T = TypeVar("T")

BLIND = 0.2
"""Below this correlation a landscape cannot tell plans apart."""


class Generations:
    """Asks, evaluates, tells and saves a checkpoint, generation by generation."""

    def __init__(
        self,
        run: RunDirectory,
        interrupts: Interrupts,
        callbacks: Sequence[object],
        time_limit_seconds: float | None,
    ) -> None:
        assert run.journal is not None, "open_run comes first"
        self.run, self.journal, self.interrupts, self.callbacks = run, run.journal, interrupts, callbacks
        self.deadline = None if time_limit_seconds is None else time.monotonic() + time_limit_seconds

    def until_stopped(self, state: SearchState) -> tuple[SearchState, str]:
        """Runs generations until a stop; returns the last complete state and the reason."""
        stopped = "generations"
        _take_row_use(state)  # what is done from here on counts
        try:
            if state.has_landscapes:
                state = self._with_landscapes(state)
            while state.generation <= state.config.generations and stopped == "generations":
                try:
                    state = self._generation(without_finish(state) if state.verified_at else state)
                except SearchStopped as stop:
                    self._raise_if_interrupted(state)
                    stopped = str(stop)
            if state.has_landscapes and state.verified_at != state.generation:
                state = self._verified(state)
        except (KeyboardInterrupt, SearchStopped):
            self._raise_if_interrupted(state)
            raise
        return state, stopped

    def _with_landscapes(self, state: SearchState) -> SearchState:
        """Measures what is missing in the banks of plans, and refuses tasks that cannot tell plans apart."""
        problem = state.problem
        assert isinstance(problem, LandscapeProblem)

        def on_status(message: str) -> None:
            notify(self.callbacks, "on_status", message)

        def fit() -> Mapping[str, BankFacts]:
            return problem.fit_landscapes(state.config.plans, on_status)

        with self.interrupts.at_once():  # every plan that is fine-tuned is on the disk
            banks = self._retried(fit, "training base networks or measuring banks of plans")
        blind = {name: facts for name, facts in banks.items() if not facts.correlation >= BLIND}
        if blind and not state.config.force:
            raise ValueError(
                "a landscape needs tasks on which it predicts plans it was not fitted to, with a correlation of "
                f"{BLIND} or more, got {', '.join(f'{blind[name].correlation:.2f} on {name}' for name in blind)}. "
                "There is little to search for: use a harsher schedule, more bases or plans, or other data (jaxprune "
                "calibrate shows more). force=True with resume=True (--force --resume) goes on all the same."
            )
        for name, facts in banks.items():
            message = f"Bank of {name}: {facts.plans} plans; correlation with plans held out {facts.correlation:.2f}."
            notify(self.callbacks, "on_message", message)
        changed = [name for name, facts in state.banks.items() if facts.digest != banks[name].digest]
        if changed:
            self.run.notice(
                f"The bank of plans of {', '.join(changed)} is another than before (measured again elsewhere?). "
                "New functions are judged by it, those found before by the earlier one."
            )
        return dataclasses.replace(state, banks=banks)

    def _verified(self, state: SearchState) -> SearchState:
        """Fine-tunes the leaders, and writes the outcome to the journal."""
        started = time.monotonic()
        notify(self.callbacks, "on_status", "verifying the leaders by fine-tuning")
        with self.interrupts.at_once():
            tuned = self._retried(lambda: tuned_leaders(state), "scoring for the verification")
        for candidate in tuned:
            self._save(candidate)
        finished = dataclasses.replace(state, candidates=(*state.candidates, *tuned))
        records = verify(
            finished,
            on_record=self._save,
            on_retry=self.run.notice,
            should_stop=lambda: "interrupted" if self._reason_to_stop(state) == "interrupted" else None,
            recorded=self.journal.recorded_outcomes(),
        )
        after = tell_verified(finished, records)
        with self.interrupts.at_once():
            simpler = self._retried(lambda: simplified_winner(after), "scoring for the verification")
        for candidate in simpler:
            self._save(candidate)
        after = dataclasses.replace(after, candidates=(*after.candidates, *simpler))
        after = dataclasses.replace(after, archive=archive_of(after))
        best, seconds = after.ranked()[0], time.monotonic() - started
        line = {
            "generation": after.generation - 1,
            "best_id": best.candidate.id,
            "best_mean": best.fitness.mean,
        }
        self.journal.write({"kind": "verification", **line, "seconds": seconds})
        self.run.checkpoint(after)
        count, spent = len(after.verified), after.evaluations - state.evaluations
        idle_share = _take_row_use(state).idle_share
        idle = "" if idle_share is None else f" Idle share of devices: {idle_share:.0%}."
        message = f"Verified by {spent} fine-tunings: {count} functions on all search bases.{idle}"
        notify(self.callbacks, "on_message", message)
        return after

    def _generation(self, state: SearchState) -> SearchState:
        """Runs one generation, writes it to the journal and saves it."""
        started = time.monotonic()
        reason_to_stop = partial(self._reason_to_stop, state)
        stop_if_asked(reason_to_stop)
        limited = self._limited_as_recorded(state)
        with self.interrupts.at_once(partial(stop_if_asked, reason_to_stop)):  # lost proposals come again
            batch = self._propose(limited)
        if not batch.proposals:
            raise SearchStopped("exhausted" if batch.tally.proposed else "evaluations")
        self._tell_lost_guesses(state, batch)
        if state.generation == 0:
            for name, facts in state.banks.items():
                self.journal.write({"kind": "bank", "task": name, **dataclasses.asdict(facts)})
        records = evaluate(
            state,
            batch.proposals,
            on_record=self._save,
            on_retry=self.run.notice,
            should_stop=reason_to_stop,
            recorded=self.journal.recorded_outcomes(),
        )
        seconds, use = time.monotonic() - started, _take_row_use(state)
        after = tell(state, records, tally=batch.tally, seconds=seconds, use=use)
        summary = after.summaries[-1]
        line = dataclasses.asdict(summary) | {"max_evaluations": limited.config.max_evaluations}
        del line["row_seconds"], line["idle_seconds"]  # which depend on the devices
        self.journal.write({"kind": "generation", **line})
        self.run.checkpoint(after)
        notify(self.callbacks, "on_generation", summary)
        return after

    def _limited_as_recorded(self, state: SearchState) -> SearchState:
        """The state with the limit on fine-tunings that the next generation had, if the journal holds it already."""
        line = self.journal.next_generation() or {}
        if line.get("generation") != state.generation or "max_evaluations" not in line:
            return state
        config = state.config.replace(max_evaluations=line["max_evaluations"])
        return dataclasses.replace(state, config=config)

    def _propose(self, state: SearchState) -> ProposalBatch:
        """Calls `propose`, which scores and trains base networks."""
        action = f"training base networks or scoring for generation {state.generation}"
        return self._retried(lambda: propose(state, lambda: self._reason_to_stop(state)), action)

    def _retried(self, act: Callable[[], T], action: str) -> T:
        """Does something, and tries again after an infrastructure error."""
        failures = 0
        while True:
            try:
                return act()
            except FAILURES as error:
                failures += 1
                report_failure(action, failures, error, self.run.notice)
            gc.collect()  # frees device buffers that the traceback held

    def _tell_lost_guesses(self, state: SearchState, batch: ProposalBatch) -> None:
        """Tells the user which others of the given formulas cannot be scored, and why."""
        for guess in lost_guesses([proposal.candidate for proposal in batch.proposals]):
            if guess.text not in guesses_without_operands(state):  # which were told before the training
                self.run.notice(f"The guess {guess.text} is left out, because it is invalid: {guess.reason}.")

    def _save(self, record: Record) -> None:
        """Writes a record to the journal and reports fine-tunings."""
        if isinstance(record, Candidate):
            self.journal.write({"kind": "candidate", **candidate_to_json(record)})
            return
        if not record.is_cached:
            plain = dataclasses.asdict(record)
            del plain["is_cached"]
            self.journal.write({"kind": "trial", **plain})
        notify(self.callbacks, "on_evaluation", record)

    def _reason_to_stop(self, state: SearchState) -> str | None:
        if self.interrupts.hung_up:
            self.interrupts.hung_up = False
            self.run.event("hung up", "the terminal was closed; the run goes on")
        if self.interrupts.received is not None:
            return "interrupted"
        is_late = self.deadline is not None and time.monotonic() >= self.deadline
        return "time" if is_late and state.generation > 0 else None

    def _raise_if_interrupted(self, state: SearchState) -> None:
        if (number := self.interrupts.received) is None:
            return
        message = (
            f"stopped by signal {number} after {state.generation} complete generation(s) and {state.evaluations} "
            f"fine-tunings in them. Everything is saved in {self.run.path}; go on with resume=True (--resume)."
        )
        self.run.event("interrupted", message)
        raise SearchInterrupted(message, number)


def _take_row_use(state: SearchState) -> RowUse:
    """How rows of fine-tunings were used since the last call; nothing where a problem trains none."""
    return state.problem.take_row_use() if isinstance(state.problem, BatchedProblem) else RowUse()

"""The sections of a report on the final comparison, as Markdown text: verdict, results, optimism."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jaxprune.comparison.final_comparison import DRAWS
from jaxprune.comparison.finals import RANDOM_SEARCH, WINNER, Finals
from jaxprune.comparison.measurements import Split
from jaxprune.comparison.results import Comparison, SummaryRow
from jaxprune.comparison.verdicts import Verdict, overall_verdict, task_verdict
from jaxprune.report.pooled_sections import pooled_verdict, why_not_pooled
from jaxprune.search.finishing import SIMPLIFIED, TUNED
from jaxprune.search.state import Individual, SearchState, ending
from jaxprune.text import markdown_table, with_error

UNIT = "standard deviations of the library functions on the task (sd), as the search combines them"

_ORIGINS = {
    "random": "random generation",
    "subtree": "subtree mutation",
    "point": "point mutation",
    "hoist": "hoisting a part",
    "constants": "changing constants",
    TUNED: "tuning the constants of a leader",
    SIMPLIFIED: "leaving out parts that change no plan",
}
"""Names of variations, as they are written in a report."""


@dataclass(frozen=True)
class Run:
    """Everything that a report is written from.

    Args:
      name: of the run directory.
      state: of the finished search.
      finals: the final comparison; None if it has not run.
      stopped: why the search ended; empty if that is unknown.
      openings: task name -> times at which its test images were opened.
    """

    name: str
    state: SearchState
    finals: Finals | None
    stopped: str
    openings: Mapping[str, tuple[str, ...]]

    @property
    def ending(self) -> str:
        """A sentence on why the search ended early, after a space; empty if it did not."""
        return f" {sentence}" if (sentence := ending(self.state, self.stopped)) else ""

    @property
    def is_pooled(self) -> bool:
        """Whether the verdict is about all tasks together, in sd of known functions."""
        return self.finals is not None and self.state.has_landscapes and not why_not_pooled(self.finals)

    @property
    def winner(self) -> Individual:
        """The winner with its fitness on the search bases."""
        return self.state.ranked()[0] if self.finals is None else self.state.individual(self.finals.winner_id)

    def verdicts(self, other: str, on: Split = "validation") -> dict[str, Verdict | None]:
        """Judges the winner against another row of the final comparison.

        Args:
          other: name of the row.
          on: which images.

        Returns:
          Task name -> verdict, None if there is none; of several searched tasks, "" holds the verdict on all of these
          together. Unseen tasks come last.
        """
        assert self.finals is not None
        comparison, tasks = self.finals.comparison, self.state.tasks
        verdicts = {
            name: task_verdict(comparison, name, WINNER, other, on=on)
            for name in (*(task.name for task in tasks), *self.finals.unseen)
        }
        searched = {task.name: verdicts.pop(task.name) for task in tasks}
        if len(tasks) > 1:
            searched[""] = overall_verdict(searched, tasks, self.state.scales)
        return {**searched, **verdicts}


def verdict_section(run: Run) -> str:
    """Writes the verdict: better than, not distinguishable from, or worse than what there was before the search."""
    formula = f"`{run.winner.candidate.text}`"
    if run.finals is None:
        return (
            "> **Verdict: none yet.** The final comparison has not run, so nothing here has been checked on base "
            "networks that the search did not see; numbers from the search bases alone are optimistic. Go on with "
            f"`jaxprune evolve --resume` to run it.{run.ending}\n\nLeader on the search bases: {formula}"
        )
    best = run.finals.best_start
    lines = _pooled_lines(run) if run.is_pooled else _task_lines(run)
    return "\n".join(lines) + f"\n\nThe winner: {formula}\n\n{_origin_line(run, best)}"


def _pooled_lines(run: Run) -> list[str]:
    """Returns the lines of a verdict over all tasks, and one for each task."""
    assert run.finals is not None
    others = _others(run.finals.best_start)
    verdicts = {other: run.verdicts(other) for other in others}
    lines = pooled_verdict(run.finals)
    if run.ending:
        lines.insert(lines.index(">"), f">{run.ending}")
    for task in run.finals.comparison.task_names:
        judgements = "; ".join(_judgement(verdicts[other][task], f"`{other}`", "points") for other in others)
        unseen = " (unseen)" if task in run.finals.unseen else ""
        lines.append(f"> - {task}{unseen}, validation images: {judgements}.")
    return lines


def _task_lines(run: Run) -> list[str]:
    """Returns the lines of a verdict by the tasks of the search, with one for each unseen task."""
    assert run.finals is not None
    best = run.finals.best_start
    others = _others(best)
    names = {
        best: f"the best start formula `{best}`",
        "l2": "l2, the best start formula" if best == "l2" else "l2",
    }
    validation, test = ({other: run.verdicts(other, on) for other in others} for on in ("validation", "test"))
    tasks = [task.name for task in run.state.tasks]
    is_joint = len(tasks) > 1
    key, unit = ("", "sd") if is_joint else (tasks[0], "points")
    scope = ", over all tasks," if is_joint else ""
    judgements = " and ".join(_judgement(validation[other][key], names[other], unit) for other in others)
    counts = [len(facts.base_accuracies) for facts in run.finals.comparison.tasks if facts.name in tasks]
    bases = f"{sum(counts)} base network{'' if sum(counts) == 1 else 's'}"
    bases += f" ({' + '.join(map(str, counts))})" if len(counts) > 1 else ""
    lines = [f"> **Verdict.** The winner is {judgements}{scope} on {bases} that the search never saw."]
    if best == WINNER:
        result = "the search found nothing better" if _has_searched(run) else "no new formula was evaluated"
        lines[0] += f" It is the best start formula itself: {result}."
    lines[0] += run.ending
    details = [(task, validation, task, "points") for task in tasks] if is_joint else []
    details += [(f"{task} (unseen)", validation, task, "points") for task in run.finals.unseen]
    if (on_test := test["l2"][key]) is not None and on_test.n:
        details.append((f"on test images{scope.rstrip(',')}", test, key, unit))
    for name, verdicts, task, points in details:
        judgements = "; ".join(_judgement(verdicts[other][task], f"`{other}`", points) for other in others)
        lines += [*([">"] if len(lines) == 1 else []), f"> - {name}: {judgements}."]
    return lines


def results_section(run: Run) -> str:
    """Writes the comparison on the final bases, with one table per task."""
    finals = run.finals
    assert finals is not None
    overall = f", and over all searched tasks {UNIT}" if len(run.state.tasks) > 1 else ""
    parts = [
        "## Results on the final bases",
        _verdict_table(run),
        f"Units: points of accuracy{overall}. A difference counts when its 95 % interval (Student's t) leaves out 0; "
        "several are judged, and of those without substance one in twenty will pass. Every difference is "
        "paired: same base network, same data order. n, means and standard errors count base networks. "
        "The base networks are new to the winner, the validation images are not: the search selected on them. "
        f"{_openings(run)}",
        *(_task_table(finals.comparison, task) for task in finals.comparison.task_names),
        _legend(finals),
        "![Paired differences to l2 with intervals](figures/ranks.png)",
    ]
    if finals.random_search is not None:
        parts.append(_random_search(run, finals.random_search))
    return "\n\n".join(parts)


def _random_search(run: Run, control: Mapping[str, Any]) -> str:
    """Returns what the random search of equal budget did, and how the winner compares with its best."""
    is_joint = len(run.state.tasks) > 1
    verdict = run.verdicts(RANDOM_SEARCH)["" if is_joint else run.state.tasks[0].name]
    bank = " on the same bank, with the same verification," if run.state.has_landscapes else ""
    return (
        f"The random search of equal budget{bank} ran {control['evaluations']} fine-tunings for "
        f"{control['candidates']} candidates (the search: {run.state.evaluations}); its best on the search bases, "
        f"made by {control['origin']}, reached {control['mean']:+.2f} ± {control['se']:.2f} there. On the final "
        f"bases the winner is {_judgement(verdict, 'it', 'sd' if is_joint else 'points')}."
    )


def _verdict_table(run: Run) -> str:
    """Returns a table of the winner against l2 and the best start formula, on each task and on all searched ones."""
    assert run.finals is not None
    rows = []
    for other in _others(run.finals.best_start):
        on_test = run.verdicts(other, "test")
        for task, verdict in run.verdicts(other).items():
            if verdict is not None:
                scope = f"{task} (points)" if task else "all tasks (sd)"
                cells = [cell for each in (verdict, on_test[task]) for cell in _verdict_cells(each)]
                rows.append([f"`{other}`", scope, str(verdict.n), *cells])
    header = ["winner against", "on", "n bases", "validation ± SE", "verdict", "test ± SE", "verdict"]
    return markdown_table(header, rows)


def optimism_section(run: Run) -> str:
    """Writes how much of the difference that the search saw is left on new bases."""
    state, scales, id_ = run.state, run.state.scales, run.winner.candidate.id
    verdicts = run.verdicts("l2")
    total_weight = sum(task.weight for task in state.tasks)
    predicted, measured = state.predicted.get(id_), state.verified.get(id_, run.winner.fitness)
    rows, totals = [], [0.0, 0.0]
    for task in state.tasks:
        share = task.weight / total_weight / scales[task.name].spread
        on_landscape = 0.0 if predicted is None else predicted.tasks[task.name].difference
        searched = measured.tasks[task.name]
        totals = [totals[0] + share * on_landscape, totals[1] + share * searched.difference]
        verdict = verdicts[task.name]
        final, optimism = "invalid", ""
        if verdict is not None and verdict.n:
            final = f"{verdict.mean:+.2f} (n = {verdict.n})"
            optimism = f"{searched.difference - verdict.mean:+.2f}"
        cells = [f"{searched.difference:+.2f} (n = {searched.bases})", final, optimism]
        rows.append([f"{task.name} (points)", f"{on_landscape:+.2f}", *cells])
    verdict = verdicts.get("")
    if verdict is not None and verdict.n:
        differences = (*totals, verdict.mean, totals[1] - verdict.mean)
        rows.append(["all tasks (sd)", *(f"{difference:+.2f}" for difference in differences)])
    header = ["", "predicted", "search bases", "final bases", "optimism"]
    if predicted is None:
        header, rows = [header[0], *header[2:]], [[row[0], *row[2:]] for row in rows]
    landscape = (
        "" if predicted is None else " What the landscapes predicted for the search bases is beside it."
    )
    return "\n\n".join(
        [
            "## Optimism",
            "The winner was chosen because it did well on the search bases, so part of its value there is luck: the "
            f"difference to l2 on the search bases, minus that on the final ones.{landscape}",
            markdown_table(header, rows),
        ]
    )


def _has_searched(run: Run) -> bool:
    """Whether any generation after the start formulas was completed."""
    return run.state.generation > 1


def _others(best_start: str) -> list[str]:
    """Returns the rows that the winner is judged against: l2, and the best start formula if it is another one."""
    return ["l2"] if best_start in ("l2", WINNER) else ["l2", best_start]


def _judgement(verdict: Verdict | None, other: str, unit: str) -> str:
    """Returns a verdict as a part of a sentence."""
    if verdict is None:
        return f"not comparable with {other}, which is invalid on some final base"
    if verdict.judgement == "invalid beside":
        return f"**invalid** on some final base, so it cannot replace {other}"
    base = "; one base cannot tell" if verdict.se is None else ""
    return f"**{verdict.judgement}** {other} ({verdict} {unit}{base})"


def _verdict_cells(verdict: Verdict | None) -> list[str]:
    """Returns a verdict as two cells of a table."""
    return ["", ""] if verdict is None else [str(verdict), verdict.judgement.removesuffix(" than")]


def _origin_line(run: Run, best: str) -> str:
    """Returns a sentence on where the winner comes from."""
    candidate = run.winner.candidate
    if candidate.generation == 0 and candidate.origin not in (TUNED, SIMPLIFIED):
        name = "a given formula" if candidate.origin == "guess" else f"`{candidate.origin.split(':')[-1]}`"
        outcome = ": no new formula came out ahead of it on the search bases" if _has_searched(run) else ""
        return f"It is {name}, which the search started from{outcome}."
    start = f"; the best start formula on the search bases was `{best}`" if best else ""
    origin = _ORIGINS.get(candidate.origin, candidate.origin.replace("_", " "))
    return (
        f"Complexity {candidate.complexity}; candidate {candidate.id}, made in generation {candidate.generation} by "
        f"{origin}{start}."
    )


def _openings(run: Run) -> str:
    """Returns a sentence on when test images were opened."""
    if not run.openings:
        return "No test images were opened."
    times = ", ".join(sorted({time for opened in run.openings.values() for time in opened}))
    count = max(len(opened) for opened in run.openings.values())
    often = "once" if count == 1 else f"{count} times (an interrupted or repeated report), each on record"
    tasks = ", ".join(run.openings)
    return f"Test images of {tasks} were opened {often}, at {times}, and nothing was chosen by them."


def _task_table(comparison: Comparison, task: str) -> str:
    """Returns the heading, the table and the invalid rows of one task."""
    facts = next(facts for facts in comparison.tasks if facts.name == task)
    rows = [row for row in comparison.summary() if row.task == task]
    has_test = any(row.test is not None for row in rows)
    accuracies = facts.base_accuracies
    kept = ", ".join(
        f"{name.removesuffix('.kernel')} {facts.kept[name]} of {width}"
        for name, width in facts.widths.items()
    )
    header = ["function", "n bases", "validation % ± SE", "difference to l2 ± SE", "wins/ties/losses"]
    header += ["test %", "test difference ± SE"] if has_test else []
    parts = [
        f"### {task}",
        f"{len(accuracies)} final base network{'' if len(accuracies) == 1 else 's'} with "
        f"{sum(accuracies) / len(accuracies):.1f} % validation accuracy before pruning; channels kept: {kept}.",
        markdown_table([*header, "complexity"], [_cells(row, has_test) for row in rows if row.n]),
    ]
    parts += [f"- `{row.name}` is invalid: {row.reason}" for row in rows if not row.n]
    return "\n\n".join(parts)


def _cells(row: SummaryRow, has_test: bool) -> list[str]:
    """Returns the cells of one function in the table of a task."""
    is_reference = row.name == "l2"
    name = f"**{row.name}**" if row.name == WINNER else row.name
    difference = with_error(row.difference, row.difference_se, signed=True)
    cells = [name, str(row.n), with_error(row.mean, row.se)]
    cells += ["", ""] if is_reference else [difference, f"{row.wins}/{row.ties}/{row.losses}"]
    if has_test:
        test_difference = with_error(row.test_difference, row.test_difference_se, signed=True)
        cells += [with_error(row.test, None), "" if is_reference else test_difference]
    return [*cells, "" if row.complexity is None else str(row.complexity)]


def _legend(finals: Finals) -> str:
    """Returns a list of the functions with their roles and formulas, and of the controls."""
    roles = {name: f" ({role})" for name, role in finals.roles.items()}
    lines = [f"- {name}{roles.get(name, '')}: `{text}`" for name, text in finals.formulas.items()]
    lines.append(f"- random: mean over {DRAWS} random plans per base")
    lines.append(
        "- scratch: the slim network, trained from a fresh initialisation with the recipe of the fine-tuning"
    )
    return "\n".join(lines)

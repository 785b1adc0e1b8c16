"""The sections of a run's report on its final comparison: verdict, results, optimism; as Markdown text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from jaxprune.comparison.final_comparison import DRAWS, RANDOM_SEARCH, WINNER, Finals
from jaxprune.comparison.measurements import Split
from jaxprune.comparison.results import Comparison, SummaryRow
from jaxprune.comparison.verdicts import Verdict, overall_verdict, task_verdict
from jaxprune.search.state import Individual, SearchState
from jaxprune.text import markdown_table, with_error

UNIT = "standard deviations of the library functions on the task (sd), as the search combines them"


@dataclass(frozen=True)
class Run:
    """All that a report is written from.

    Args:
      name: of the run directory.
      state: the finished search.
      finals: the final comparison, or None where it has not run.
      stopped: why the search ended, "" where unknown.
      openings: task -> times at which its test images were opened.
    """

    name: str
    state: SearchState
    finals: Finals | None
    stopped: str
    openings: Mapping[str, tuple[str, ...]]

    @property
    def winner(self) -> Individual:
        """The winner with its fitness on the search bases."""
        return self.state.ranked()[0] if self.finals is None else self.state.member(self.finals.winner_id)

    def verdicts(self, other: str, on: Split = "validation") -> dict[str, Verdict | None]:
        """Task -> the winner against another row; the key "" holds several tasks together."""
        assert self.finals is not None
        comparison, tasks = self.finals.comparison, self.state.tasks
        found = {task.name: task_verdict(comparison, task.name, WINNER, other, on=on) for task in tasks}
        return found if len(tasks) == 1 else {**found, "": overall_verdict(found, tasks, self.state.scales)}


def verdict_section(run: Run) -> str:
    """The verdict first: better than, not distinguishable from, or worse than l2 and the best start formula."""
    formula = f"`{run.winner.candidate.text}`"
    if run.finals is None:
        return (
            "> **Verdict: none yet.** The final comparison has not run, so nothing here has been checked on base "
            "networks that the search did not see; numbers from the search bases alone are optimistic. Go on with "
            f"`jaxprune evolve --resume` to run it.\n\nLeader on the search bases: {formula}"
        )
    best = run.finals.best_start
    others = ["l2"] if best in ("l2", WINNER) else ["l2", best]
    names = {
        best: f"the best start formula `{best}`",
        "l2": "l2, the best start formula" if best == "l2" else "l2",
    }
    found, tested = [{other: run.verdicts(other, on) for other in others} for on in ("validation", "test")]
    tasks = [task.name for task in run.state.tasks]
    is_joint = len(tasks) > 1
    whole, unit = ("", "sd") if is_joint else (tasks[0], "points")
    scope = ", over all tasks," if is_joint else ""
    said = " and ".join(_judgement(found[other][whole], names[other], unit) for other in others)
    lines = [f"> **Verdict.** The winner is {said}{scope} on {_bases(run)} that the search never saw."]
    if best == WINNER:
        lines[0] += " It is the best start formula itself: the search found nothing better."
    details = [(task, found, task, "points") for task in tasks] if is_joint else []
    if (on_test := tested["l2"][whole]) is not None and on_test.n:
        details.append((f"on test images{scope.rstrip(',')}", tested, whole, unit))
    for place, verdicts, key, points in details:
        said = "; ".join(_judgement(verdicts[other][key], f"`{other}`", points) for other in others)
        lines += [*([">"] if len(lines) == 1 else []), f"> - {place}: {said}."]
    return "\n".join(lines) + f"\n\nThe winner: {formula}\n\n{_origin_line(run, best)}"


def results_section(run: Run) -> str:
    """The comparison on the final bases, one table per task."""
    finals = run.finals
    assert finals is not None
    best = finals.best_start
    rows = []
    others = ["l2"] + ([best] if best not in ("l2", WINNER) else [])
    for other in others:
        found, on_test = run.verdicts(other), run.verdicts(other, "test")
        for task, verdict in found.items():
            if verdict is not None:
                scope = f"{task} (points)" if task else "all tasks (sd)"
                rows.append([f"`{other}`", scope, str(verdict.n), *_shown(verdict), *_shown(on_test[task])])
    header = ["winner against", "on", "n bases", "validation ± SE", "verdict", "test ± SE", "verdict"]
    overall = f", and over all tasks {UNIT}" if len(run.state.tasks) > 1 else ""
    parts = [
        "## Results on the final bases",
        markdown_table(header, rows),
        f"Units: points of accuracy{overall}. A difference counts when its 95 % interval (Student's t) leaves out 0; "
        "several are judged, and of those without substance one in twenty will pass. Every difference is "
        "paired: same base network, same data order. n, means and standard errors count base networks. "
        "The base networks are new to the winner, the validation images are not: the search selected on them. "
        f"{_openings(run)}",
        *(_task_table(finals.comparison, task.name) for task in run.state.tasks),
        _legend(finals),
        "![Paired differences to l2 with intervals](figures/ranks.png)",
    ]
    if finals.random_search is not None:
        control, unit = finals.random_search, "sd" if len(run.state.tasks) > 1 else "points"
        parts.append(
            f"The random search of equal budget ran {control['evaluations']} fine-tunings for "
            f"{control['candidates']} candidates (the search: {run.state.evaluations}); its best on the search bases, "
            f"made by {control['origin']}, reached {control['mean']:+.2f} ± {control['se']:.2f} there. On the final "
            f"bases the winner is {_judgement(list(run.verdicts(RANDOM_SEARCH).values())[-1], 'it', unit)}."
        )
    return "\n\n".join(part for part in parts if part)


def optimism_section(run: Run) -> str:
    """How much of what the search saw is left on new bases."""
    finals, scales = run.finals, run.state.scales
    assert finals is not None
    found = run.verdicts("l2")
    total = sum(task.weight for task in run.state.tasks)
    rows, overall = [], 0.0
    for task in run.state.tasks:
        searched = run.winner.fitness.tasks[task.name]
        overall += task.weight / total * searched.difference / scales[task.name].spread
        verdict = found[task.name]
        final = "invalid" if verdict is None or not verdict.n else f"{verdict.mean:+.2f} (n = {verdict.n})"
        left = "" if verdict is None or not verdict.n else f"{searched.difference - verdict.mean:+.2f}"
        rows.append(
            [f"{task.name} (points)", f"{searched.difference:+.2f} (n = {searched.bases})", final, left]
        )
    verdict = found.get("")
    if verdict is not None and verdict.n:
        rows.append(
            [
                "all tasks (sd)",
                f"{overall:+.2f}",
                f"{verdict.mean:+.2f}",
                f"{overall - verdict.mean:+.2f}",
            ]
        )
    return "\n\n".join(
        [
            "## Optimism",
            "The winner was chosen because it did well on the search bases, so part of its value there is luck: the "
            "difference to l2 on the search bases, minus that on the final ones.",
            markdown_table(["", "search bases", "final bases", "optimism"], rows),
        ]
    )


def _shown(verdict: Verdict | None) -> list[str]:
    return ["", ""] if verdict is None else [str(verdict), verdict.judgement.removesuffix(" than")]


def _judgement(verdict: Verdict | None, other: str, unit: str = "sd") -> str:
    if verdict is None:
        return f"not comparable with {other}, which is invalid on some final base"
    if verdict.judgement == "invalid beside":
        return f"**invalid** on some final base, so it cannot replace {other}"
    base = "; one base cannot tell" if verdict.se is None else ""
    return f"**{verdict.judgement}** {other} ({verdict} {unit}{base})"


def _bases(run: Run) -> str:
    assert run.finals is not None
    counts = [len(facts.base_accuracies) for facts in run.finals.comparison.tasks]
    total = f"{sum(counts)} base network{'' if sum(counts) == 1 else 's'}"
    return total if len(counts) == 1 else f"{total} ({' + '.join(map(str, counts))})"


def _origin_line(run: Run, best: str) -> str:
    candidate = run.winner.candidate
    if candidate.generation == 0:
        name = "a given formula" if candidate.origin == "guess" else f"`{candidate.origin.split(':')[-1]}`"
        return f"It is {name}, which the search started from: no new formula came out ahead of it on the search bases."
    start = f"; the best start formula on the search bases was `{best}`" if best else ""
    return (
        f"Complexity {candidate.complexity}; candidate {candidate.id}, made in generation {candidate.generation} by "
        f"{_how(candidate.origin)}{start}."
    )


def _how(origin: str) -> str:
    known = {
        "random": "random generation",
        "subtree": "subtree mutation",
        "point": "point mutation",
        "hoist": "hoisting a part",
        "constants": "changing constants",
    }
    return known.get(origin, origin.replace("_", " "))


def _openings(run: Run) -> str:
    if not run.openings:
        return "No test images were opened."
    times = sorted({time for found in run.openings.values() for time in found})
    count = max(len(found) for found in run.openings.values())
    often = "once" if count == 1 else f"{count} times (an interrupted or repeated report), each on record"
    tasks, when = ", ".join(run.openings), ", ".join(times)
    return f"Test images of {tasks} were opened {often}, at {when}, and nothing was chosen by them."


def _task_table(comparison: Comparison, task: str) -> str:
    facts = next(each for each in comparison.tasks if each.name == task)
    rows = [row for row in comparison.summary() if row.task == task]
    has_test = any(row.test is not None for row in rows)
    accuracies = facts.base_accuracies
    kept = ", ".join(
        f"{name.removesuffix('.kernel')} {facts.kept[name]} of {width}"
        for name, width in facts.widths.items()
    )
    header = ["function", "n bases", "validation % ± SE", "difference to l2 ± SE", "wins/ties/losses"]
    header += ["test %", "test difference ± SE"] if has_test else []
    header += ["complexity"]
    parts = [
        f"### {task}",
        f"{len(accuracies)} final base network{'' if len(accuracies) == 1 else 's'} with "
        f"{sum(accuracies) / len(accuracies):.1f} % validation accuracy before pruning; channels kept: {kept}.",
        markdown_table(header, [_cells(row, has_test) for row in rows if row.n]),
    ]
    parts += [f"- `{row.name}` is invalid: {row.reason}" for row in rows if not row.n]
    return "\n\n".join(parts)


def _cells(row: SummaryRow, has_test: bool) -> list[str]:
    is_reference = row.name == "l2"
    name = f"**{row.name}**" if row.name == WINNER else row.name
    difference = with_error(row.difference, row.difference_se, signed=True)
    cells = [name, str(row.n), with_error(row.mean, row.se)]
    cells += ["", ""] if is_reference else [difference, f"{row.wins}/{row.ties}/{row.losses}"]
    if has_test:
        tested = with_error(row.test_difference, row.test_difference_se, signed=True)
        cells += [with_error(row.test, None), "" if is_reference else tested]
    return [*cells, "" if row.complexity is None else str(row.complexity)]


def _legend(finals: Finals) -> str:
    lines = [
        f"- {name}{f' ({finals.roles[name]})' if name in finals.roles else ''}: `{text}`"
        for name, text in finals.formulas.items()
    ]
    lines.append(f"- random: mean over {DRAWS} random plans per base")
    lines.append(
        "- scratch: the slim network, trained from a fresh initialisation with the recipe of the fine-tuning"
    )
    return "\n".join(lines)

"""The sections of a run's report, as Markdown text from plain data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from jaxprune.display import duration
from jaxprune.evolution.measurements import Comparison, Split, SummaryRow
from jaxprune.evolution.population import Member, SearchState, ancestry
from jaxprune.evolution.tables import markdown_table, with_error
from jaxprune.finals import DRAWS, RANDOM_SEARCH, WINNER, Finals
from jaxprune.verdicts import Verdict, overall_verdict, task_verdict

MAX_ANCESTORS = 25
UNIT = "standard deviations of the library (sd)"


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
    def winner(self) -> Member:
        """The winner with its fitness on the search bases."""
        return self.state.ranked()[0] if self.finals is None else self.state.member(self.finals.winner_id)

    def verdicts(self, other: str, on: Split = "validation") -> dict[str, Verdict | None]:
        """Task -> the winner against another row; the key "" holds all tasks together."""
        assert self.finals is not None
        comparison, tasks = self.finals.comparison, self.state.tasks
        found = {task.name: task_verdict(comparison, task.name, WINNER, other, on=on) for task in tasks}
        return {**found, "": overall_verdict(found, tasks, self.state.scales)}


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
    against_l2, against_best = run.verdicts("l2"), run.verdicts(best)
    lines = [f"> **Verdict.** The winner is {_judgement(against_l2[''], 'l2')}"]
    if best != "l2":
        lines[0] += f" and {_judgement(against_best[''], f'the best start formula `{best}`')}"
    lines[0] += f", over all tasks, on {_bases(run)} that the search never saw."
    if len(run.state.tasks) > 1:
        for task in run.state.tasks:
            line = f"> - {task.name}: {_judgement(against_l2[task.name], 'l2', 'points')}"
            if best != "l2":
                line += f"; {_judgement(against_best[task.name], f'`{best}`', 'points')}"
            lines.append(f"{line}.")
        lines.insert(1, ">")
    origin = _origin_line(run, best)
    return "\n".join(lines) + f"\n\nThe winner: {formula}\n\n{origin}"


def results_section(run: Run) -> str:
    """The comparison on the final bases, one table per task."""
    finals = run.finals
    assert finals is not None
    best = finals.best_start
    rows = []
    others = ["l2"] + ([best] if best != "l2" else [])
    for other in others:
        found, on_test = run.verdicts(other), run.verdicts(other, "test")
        for task, verdict in found.items():
            if verdict is not None:
                scope = f"{task} (points)" if task else f"all tasks ({UNIT})"
                tested = on_test[task]
                rows.append(
                    [f"winner against `{other}`, {scope}", str(verdict.n), str(verdict), verdict.judgement.removesuffix(" than")]
                    + ["" if tested is None else str(tested), "" if tested is None else tested.judgement.removesuffix(" than")]
                )  # fmt: skip
    header = ["", "bases", "validation ± SE", "", "test ± SE", ""]
    parts = [
        "## Results on the final bases",
        markdown_table(header, rows),
        "A difference counts as one from two standard errors on. Every difference is paired: same base network, same "
        "data order. n, means and standard errors count base networks; the validation images are those the search "
        f"selected on, the base networks are new. {_openings(run)}",
        *(_task_table(finals.comparison, task.name) for task in run.state.tasks),
        _legend(finals),
        "![Paired differences to l2 with intervals](figures/ranks.png)",
    ]
    if finals.random_search is not None:
        control = finals.random_search
        parts.append(
            f"The random search of equal budget ran {control['evaluations']} fine-tunings for "
            f"{control['candidates']} candidates (the search: {run.state.evaluations}); its best on the search bases, "
            f"made by {control['origin']}, reached {control['mean']:+.2f} ± {control['se']:.2f} there. Against it the winner is "
            f"{_judgement(run.verdicts(RANDOM_SEARCH)[''], 'it').removesuffix(' it')}."
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
    verdict = found[""]
    if len(rows) > 1 and verdict is not None and verdict.n:
        rows.append(
            [
                f"all tasks ({UNIT})",
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


def formula_section(run: Run) -> str:
    """The winning formula: LaTeX, drawn tree, code, and where it comes from."""
    winner = run.winner
    expression, candidate = winner.expression, winner.candidate
    return "\n\n".join(
        [
            "## The winning formula",
            f"$$\n{expression.latex()}\n$$",
            f"Complexity {candidate.complexity}, {expression.size} nodes, reads {', '.join(sorted(expression.operands))}. "
            "Evaluated per class and averaged over classes; the channels with the lowest values are pruned.",
            "![The formula as a tree](figures/tree.png)",
            "As a self-contained JAX function:",
            f"```python\n{expression.code('jax').rstrip()}\n```",
            "### Ancestry",
            _ancestry_table(run.state, candidate.id),
        ]
    )


def behaviour_section(run: Run) -> str:
    """What the winner does: accuracy along the fine-tuning, kept channels, scores."""
    finals = run.finals
    assert finals is not None
    parts = [
        "## What it does",
        "![Accuracy over the fine-tuning](figures/curves.png)",
        "Lines are means over bases, bands one standard error. The fine-tuning is short on purpose: after a long one "
        "most functions end up alike, so what a pruning function buys is *early* accuracy.",
    ]
    for task in finals.views:
        parts.append(f"![Overlap of kept channels, {task}](figures/overlap-{task}.png)")
        parts.append(f"![Sorted scores, {task}](figures/scores-{task}.png)")
    parts.append(
        "Overlap and scores are those of the first pruning round on final base 0; two random plans share the fraction "
        "of channels that are kept. Scores are scaled to each function's own range."
    )
    return "\n\n".join(parts)


def search_section(run: Run) -> str:
    """What the search did, found and cost."""
    state = run.state
    front = [state.member(id_) for id_ in state.archive]
    rows = [
        [f"`{member.candidate.text}`", str(member.candidate.complexity), f"{member.fitness.mean:+.2f} ± {member.fitness.se:.2f}",
         str(sum(result.bases for result in member.fitness.tasks.values())), str(member.candidate.generation)]
        for member in reversed(front)
    ]  # fmt: skip
    return "\n\n".join(
        [
            "## The search",
            "![Fitness over generations](figures/fitness.png)",
            "![Fitness and complexity](figures/pareto.png)",
            "The Pareto front, on the search bases:",
            markdown_table(["function", "complexity", "fitness ± SE", "bases", "generation"], rows),
            "### Cost",
            markdown_table(["", ""], _cost(run)),
            f"Fitness: {_fitness(state)}. Seed {state.config.seed}; all settings are in `config.json`, every fine-tuning is in "
            "`journal.jsonl`.",
        ]
    )


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
        return (
            f"It is `{candidate.origin.split(':')[-1]}`, which the search started from: no new formula led it on the "
            "search bases."
        )
    start = f"; the best start formula on the search bases was `{best}`" if best else ""
    return (
        f"Complexity {candidate.complexity}; candidate {candidate.id}, made in generation {candidate.generation} by "
        f"{_how(candidate.origin)}{start}."
    )


def _how(origin: str) -> str:
    return {"random": "random generation", "guess": "the user"}.get(origin, origin.replace("_", " "))


def _openings(run: Run) -> str:
    if not run.openings:
        return "No test images were opened."
    times = sorted({time for found in run.openings.values() for time in found})
    count = max(len(found) for found in run.openings.values())
    often = "once" if count == 1 else f"{count} times (an interrupted or repeated report), each on record"
    return f"Test images of {', '.join(run.openings)} were opened {often}, at {', '.join(times)}, and nothing was chosen by them."


def _task_table(comparison: Comparison, task: str) -> str:
    facts = next(each for each in comparison.tasks if each.name == task)
    rows = [row for row in comparison.summary() if row.task == task]
    has_test = any(row.test is not None for row in rows)
    accuracies = facts.base_accuracies
    kept = ", ".join(
        f"{name.removesuffix('.kernel')} {facts.kept[name]} of {width}"
        for name, width in facts.widths.items()
    )
    header = ["function", "n bases", "validation % ± SE", "− l2 ± SE", "wins/ties/losses"]
    header += ["test %", "test − l2 ± SE"] if has_test else []
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


def _ancestry_table(state: SearchState, candidate_id: int) -> str:
    family = ancestry(state, candidate_id)
    shown = family[-MAX_ANCESTORS:]
    rows = []
    for candidate in reversed(shown):
        fitness = state.fitnesses.get(candidate.id)
        value = "" if fitness is None else f"{fitness.mean:+.2f} ± {fitness.se:.2f}"
        parents = ", ".join(map(str, candidate.parents))
        rows.append(
            [
                f"`{candidate.text}`",
                str(candidate.id),
                str(candidate.generation),
                candidate.origin,
                parents,
                value,
            ]
        )
    table = markdown_table(["formula", "id", "generation", "made by", "from", "fitness ± SE"], rows)
    hidden = len(family) - len(shown)
    return table + (f"\n\n{hidden} older ancestors are in `state.json`." if hidden else "")


def _cost(run: Run) -> list[list[str]]:
    state = run.state
    summaries = state.summaries

    def total(count: Callable[[Any], int]) -> int:
        return sum(count(summary) for summary in summaries)

    proposed, duplicates = total(lambda s: s.proposed), total(lambda s: s.duplicates)
    ended = f", ended by: {run.stopped}" if run.stopped else ""
    rows = [
        ["generations after the start", f"{len(summaries) - 1} of {state.config.generations}{ended}"],
        [
            "expressions proposed",
            f"{proposed}: {duplicates} duplicates, {total(lambda s: s.invalid)} invalid",
        ],
        ["candidates evaluated", str(summaries[-1].evaluated_total if summaries else 0)],
        [
            "fine-tunings run",
            f"{state.evaluations}, {total(lambda s: s.reevaluations)} of them deliberate re-evaluations",
        ],
        ["results taken from equal plans", str(total(lambda s: s.cache_hits))],
        ["time of the search", f"{duration(sum(s.seconds for s in summaries))} (base networks included)"],
    ]
    if run.finals is not None:
        count = len(
            {(m.task, m.base, m.repeat, m.digest or m.name) for m in run.finals.comparison.measurements}
        )
        rows.append(
            [
                "final comparison",
                f"{count} fine-tunings in {duration(run.finals.seconds)} (base networks included)",
            ]
        )
    return rows


def _fitness(state: SearchState) -> str:
    if state.config.fitness == "paired":
        spreads = ", ".join(f"{scale.spread:.2f} on {name}" for name, scale in state.scales.items())
        return (
            "weighted mean over tasks of the paired difference to l2, in standard deviations of the library functions "
            f"(in points: {spreads})"
        )
    return f"weighted {state.config.fitness} mean over tasks of validation accuracies in percent"

"""The sections of a run's report on the winning formula, what it does, and the search, as Markdown text."""

from __future__ import annotations

from collections.abc import Callable

from jaxprune.report.result_sections import Run
from jaxprune.search.state import GenerationSummary, SearchState, ancestry
from jaxprune.text import duration, markdown_table

MAX_ANCESTORS = 25


def formula_section(run: Run) -> str:
    """The winning formula: LaTeX, drawn tree, code, and where it comes from."""
    winner = run.winner
    expression, candidate = winner.expression, winner.candidate
    return "\n\n".join(
        [
            "## The winning formula",
            f"$$\n{expression.latex()}\n$$",
            f"Complexity {candidate.complexity}, {expression.size} nodes, reads "
            f"{', '.join(sorted(expression.operands))}. Evaluated per class and averaged over classes; the channels "
            "with the lowest values are pruned.",
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
    rows = []
    for member in reversed(front):
        candidate, fitness = member.candidate, member.fitness
        bases = sum(result.bases for result in fitness.tasks.values())
        value = f"{fitness.mean:+.2f} ± {fitness.se:.2f}"
        rows.append(
            [f"`{candidate.text}`", str(candidate.complexity), value, str(bases), str(candidate.generation)]
        )
    return "\n\n".join(
        [
            "## The search",
            "![Fitness over generations](figures/fitness.png)",
            "![Fitness and complexity](figures/pareto.png)",
            "The Pareto front, on the search bases:",
            markdown_table(["function", "complexity", "fitness ± SE", "bases", "generation"], rows),
            "### Cost",
            markdown_table(["", ""], _cost(run)),
            f"Fitness: {_fitness(state)}. Seed {state.config.seed}; all settings are in `config.json`, every "
            "fine-tuning is in `journal.jsonl`.",
        ]
    )


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

    def total(count: Callable[[GenerationSummary], int]) -> int:
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

"""The sections of a report on the winning formula, what it does, and the search, as Markdown text."""

from __future__ import annotations

from jaxprune.report.result_sections import Run
from jaxprune.search.state import SearchState, ancestry, lost_guesses
from jaxprune.text import duration, markdown_table

MAX_ANCESTORS = 25


def formula_section(run: Run) -> str:
    """Writes the winning formula: LaTeX, drawn tree, code, and its ancestors."""
    expression, candidate = run.winner.expression, run.winner.candidate
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
    """Writes what the winner does: accuracy along the fine-tuning, kept channels, scores."""
    assert run.finals is not None
    parts = [
        "## What it does",
        "![Accuracy over the fine-tuning](figures/curves.png)",
        "Lines are means over bases, bands one standard error. The fine-tuning is short on purpose: after a long one "
        "most functions end up alike, so what a pruning function buys is *early* accuracy.",
    ]
    for task in run.finals.views:
        parts.append(f"![Overlap of kept channels, {task}](figures/overlap-{task}.png)")
        parts.append(f"![Sorted scores, {task}](figures/scores-{task}.png)")
    parts.append(
        "Overlap and scores are those of the first pruning round on final base 0; two random plans share the fraction "
        "of channels that are kept. Scores are scaled to each function's own range."
    )
    return "\n\n".join(parts)


def search_section(run: Run) -> str:
    """Writes what the search did, found and cost."""
    state = run.state
    rows = []
    for id_ in reversed(state.archive):
        individual = state.individual(id_)
        candidate, fitness = individual.candidate, individual.fitness
        bases = sum(result.bases for result in fitness.tasks.values())
        value = f"{fitness.mean:+.2f} ± {fitness.se:.2f}"
        numbers = [str(candidate.complexity), value, str(bases), str(candidate.generation)]
        rows.append([f"`{candidate.text}`", *numbers])
    return "\n\n".join(
        [
            "## The search",
            "![Fitness over generations](figures/fitness.png)",
            "![Fitness and complexity](figures/pareto.png)",
            "The Pareto front, on the search bases:",
            markdown_table(["function", "complexity", "fitness ± SE", "bases", "generation"], rows),
            *_lost_guesses(state),
            "### Cost",
            markdown_table(["", ""], _cost_rows(run)),
            f"Fitness: {_fitness(state)}. Seed {state.config.seed}; all settings are in `config.json`, every "
            "fine-tuning is in `journal.jsonl`.",
        ]
    )


def _lost_guesses(state: SearchState) -> list[str]:
    """Returns a list of the given formulas that could not be scored, with the reasons; nothing if there are none."""
    lines = [f"- `{guess.text}`: {guess.reason}" for guess in lost_guesses(state.candidates)]
    return ["Given formulas that are invalid, so that they were left out:", "\n".join(lines)] if lines else []


def _ancestry_table(state: SearchState, candidate_id: int) -> str:
    """Returns a table of a candidate and its ancestors, the youngest first."""
    family = ancestry(state, candidate_id)
    rows = []
    for candidate in reversed(family[-MAX_ANCESTORS:]):
        fitness = state.fitnesses.get(candidate.id)
        value = "" if fitness is None else f"{fitness.mean:+.2f} ± {fitness.se:.2f}"
        parents = ", ".join(map(str, candidate.parents))
        numbers = [str(candidate.id), str(candidate.generation)]
        rows.append([f"`{candidate.text}`", *numbers, candidate.origin, parents, value])
    table = markdown_table(["formula", "id", "generation", "made by", "from", "fitness ± SE"], rows)
    num_hidden = len(family) - len(rows)
    return table + (f"\n\n{num_hidden} older ancestors are in `state.json`." if num_hidden else "")


def _cost_rows(run: Run) -> list[list[str]]:
    """Returns the counts and times of a run, as rows of a table."""
    state, summaries = run.state, run.state.summaries
    proposed, duplicates, invalid, reevaluations, cache_hits = (
        sum(getattr(summary, name) for summary in summaries)
        for name in ("proposed", "duplicates", "invalid", "reevaluations", "cache_hits")
    )
    seconds = duration(sum(summary.seconds for summary in summaries))
    ended = f", ended by: {run.stopped}" if run.stopped else ""
    rows = [
        ["generations after the start", f"{len(summaries) - 1} of {state.config.generations}{ended}"],
        ["expressions proposed", f"{proposed}: {duplicates} duplicates, {invalid} invalid"],
        ["candidates evaluated", str(summaries[-1].evaluated_total if summaries else 0)],
        ["fine-tunings run", f"{state.evaluations}, {reevaluations} of them deliberate re-evaluations"],
        ["results taken from equal plans", str(cache_hits)],
        ["time of the search", f"{seconds} (base networks included)"],
    ]
    if run.finals is not None:
        measurements = run.finals.comparison.measurements
        count = len({(m.task, m.base, m.repeat, m.digest or m.name) for m in measurements})
        seconds = duration(run.finals.seconds)
        rows.append(["final comparison", f"{count} fine-tunings in {seconds} (base networks included)"])
    return rows


def _fitness(state: SearchState) -> str:
    """Returns what the fitness is, with its unit."""
    if state.config.joint == "paired":
        spreads = ", ".join(f"{scale.spread:.2f} on {name}" for name, scale in state.scales.items())
        return (
            "weighted mean over tasks of the paired difference to l2, in standard deviations of the library functions "
            f"(in points: {spreads})"
        )
    return f"weighted {state.config.joint} mean over tasks of validation accuracies in percent"

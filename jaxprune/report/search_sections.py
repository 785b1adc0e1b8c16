"""The sections of a report on the search: its fronts and cost, and the landscapes it ran on, as Markdown text."""

from __future__ import annotations

from jaxprune.report.result_sections import Run
from jaxprune.search.finishing import TUNED
from jaxprune.search.problem import RowUse
from jaxprune.search.state import SearchState, lost_guesses
from jaxprune.text import duration, markdown_table, shortened

MAX_VERIFIED = 12
"""Verified functions that a report lists."""

MAX_FORMULA = 90
"""Characters of a formula in the list of verified ones."""


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
            *(_landscapes(run) if state.has_landscapes else []),
            "### Cost",
            markdown_table(["", ""], _cost_rows(run)),
            f"Fitness: {_fitness(state)}. Seed {state.config.seed}; all settings are in `config.json`, every "
            "fine-tuning is in `journal.jsonl`.",
        ]
    )


def _landscapes(run: Run) -> list[str]:
    """Returns what the banks show, and how far verification agrees with the landscapes."""
    state = run.state
    rows = [
        [name, str(facts.plans), f"{facts.correlation:.2f}", _compensation(run, name)]
        for name, facts in state.banks.items()
    ]
    verified = [individual for individual in state.ranked() if individual.is_verified]
    leaders = [
        [
            f"`{shortened(individual.candidate.text, MAX_FORMULA)}`",
            individual.candidate.origin,
            f"{state.predicted[individual.candidate.id].mean:+.2f}",
            f"{state.verified[individual.candidate.id].mean:+.2f}",
            f"{individual.value:+.2f} ± {individual.fitness.se:.2f}",
        ]
        for individual in verified[:MAX_VERIFIED]
    ]
    num_tuned = sum(individual.candidate.origin == TUNED for individual in verified)
    hidden = f" The first {MAX_VERIFIED} of them:" if len(verified) > MAX_VERIFIED else ""
    return [
        "### The landscapes",
        "A landscape gives every channel of every search base a value, fitted to the bank: plans that were fine-tuned "
        "once, for all functions. The correlation is that of predicted and measured accuracies of plans that were held "
        "out, mean over bases.",
        markdown_table(["task", "plans in the bank", "correlation", "compensation before fine-tuning"], rows),
        f"The leaders were verified by {state.evaluations} fine-tunings; {len(verified)} functions on all search "
        f"bases, {num_tuned} of them with tuned constants. The fitness of a verified function is the mean of what was "
        f"predicted and what was measured.{hidden}",
        markdown_table(["verified function", "made by", "predicted", "measured", "fitness ± SE"], leaders),
    ]


def _compensation(run: Run, task: str) -> str:
    """Returns whether the removed channels of a task are compensated, as far as it is known."""
    if run.finals is None:
        return ""
    return "least squares" if task in run.finals.compensated else "none"


def _lost_guesses(state: SearchState) -> list[str]:
    """Returns a list of the given formulas that could not be scored, with the reasons; nothing if there are none."""
    lines = [f"- `{guess.text}`: {guess.reason}" for guess in lost_guesses(state.candidates)]
    return ["Given formulas that are invalid, so that they were left out:", "\n".join(lines)] if lines else []


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
    ]
    if state.has_landscapes:
        plans = sum(facts.plans for facts in state.banks.values())
        rows += [
            ["fine-tunings of the banks", f"{plans}, shared by all searches in this directory"],
            ["fine-tunings of the verification", f"{state.evaluations} for {len(state.verified)} functions"],
            ["time of the generations", f"{seconds} (banks and verification not included)"],
        ]
    else:
        rows += [
            ["fine-tunings run", f"{state.evaluations}, {reevaluations} of them deliberate re-evaluations"],
            ["results taken from equal plans", str(cache_hits)],
            ["time of the search", f"{seconds} (base networks included)"],
        ]
    use = RowUse(sum(each.row_seconds for each in summaries), sum(each.idle_seconds for each in summaries))
    if use.idle_share is not None:
        rows.append(["idle share of devices (copies that fill rows of networks)", f"{use.idle_share:.0%}"])
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

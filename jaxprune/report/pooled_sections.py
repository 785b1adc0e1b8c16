"""The sections of a report on all tasks together: what the search added to what there was, and ranks, as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

from jaxprune.comparison.finals import GUESS, RANDOM_SEARCH, WINNER, Finals
from jaxprune.comparison.measurements import Split
from jaxprune.comparison.pooled import Standing, shown_p, standing, standing_table
from jaxprune.comparison.regret import ranks
from jaxprune.text import markdown_table, with_error


@dataclass(frozen=True)
class Pool:
    """Tasks that are pooled, and how a report calls them."""

    name: str
    tasks: tuple[str, ...]


def references(finals: Finals) -> dict[str, str]:
    """Returns what the winner has to beat, row -> what it is; the winner itself is left out.

    Args:
      finals: the final comparison.
    """
    names = {finals.best_start: "the best start formula"}
    if finals.best_known:
        both = "the best start formula and best known function"
        names[finals.best_known] = (
            both if finals.best_known == finals.best_start else "the best known function"
        )
    rows = {name: f"{role} `{name}`" for name, role in names.items() if name != WINNER}
    if RANDOM_SEARCH in finals.formulas:
        text = finals.formulas[RANDOM_SEARCH]
        same = next((f" (`{name}` again)" for name in finals.known if finals.formulas[name] == text), "")
        rows[RANDOM_SEARCH] = f"the best of a random search of equal budget{same}"
    return rows


def pools(finals: Finals) -> list[Pool]:
    """Returns what is pooled: all tasks; if some are unseen, also the searched and the unseen ones apart."""
    everything = finals.comparison.task_names
    parts = [
        Pool(_counted(finals.searched, "searched"), finals.searched),
        Pool(_counted(finals.unseen, "unseen"), finals.unseen),
    ]
    return [Pool(_counted(everything, ""), everything), *(parts if finals.unseen else [])]


def splits(finals: Finals) -> list[Split]:
    """Returns the images that all tasks were measured on, test images first."""
    measured = {
        (row.task, row.test is not None) for row in finals.comparison.measurements if row.name == WINNER
    }
    has_test = all((task, True) in measured for task in finals.comparison.task_names)
    return ["test", "validation"] if has_test else ["validation"]


def why_not_pooled(finals: Finals) -> str:
    """Says why tasks cannot be pooled; empty if they can."""
    try:
        for on in splits(finals):
            for other in references(finals):
                standing(finals.comparison, WINNER, against=other, known=finals.known, measure=on)
    except ValueError as error:
        return str(error)
    return ""


def pooled_verdict(finals: Finals) -> list[str]:
    """Writes in two sentences what the search added to the best start formula, the best known one, and random search.

    Args:
      finals: a final comparison that can be pooled.

    Returns:
      The lines of the sentences, and of a list with the other images.
    """
    everything, *parts = pools(finals)
    on, *others = splits(finals)
    counts = [len(facts.base_accuracies) for facts in finals.comparison.tasks]
    bases = f"{sum(counts)} base networks" + (f" ({' + '.join(map(str, counts))})" if len(counts) > 1 else "")
    rows = references(finals)
    unseen = f", {len(finals.unseen)} of them unseen," if finals.unseen else ""
    lines = [
        f"> **Verdict.** Pooled over {everything.name}{unseen} on {on} images of {bases} that the search never saw, "
        "the winner is"
    ]
    for number, (row, role) in enumerate(rows.items()):
        result = standing(finals.comparison, WINNER, against=row, known=finals.known, measure=on)
        end = "." if number == len(rows) - 1 else " and" if number == len(rows) - 2 else ","
        lines.append(f"> {_judgement(result, role)}{end}")
    if parts:
        apart = [f"{_differences(finals, rows, on, part)} on the {part.name}" for part in parts]
        lines.append(f"> Against these in turn it is {'; '.join(apart)}.")
    if finals.best_start == WINNER:
        lines.append("> It is the best start formula itself: the search found nothing better.")
    lines.append(">")
    for other in others:
        results = {row: _standing(finals, row, other, everything) for row in rows}
        judgements = "; ".join(_judgement(result, f"`{row}`") for row, result in results.items())
        lines.append(f"> - on {other} images, by which the search chose: {judgements}.")
    return lines


def pooled_section(finals: Finals) -> str:
    """Writes how far the winner is ahead of what there was before, over all tasks, and task by task.

    Args:
      finals: a final comparison with known rows.
    """
    title = "## What the search added"
    if reason := why_not_pooled(finals):
        return f"{title}\n\nNothing can be said over all tasks: {reason}"
    pooled, rows = pools(finals), references(finals)
    header = ["winner minus", "images"]
    for pool in pooled:
        header += [f"{pool.name}, sd ± SE (n = {_num_bases(finals, pool)})", "p"]
    lines = []
    for row in ("l2", *rows) if "l2" not in rows else rows:
        for on in splits(finals):
            results = [_standing(finals, row, on, pool) for pool in pooled]
            cells = [cell for result in results for cell in _cells(result)]
            lines.append([row, on, *cells])
    tables = [
        f"On {on} images, by task:\n\n"
        + standing_table(
            finals.comparison, [WINNER], against=list(rows), known=finals.known, measure=on
        ).to_markdown()
        for on in splits(finals)
    ]
    return "\n\n".join(
        [
            title,
            markdown_table(header, lines),
            "Paired differences, base by base, divided by the sd of a task (the standard deviation of the mean "
            f"accuracies of {len(finals.known)} known functions) and averaged over tasks. n counts base networks; p is "
            "two-sided (Student's t). Nothing was chosen by test images, by these base networks, or by unseen tasks.",
            *tables,
        ]
    )


def ranks_section(finals: Finals) -> str:
    """Writes how the winner ranks among the known functions, and its worst case.

    Args:
      finals: a final comparison with known rows that can be pooled.
    """
    rows = [name for name in (WINNER, GUESS, RANDOM_SEARCH) if name in finals.formulas]
    tables = [
        f"On {on} images:\n\n"
        + ranks(finals.comparison, [*rows, *finals.known], finals.known, measure=on).to_markdown()
        for on in splits(finals)
    ]
    return "\n\n".join(
        [
            "## Ranks among known functions",
            "1 is best. A regret is the accuracy minus that of the best other known function of the task, in sd; the "
            "worst one shows what a function may cost on a task that it does not suit.",
            *tables,
        ]
    )


def _counted(tasks: Sequence[str], kind: str) -> str:
    """Returns how many tasks of a kind there are, in words."""
    if not kind:
        return f"{len(tasks)} tasks" if len(tasks) > 1 else "the task"
    return f"{len(tasks)} {kind} tasks" if len(tasks) > 1 else f"{kind} task"


def _num_bases(finals: Finals, pool: Pool) -> int:
    """The number of base networks of all tasks of a pool."""
    return sum(len(facts.base_accuracies) for facts in finals.comparison.tasks if facts.name in pool.tasks)


def _standing(finals: Finals, row: str, on: Split, pool: Pool) -> Standing:
    """How far the winner is ahead of a row, over the tasks of a pool."""
    assert on in get_args(Split)
    return standing(finals.comparison, WINNER, against=row, known=finals.known, measure=on, tasks=pool.tasks)


def _differences(finals: Finals, rows: dict[str, str], on: Split, pool: Pool) -> str:
    """The differences to several rows over the tasks of a pool, in sd."""
    shown = [_shown(_standing(finals, row, on, pool)) for row in rows]
    return " and ".join([*([", ".join(shown[:-1])] if shown[:-1] else []), *shown[-1:]]) + " sd"


def _shown(result: Standing) -> str:
    return with_error(result.mean, result.se, signed=True, decimals=2) or "invalid"


def _cells(result: Standing) -> list[str]:
    return [_shown(result), "" if result.p_value is None else shown_p(result.p_value)]


def _judgement(result: Standing, role: str) -> str:
    """Returns what a standing shows, as a part of a sentence."""
    if any(one.name == WINNER for task in result.tasks for one in task.invalid):
        return f"**invalid** on some final base, so it cannot replace {role}"
    if result.mean is None:
        return f"not comparable with {role}, which is invalid on some final base"
    if result.se is None:
        return f"**not distinguishable from** {role} ({_shown(result)} sd; one base of a task cannot tell)"
    if result.p_value is None:
        return (
            f"**not distinguishable from** {role} ({_shown(result)} sd; too few bases to tell how they vary)"
        )
    is_clear = result.p_value < 0.05
    words = ("better than" if result.mean > 0 else "worse than") if is_clear else "not distinguishable from"
    return f"**{words}** {role} ({_shown(result)} sd)"

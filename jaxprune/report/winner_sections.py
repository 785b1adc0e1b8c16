"""The sections of a report on the winner as a result to publish: its formula, its parts, what it does, as Markdown."""

from __future__ import annotations

from collections.abc import Mapping

from jaxprune.comparison.winner_checks import Part, Soundness
from jaxprune.report.result_sections import Run
from jaxprune.search.state import SearchState, ancestry
from jaxprune.text import markdown_table, with_error

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
            *([] if run.finals is None else _soundness(run.finals.soundness)),
            "![The formula as a tree](figures/tree.png)",
            "As a self-contained JAX function:",
            f"```python\n{expression.code('jax').rstrip()}\n```",
            "### Ancestry",
            _ancestry_table(run.state, candidate.id),
        ]
    )


def parts_section(run: Run) -> str:
    """Writes what the winner loses without each of its parts."""
    assert run.finals is not None
    num_bases = sum(task.bases for task in run.state.tasks)
    rows = [[f"`{part.removed}`", f"`{part.formula}`", *_worth(part)] for part in run.finals.parts]
    return "\n\n".join(
        [
            "## What each part is worth",
            "The winner without one of its parts, minus the winner, in sd: as the landscapes predict, and measured by "
            f"fine-tuning on the {num_bases} search bases. The winner was chosen on these, so its parts look a little "
            "better there than they are. A part whose removal costs nothing is ballast.",
            markdown_table(["without", "what is left", "predicted", "measured ± SE"], rows),
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


def _worth(part: Part) -> list[str]:
    """Returns the numbers of a part as two cells of a table."""
    if part.predicted is None:
        return ["", f"invalid: {part.reason}"]
    return [
        with_error(part.predicted, None, signed=True, decimals=2),
        with_error(part.measured, part.se, signed=True, decimals=2),
    ]


def _soundness(by_task: Mapping[str, Soundness]) -> list[str]:
    """Returns a sentence on whether the winner tells channels apart on the final bases; if not, also a warning."""
    if not by_task:  # a comparison of an earlier version
        return []
    checked = list(by_task.values())
    groups, channels = (sum(getattr(one, name) for one in checked) for name in ("groups", "channels"))
    fallbacks, ties, at_cut, invalid, bases = (
        sum(getattr(one, name) for one in checked)
        for name in ("fallbacks", "ties", "ties_at_cut", "invalid", "bases")
    )
    share = ties / channels if channels else 0.0
    sentence = (
        f"On the {bases} final bases it is invalid on {invalid}; of {groups} groups of channels it leaves {fallbacks} "
        f"to l2, because all their scores are equal, and {100 * share:.1f} % of the channels share their score with "
        f"another one of their group, in {at_cut} groups one on the other side of the cut."
    )
    unsound = [task for task, one in by_task.items() if not one.is_clean]
    if not unsound:
        return [sentence]
    return [
        sentence,
        f"**Warning:** on {', '.join(unsound)} the formula does not decide everywhere what is kept, so not all of its "
        "result is its own.",
    ]


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

"""The verdict over all tasks follows from the numbers, whatever they are; sections for a winner to publish."""

from __future__ import annotations

import dataclasses
import json

import pytest
from made_up_runs import POOLED, compared, made_up_finals, pooled_finals, searched, searched_on_landscapes

from jaxprune.comparison.finals import Finals
from jaxprune.comparison.pooled import standing
from jaxprune.comparison.winner_checks import Soundness
from jaxprune.report.pooled_sections import pooled_section, ranks_section, references, why_not_pooled
from jaxprune.report.result_sections import Run, optimism_section, results_section, verdict_section
from jaxprune.report.search_sections import search_section
from jaxprune.report.winner_sections import formula_section, parts_section

TASKS = {"digits": 4, "fashion": 3, "digits-res": 5}


def run_of(comparison=None, **changes):
    """A made-up run on landscapes with its final comparison."""
    state = searched_on_landscapes().state
    return Run("made-up", state, pooled_finals(state, comparison, **changes), "generations", {})


def levels(**changes):
    return compared({**POOLED, **changes}, tasks=TASKS, spread=0.1)


# The verdict


def test_the_verdict_names_the_three_that_had_to_be_beaten():
    text = verdict_section(run_of())
    first, *_ = text.partition("\n>\n")
    assert first.startswith(
        "> **Verdict.** Pooled over 3 tasks, 1 of them unseen, on test images of 12 base networks"
    )
    assert "(4 + 3 + 5) that the search never saw" in first
    for role in ("start formula `mean_shift`", "known function `fisher`", "random search of equal budget"):
        assert f"**better than** the best {role}" in first.replace("of a random", "random")
    assert " sd on the 2 searched tasks; +" in first and first.endswith(" sd on the unseen task.")


def test_the_numbers_of_the_verdict_are_pooled_in_sd():
    run = run_of()
    result = standing(
        run.finals.comparison, "winner", against="fisher", known=run.finals.known, measure="test"
    )
    assert f"`fisher` ({result.mean:+.2f} ± {result.se:.2f} sd)" in verdict_section(run)


def test_the_verdict_is_honest_when_the_search_added_nothing():
    text = verdict_section(run_of(levels(winner=80.0)))
    assert text.count("**worse than** the best") == 3 and "better" not in text.partition("\n>\n")[0]
    noisy = compared({**POOLED, "winner": 88.0}, tasks=TASKS, spread=3.0)
    assert "**not distinguishable from** the best start formula" in verdict_section(run_of(noisy))


def test_each_task_has_a_line_and_unseen_ones_are_called_so():
    text = verdict_section(run_of())
    assert "> - on validation images, by which the search chose: **better than** `mean_shift` (+" in text
    assert "> - digits, validation images: **better than** `l2` (+" in text
    assert "> - digits-res (unseen), validation images: **better than** `l2` (+" in text


def test_a_random_search_that_found_nothing_new_is_told_so():
    finals = run_of().finals
    same = finals.formulas | {"random search": finals.formulas["mean_shift"]}
    assert "random search of equal budget (`mean_shift` again)" in verdict_section(run_of(formulas=same))


def test_one_function_may_be_best_start_and_best_known():
    text = verdict_section(run_of(best_known="mean_shift"))
    assert "the best start formula and best known function `mean_shift`" in text and "`fisher`" not in text


def test_a_winner_from_the_start_is_no_discovery():
    text = verdict_section(run_of(best_start="winner", best_known="winner"))
    assert "It is the best start formula itself: the search found nothing better." in text
    assert list(references(run_of(best_start="winner", best_known="winner").finals)) == ["random search"]


def test_without_test_images_on_every_task_the_verdict_is_on_validation_images():
    comparison = levels()
    measurements = tuple(
        dataclasses.replace(row, test=None) if row.task == "digits-res" else row
        for row in comparison.measurements
    )
    run = run_of(dataclasses.replace(comparison, measurements=measurements))
    assert "on validation images of 12 base networks" in verdict_section(run)
    assert "| l2 | test |" not in pooled_section(run.finals)


def test_an_invalid_winner_is_called_invalid():
    run = run_of(compared(POOLED, tasks=TASKS, refused={"winner": "fashion"}))
    text = verdict_section(run)
    assert text.count("**invalid** on some final base, so it cannot replace the best") == 3
    assert "invalid on fashion, base 0: 0/0" in pooled_section(run.finals)
    assert "invalid" in ranks_section(run.finals)


def test_an_invalid_reference_is_not_compared_with():
    run = run_of(compared(POOLED, tasks=TASKS, refused={"fisher": "fashion"}))
    assert "not comparable with the best known function `fisher`, which is invalid" in verdict_section(run)


def test_single_bases_cannot_tell():
    run = run_of(compared(POOLED, tasks=dict.fromkeys(TASKS, 1)))
    assert "one base of a task cannot tell" in verdict_section(run)


def test_differences_that_do_not_vary_over_bases_cannot_tell():
    run = run_of(compared(POOLED, tasks=dict.fromkeys(TASKS, 2), spread=0.0))
    text = verdict_section(run)
    assert text.count("sd; too few bases to tell how they vary)") == 6 and "+" in text


def test_equal_known_functions_cannot_be_pooled_and_the_report_says_why():
    equal = {**dict.fromkeys(("l2", "l1", "mean_shift", "fisher"), 86.0)}
    run = run_of(compared({**POOLED, **equal}, tasks=TASKS, spread=0.0))
    assert "pooling needs two or more known rows with different mean accuracies" in why_not_pooled(run.finals)
    assert "Nothing can be said over all tasks: pooling needs two or more" in pooled_section(run.finals)
    text = verdict_section(run)
    assert (
        "The winner is **better than** l2" in text and "> - digits-res (unseen): **better than** `l2`" in text
    )


def test_searches_that_fine_tune_each_function_keep_their_verdict():
    state = searched().state
    comparison = compared(POOLED, tasks=TASKS, spread=0.1)
    run = Run("made-up", state, made_up_finals(state, comparison, unseen=("digits-res",)), "generations", {})
    text = verdict_section(run)
    assert "over all tasks, on 7 base networks (4 + 3) that the search never saw" in text
    assert "> - digits-res (unseen): **better than** `l2`" in text
    assert "### digits-res" in results_section(run)


# Sections


def test_pooled_differences_are_shown_for_all_searched_and_unseen_tasks():
    finals = run_of().finals
    text = pooled_section(finals)
    assert (
        "| winner minus | images | 3 tasks, sd ± SE (n = 12) | p | 2 searched tasks, sd ± SE (n = 7) | p | "
        "unseen task, sd ± SE (n = 5) | p |"
    ) in text
    apart = standing(
        finals.comparison, "winner", against="random search", known=finals.known, measure="test",
        tasks=["digits-res"],
    )  # fmt: skip
    (row,) = [line for line in text.splitlines() if line.startswith("| random search | test |")]
    assert f" {apart.mean:+.2f} ± {apart.se:.2f} |" in row
    assert "| winner - fisher | " in text and "4 known functions" in text


def test_ranks_are_those_among_known_functions():
    text = ranks_section(run_of().finals)
    assert text.count("| winner | 1 | 1 | 1 | 1.0 |") == 2  # test and validation images
    assert "| random search | 1 | 1 | 1 | 1.0 |" in text  # the winner is no known function


def test_parts_show_what_they_are_worth():
    text = parts_section(run_of())
    assert "| `std(X)` | `mean(X)` | -0.50 | -0.25 ± 0.12 |" in text
    assert "| `mean(X)` | `0/0` |  | invalid: not finite |" in text


def test_a_winner_that_decides_everything_has_no_warning():
    text = formula_section(run_of())
    assert "On the 9 final bases it is invalid on 0; of 18 groups of channels it leaves 0 to l2" in text
    assert "2.1 % of the channels share their score" in text and "Warning" not in text


@pytest.mark.parametrize("changes", [{"fallbacks": 1}, {"ties_at_cut": 2}, {"invalid": 1, "reason": "0/0"}])
def test_a_winner_that_does_not_decide_everything_has_a_warning(changes):
    clean = Soundness(4, 8, 0, 64, 3, 0, 0)
    run = run_of(soundness={"digits": clean, "fashion": dataclasses.replace(clean, **changes)})
    assert "**Warning:** on fashion the formula does not decide everywhere" in formula_section(run)


def test_the_search_shows_its_banks_and_what_was_verified():
    run = run_of()
    text, state = search_section(run), run.state
    assert f"| digits | {state.banks['digits'].plans} | 0.60 | least squares |" in text
    assert f"| fashion | {state.banks['fashion'].plans} | 0.60 | none |" in text
    assert f"{state.evaluations} fine-tunings; {len(state.verified)} functions on all search bases" in text
    best = state.ranked()[0].candidate
    numbers = f"{state.predicted[best.id].mean:+.2f} | {state.verified[best.id].mean:+.2f}"
    assert f"| `{best.text}` | {best.origin} | {numbers} |" in text
    plans = sum(facts.plans for facts in state.banks.values())
    assert f"| fine-tunings of the banks | {plans}, shared" in text
    assert (
        f"| fine-tunings of the verification | {state.evaluations} for {len(state.verified)} functions |"
        in text
    )


def test_optimism_starts_with_what_was_predicted():
    run = run_of()
    text, id_ = optimism_section(run), run.winner.candidate.id
    predicted = run.state.predicted[id_].tasks["digits"].difference
    measured = run.state.verified[id_].tasks["digits"].difference
    assert "|  | predicted | search bases | final bases | optimism |" in text
    assert f"| digits (points) | {predicted:+.2f} | {measured:+.2f} (n = 3) | +4." in text
    state = searched().state
    other = Run("made-up", state, made_up_finals(state), "generations", {})
    assert "|  | search bases | final bases | optimism |" in optimism_section(other)


def test_the_random_search_says_that_it_shared_the_bank():
    assert "The random search of equal budget on the same bank, with the same verification, ran 40" in (
        results_section(run_of())
    )


# Files


def test_finals_come_back_and_those_of_earlier_versions_are_read(tmp_path):
    finals = run_of().finals
    plain = json.loads(finals.to_json())
    assert Finals.from_json(plain, tmp_path / "final.json") == finals
    for name in ("unseen", "known", "best_known", "parts", "soundness", "compensated"):
        del plain[name]
    earlier = Finals.from_json(plain, tmp_path / "final.json")
    assert earlier.unseen == earlier.known == earlier.parts == () and earlier.best_known == ""
    assert earlier.comparison == finals.comparison

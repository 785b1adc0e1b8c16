"""What a caller may name, and what rows come of it."""

from __future__ import annotations

import pytest

from jaxprune.comparison.functions import named_functions
from jaxprune.language.library import library, own_seeds
from jaxprune.language.parsing import ParseError, parse
from jaxprune.scoring.lookup import FUNCTIONS, find_formula, find_function, known_name
from jaxprune.scoring.metrics import metrics


def test_l2_comes_first_unless_it_was_named():
    assert list(named_functions([])) == ["l2"]
    assert list(named_functions(["l1"])) == ["l2", "l1"]
    assert list(named_functions(["l1", "l2"])) == ["l1", "l2"]


def test_names_formulas_and_expressions_may_be_mixed():
    rows = named_functions(["fdr", "mean_shift", "sum(abs(WI))", parse("mean(X)*3"), "random", "scratch"])
    assert list(rows) == ["l2", "fdr", "mean_shift", "l1", "mean(X)*3"]
    assert rows["mean_shift"] is own_seeds["mean_shift"]


def test_metrics_go_by_name_and_are_expressions_where_they_can_be():
    def mine(operands):
        return operands.filters.sum(0)

    rows = named_functions(["fpgm", "wanda", metrics["lamp"], metrics["fdr"], mine, metrics["random"]])
    assert list(rows) == ["l2", "fpgm", "wanda", "lamp", "fdr", "mine"]
    assert rows["fpgm"] is metrics["fpgm"] and rows["lamp"] is metrics["lamp"] and rows["mine"] is mine
    assert rows["wanda"] is metrics["wanda"].expression and rows["fdr"] is library["fdr"]
    assert list(named_functions(metrics["lamp"])) == ["l2", "lamp"]
    assert list(named_functions(metrics)) == [name for name in metrics if name != "random"]
    assert find_function("random") is metrics["random"]
    assert list(named_functions([str(metrics["flap"].expression)])) == ["l2", "flap"]
    assert named_functions({"noise": metrics["random"]})["noise"] is metrics["random"]
    with pytest.raises(ValueError, match=r"'scratch' is the name of a row of its own, got mine for it"):
        named_functions({"scratch": mine})


def test_a_single_function_needs_no_list():
    assert list(named_functions("l1")) == ["l2", "l1"]
    assert list(named_functions(library["l1"])) == ["l2", "l1"]


def test_a_mapping_names_its_rows():
    rows = named_functions({"winner": "sum(abs(WI))", "best seed": "mean_shift"})
    assert list(rows) == ["l2", "winner", "best seed"]
    assert rows["winner"] is library["l1"]


def test_a_function_named_twice_is_one_row():
    assert list(named_functions(["l1", "l1", "sum(abs(WI))"])) == ["l2", "l1"]


def test_every_known_function_is_a_scalar():
    assert all(find_function(name).type == () for name in {**library, **own_seeds})


def test_known_functions_are_found_by_name_and_named_when_found():
    assert FUNCTIONS.keys() >= {*library, *own_seeds}
    for name in FUNCTIONS:
        assert known_name(find_function(name)) == name
    assert find_formula("fdr") is find_function("fdr") is library["fdr"]
    with pytest.raises(
        ValueError, match=r"something the language can say, got 'fpgm', a metric that is a function"
    ):
        find_formula("fpgm")


def test_unknown_names_get_a_suggestion():
    with pytest.raises(ValueError, match=r"got 'abs_snrr'. Did you mean 'abs_snr'\?"):
        named_functions(["abs_snrr"])


def test_a_text_that_is_no_formula_points_at_the_column():
    with pytest.raises(ParseError, match=r"\^"):
        named_functions(["sum(abs(WI)) +"])


def test_a_formula_that_is_no_scalar_is_refused():
    with pytest.raises(ValueError, match=r"needs one number per channel, got square\(mX\) of type \(D\)"):
        named_functions(["square(mX)"])


@pytest.mark.parametrize("name", ["random", "scratch", "oracle", "l2"])
def test_names_of_controls_are_reserved(name):
    with pytest.raises(ValueError, match=rf"'{name}' is the name of a row of its own"):
        named_functions({name: "mean(X)"})


def test_one_name_cannot_stand_for_two_formulas():
    with pytest.raises(ValueError, match=r"rows need different names, got 'l1' for"):
        named_functions(_Twice())


class _Twice(dict):
    """A mapping that, wrongly, lists a name twice."""

    def items(self):
        return [("l1", "sum(abs(WI))"), ("l1", "mean(X)")]

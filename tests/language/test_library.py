"""The library: every entry is a pruning function within the limits of the search."""

from __future__ import annotations

import pytest

from jaxprune.language.library import PAPER_SEEDS, PUBLISHED, library, own_seeds, sources
from jaxprune.language.parsing import parse
from jaxprune.language.vocabulary import OPERANDS

EVERYTHING = {**library, **own_seeds}


def test_the_names_of_the_design_are_there():
    names = "l1 l2 geometric_median abs_snr fdr t_stat sym_div di evolved_eq3 evolved_1 evolved_3 evolved_4"
    assert {*names.split(), "inspired_1", "mmd", "bn_scale"} == set(library)
    assert set(PAPER_SEEDS) <= set(library) and len(PAPER_SEEDS) == 7
    assert PUBLISHED["l1"].expression is library["l1"]


@pytest.mark.parametrize("name", EVERYTHING)
class TestEntry:
    def test_it_is_a_pruning_function_that_prints_and_parses_back(self, name):
        f = EVERYTHING[name]
        assert f.type == () and parse(str(f)) is f

    def test_it_is_within_the_limits_of_the_search(self, name):
        assert EVERYTHING[name].size <= 40 and EVERYTHING[name].depth <= 8

    def test_it_names_its_source(self, name):
        assert len(sources[name]) > 10

    def test_it_has_latex_that_typesets(self, name):
        mathtext = pytest.importorskip("matplotlib.mathtext")
        mathtext.MathTextParser("path").parse(f"${EVERYTHING[name].latex()}$")


def test_every_operands_latex_typesets():
    mathtext = pytest.importorskip("matplotlib.mathtext")
    for operand in OPERANDS.values():
        mathtext.MathTextParser("path").parse(f"${operand.latex}$")


def test_own_seeds_are_named_as_ours_but_for_taylor():
    assert {name for name in own_seeds if not sources[name].startswith("ours")} == {"taylor"}
    assert sources["evolved_gradient_shift"].startswith("ours, evolved")
    assert str(own_seeds["taylor"]) == "square(inner(GW, WI))" and sources["taylor"].startswith("Molchanov")

"""Groups that are scored and cut one after another."""

import numpy as np
import pytest
from compilations import counted_compilations
from flax import nnx
from pruned_nets import IMAGES, LABELS, conv_norm_relu

from jaxprune.language.library import library
from jaxprune.language.parsing import parse
from jaxprune.observation.observer import make_observer, observe
from jaxprune.pruning import sequential
from jaxprune.pruning.masking import mask
from jaxprune.pruning.planning import Plan, plan, select
from jaxprune.pruning.sequential import rank_sequentially, sequential_plan
from jaxprune.pruning.slimming import slim
from jaxprune.scoring.ranking import CONSTANT, score
from jaxprune.structure.model_state import split_model
from jaxprune.structure.tracing import trace_structure
from jaxprune.types import Invalid

COUNTS = {"conv1.kernel": 2, "conv2.kernel": 3}
SPREAD = parse("std(X)")


@pytest.fixture(scope="module")
def net() -> nnx.Module:
    return conv_norm_relu()


@pytest.fixture(scope="module")
def observer(net):
    return make_observer(net, IMAGES, LABELS)


def ranked(f, net, observer, counts=COUNTS):
    return rank_sequentially(f, trace_structure(net, IMAGES), observer, split_model(net)[1], counts)


def test_a_later_group_is_scored_on_the_network_without_the_earlier_channels(net, observer):
    found = ranked(SPREAD, net, observer)
    first = score(SPREAD, observer(split_model(net)[1]))
    kept = select(first, {"conv1.kernel": 2})
    masked = mask(net, plan(net, first, IMAGES, kept_counts={"conv1.kernel": 2}))
    second = score(SPREAD, observer(split_model(masked)[1]))
    assert found.kept == (*kept, *select(second, {"conv2.kernel": 3}))
    np.testing.assert_array_equal(found.ranking.scores["conv1.kernel"], first["conv1.kernel"])
    np.testing.assert_array_equal(found.ranking.scores["conv2.kernel"], second["conv2.kernel"])
    assert not np.allclose(first["conv2.kernel"], second["conv2.kernel"])


def test_the_masked_network_has_the_scores_of_the_slim_one(net, observer):
    found = ranked(SPREAD, net, observer)
    smaller = slim(net, plan(net, found.ranking.scores, IMAGES, kept_counts={"conv1.kernel": 2}))
    slim_scores = score(SPREAD, observe(smaller, IMAGES, LABELS))["conv2.kernel"]
    np.testing.assert_allclose(found.ranking.scores["conv2.kernel"], slim_scores, rtol=1e-4)


def test_nothing_compiles_after_the_first_step(net, observer):
    ranked(SPREAD, net, observer)
    with counted_compilations() as seen:
        ranked(library["l2"], net, observer)
        ranked(SPREAD, net, observer, COUNTS | {"conv1.kernel": 3})
    assert not seen


def test_the_network_is_observed_only_where_it_has_changed(net, observer):
    calls = []

    def counting(arrays):
        calls.append(arrays)
        return observer(arrays)

    found = ranked(SPREAD, net, counting, {"conv2.kernel": 3})
    assert len(calls) == 1
    joint = score(SPREAD, observer(split_model(net)[1]))
    assert found.kept == select(joint, {"conv2.kernel": 3})


def test_a_group_of_equal_scores_takes_those_of_l2(net, observer):
    found = ranked(parse("std(X)*(count(WI) - 9)"), net, observer)  # conv1 has filters of nine weights
    l2 = ranked(library["l2"], net, observer)
    assert found.ranking.fallback_groups == ("conv1.kernel",)
    assert found.kept[0] == l2.kept[0]


def test_a_function_of_equal_scores_everywhere_is_invalid(net, observer):
    assert ranked(parse("count(WI)"), net, observer) == CONSTANT


def test_a_function_that_is_not_finite_is_invalid_with_its_group(net, observer):
    found = ranked(parse("1/(NX - NX)"), net, observer)
    assert isinstance(found, Invalid) and "not finite in group conv1.kernel, channel 0" in found.reason


def test_the_plan_keeps_what_was_found(monkeypatch, net, observer):
    monkeypatch.setattr(sequential, "make_observer", lambda *args, **options: observer)
    found = sequential_plan(SPREAD, net, IMAGES, LABELS, COUNTS)
    assert isinstance(found, Plan) and found.to_kept() == ranked(SPREAD, net, observer).kept
    some = sequential_plan(SPREAD, net, IMAGES, LABELS, {"conv2.kernel": 3})
    assert some.kept_counts == {"conv1.kernel": 4, "conv2.kernel": 3}


def test_a_function_without_scores_is_named_in_the_error(monkeypatch, net, observer):
    monkeypatch.setattr(sequential, "make_observer", lambda *args, **options: observer)
    message = r"1/\(NX - NX\) needs a score for every channel; it is invalid: not finite"
    with pytest.raises(ValueError, match=message):
        sequential_plan(parse("1/(NX - NX)"), net, IMAGES, LABELS, COUNTS)


def test_bad_input_is_refused_before_anything_runs(net):
    with pytest.raises(ValueError, match="kept_counts does not fit the network"):
        sequential_plan(SPREAD, net, IMAGES, LABELS, {"conv9.kernel": 1})
    with pytest.raises(ValueError, match="max_bytes of at least"):
        sequential_plan(SPREAD, net, IMAGES, LABELS, COUNTS, max_bytes=1)

"""Functions on networks whose producers do not all have what they read: scored by those that do, the others named."""

import warnings

import numpy as np
import pytest
from flax import nnx
from pruned_nets import INITIALISERS, Net, linear

from jaxprune.language.library import library
from jaxprune.language.parsing import parse
from jaxprune.observation.observed import Observed
from jaxprune.observation.observer import observe
from jaxprune.observation.operands import Operands
from jaxprune.pruning.planning import plan
from jaxprune.pruning.slimming import slim
from jaxprune.scoring.metrics import metrics
from jaxprune.scoring.rank_correlation import correlate
from jaxprune.scoring.ranking import Ranking, rank_groups, rank_population, score, score_functions
from jaxprune.scoring.scorable import scorable_groups
from jaxprune.structure.tracing import trace_structure
from jaxprune.types import Invalid

READERS = "sum(abs(WO)) * mean(X)"


def layer(seed, *, readers=True, scales=False):
    rng = np.random.default_rng(seed)
    outgoing = rng.standard_normal((4, 3)).astype(np.float32) if readers else None
    return Operands.from_arrays(
        features=rng.random((6, 4)).astype(np.float32),
        labels=np.arange(6) % 2,
        kernel=rng.standard_normal((5, 4)).astype(np.float32),
        outgoing=outgoing,
        gamma=np.arange(1.0, 5.0, dtype=np.float32) if scales else None,
    )


@pytest.fixture(scope="module")
def attention():
    """A group of a value that is read and a query that is not, a group without readers, and a plain one."""
    layers = {"value": layer(0), "query": layer(1, readers=False), "key": layer(2, readers=False)}
    groups = {"places": ("query", "value"), "gates": ("key",), "hidden": ("hidden",)}
    return Observed({**layers, "hidden": layer(3, scales=True)}, groups)


def test_a_group_is_scored_by_the_producers_that_have_everything(attention):
    with pytest.warns(UserWarning) as caught:
        scores = score(parse(READERS), attention)
    assert [str(warning.message) for warning in caught] == [
        "sum(abs(WO))*mean(X) cannot score every group: no WO in gates. These groups have no scores, and plan leaves "
        "them whole; say ignore= if that is meant."
    ]
    assert list(scores) == ["places", "hidden"]
    for group, path in (("places", "value"), ("hidden", "hidden")):
        ops = attention[path]
        own = np.abs(np.asarray(ops.outgoing)).sum(0) * np.asarray(ops.samples).mean((0, 1))
        np.testing.assert_allclose(scores[group], own / np.abs(own).mean(), rtol=1e-5)


def test_groups_that_are_not_wanted_are_not_warned_of(attention):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert list(score(parse(READERS), attention, ignore="gate*")) == ["places", "hidden"]
        assert list(score(parse(READERS), attention, groups=["pl*", "gates"], ignore=["gates"])) == ["places"]
        assert list(score(parse("gamma"), attention, groups=["hidden"])) == ["hidden"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"groups": "conv*"},
            r"groups needs names or patterns of groups, places, gates, hidden, got \['conv\*'\]",
        ),
        ({"ignore": ["conv"]}, r"ignore needs names or patterns of groups, .* got \['conv'\]"),
        (
            {"ignore": "*"},
            r"nothing is left to score: groups=None and ignore=\* leave out every group of places",
        ),
        (
            {"groups": "gates"},
            r"needs operand WO, which producer key does not have: no layer with weights reads",
        ),
    ],
)
def test_nothing_to_score_is_an_error(attention, options, message):
    with pytest.raises(ValueError, match=message):
        score(parse(READERS), attention, **options)


def test_many_functions_say_what_they_leave_out(attention):
    functions = [library["l1"], parse(READERS), parse("gamma"), parse("gamma * sum(abs(GW))"), parse(READERS)]
    found = score_functions(functions, attention)
    assert [(each.status, each.detail) for each in found] == [
        ("ok", ""),
        ("ok", "no WO in gates"),
        ("ok", "no gamma in places, gates"),
        ("missing operand", "GW and gamma in query, value, key"),
        ("ok", "no WO in gates"),
    ]
    assert all(list(each.scores) == ["places", "gates", "hidden"] for each in found)
    assert np.isnan(found[1].scores["gates"]).all() and np.isfinite(found[1].scores["places"]).all()
    np.testing.assert_allclose(found[0].scores["gates"], score(library["l1"], attention)["gates"])
    assert list(score_functions(functions[:1], attention, groups="gates")[0].scores) == ["gates"]


def test_functions_are_compared_on_the_groups_that_both_score(attention):
    l1, readers = score_functions([library["l1"], parse(READERS)], attention)
    found = correlate(readers, {"l1": l1, "same": readers})
    assert found.names == ("same", "l1") and found.groups == ("places", "gates", "hidden")
    assert np.isnan(found.by_group[:, 1]).all() and found.together[0] == 1
    both = correlate(l1, {"readers": readers})
    np.testing.assert_allclose(found.together[1], both.together[0])


def test_a_ranking_leaves_out_the_same_groups_and_a_search_allows_none(attention):
    with pytest.warns(UserWarning, match="no WO in gates"):
        ranking = rank_groups(parse(READERS), attention)
    assert isinstance(ranking, Ranking) and list(ranking.scores) == ["places", "hidden"]
    assert list(rank_groups(parse(READERS), attention, ignore=["gates"]).scores) == ["places", "hidden"]
    (strict,) = rank_population([parse(READERS)], attention)
    assert strict == Invalid("operand WO is missing: this layer does not have it (query, key)")


def network():
    """A norm, attention and a head: what makes queries and keys has no reader, and only the stem has a scale."""

    def forward(net, x):
        return net.head(net.attention(net.norm(net.stem(x))).mean(1))

    return Net(
        {
            "stem": linear(6, 8),
            "norm": nnx.LayerNorm(8, rngs=nnx.Rngs(0)),
            "attention": nnx.MultiHeadAttention(2, 8, decode=False, rngs=nnx.Rngs(0), **INITIALISERS),
            "head": linear(8, 3, 1),
        },
        forward,
    )


def test_attention_is_scored_by_what_reads_its_values_and_pruned():
    net, x = network(), np.random.default_rng(0).normal(size=(6, 5, 6)).astype(np.float32)
    observed = observe(net, x, np.arange(6) % 3)
    heads, places = "attention.query.kernel:axis1", "attention.query.kernel:axis2"
    assert list(observed.groups) == ["stem.kernel", heads, places, "attention.out.kernel"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = {name: score(metrics[name], observed) for name in ("wanda", "flap", "thinet")}
        first = score(parse("sum(square(mP - mX)) * sum(square(WO))"), observed)
    assert all(list(scores) == list(observed.groups) for scores in (*found.values(), first))
    value = np.abs(np.asarray(net.attention.out.kernel[...])).sum((0, 2))  # [heads, places, out]
    read = observed[f"attention.value.kernel|{places}"]
    sizes = value * np.sqrt(np.square(np.asarray(read.samples)).mean((0, 1)))
    np.testing.assert_allclose(found["wanda"][places], sizes / sizes.mean(), rtol=1e-4)
    chosen = plan(net, first, x, kept_fraction=0.5)
    assert slim(net, chosen)(x).shape == (6, 3)
    with pytest.warns(UserWarning, match=f"no gamma in {heads}, {places}, attention.out.kernel"):
        scales = score(metrics["bn_scale"], observed)
    assert list(scales) == ["stem.kernel"]
    assert plan(net, scales, x, kept_fraction=0.5).kept_counts == {
        "stem.kernel": 4,
        heads: 2,
        places: 4,
        "attention.out.kernel": 8,
    }


def test_the_structure_tells_which_groups_can_be_scored():
    structure = trace_structure(network(), np.zeros((2, 5, 6), np.float32))
    assert scorable_groups(metrics["bn_scale"], structure) == ["stem.kernel"]
    assert scorable_groups(metrics["wanda"], structure) == list(structure.groups)
    with pytest.raises(
        ValueError, match=r"operand gamma, which producers attention.query.kernel:axis1, .* do not have"
    ):
        scorable_groups(metrics["bn_scale"], structure, groups="attention*")

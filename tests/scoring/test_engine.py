"""The engine on whole networks: layers side by side, padded to shared shapes, in columns, within a budget."""

import jax
import numpy as np
import pytest
from test_population_scores import LOWERINGS, MIXED, assert_close

from jaxprune.language.operands import DEFAULT_VOCABULARY, OPERANDS, register_operand
from jaxprune.language.parsing import parse
from jaxprune.language.published import library, own_seeds
from jaxprune.language.sampling import random_expression
from jaxprune.scoring import layers
from jaxprune.scoring.compiled import compile
from jaxprune.scoring.evaluator import Scorer
from jaxprune.scoring.records import Operands
from jaxprune.scoring.twins import set_answer, twin_of

CLASSED = [
    parse(text)
    for text in (
        "mean(abs(P - mX)) - std(Q*gamma)",
        "sum(mean_samples(square(Q))*mP)",
        "var(slice(abs(P), 2, 6)) + mean(transpose(square(Q)))",
        "mean(rbf(P, Q, 1)) - sum(abs(rbf(Q, X, 1)))/NX",
        "var(rbf(P, Q, 2)) + trace(rbf(Q, 2))/NQ",
        "sum(matmul(Q, mX)*matmul(Q, mQ)) + product(1 + 0.01*matmul(P, mP))",
        "sum(matmul(transpose(P - mP), P - mP)) + sum(inverse(matmul(transpose(Q), Q)))",
        "mean(mean(mQ*beta - abs(Q)) - WI)",
        "count(abs(Q)) + mean(geometric_median(W)) + mean(P - P)",
        "sum(square(inner(GW, WI)*GX)) + mean(abs(X*GX))",
    )
]
"""Every way in which a value can depend on the class, and what stands for it."""


def layer(seed, channels, positions, entries, outgoing, counts=(16, 12, 1)):
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(len(counts)), counts)
    normal = lambda *shape: rng.standard_normal(shape).astype(np.float32)  # noqa: E731
    return Operands.from_arrays(
        features=normal(len(labels), positions, channels) + labels[:, None, None],
        labels=labels,
        kernel=normal(entries, channels),
        outgoing=normal(channels, outgoing),
        gamma=normal(channels),
        beta=normal(channels),
        weight_gradient=normal(entries, channels),
        feature_gradient=normal(len(labels), positions, channels),
    )


@pytest.fixture(scope="module")
def network():
    return {
        "conv1": layer(0, channels=3, positions=12, entries=5, outgoing=7),
        "conv2": layer(1, channels=17, positions=4, entries=8, outgoing=3),
        "dense": layer(2, channels=6, positions=1, entries=13, outgoing=1),
    }


FUNCTIONS = [*CLASSED, *MIXED, *library.values(), *own_seeds.values()]


@pytest.fixture(scope="module")
def found(network):
    return Scorer(network).run(FUNCTIONS)


@pytest.mark.parametrize("path", ["conv1", "conv2", "dense"])
def test_every_layer_equals_the_compiled_function(network, found, path):
    fused = jax.jit(lambda ops: [compile(f)(ops) for f in FUNCTIONS])(network[path])
    assert not any(found[path].reasons)
    for f, row, alone in zip(FUNCTIONS, found[path].scores[:, 0], fused, strict=True):
        assert np.isfinite(alone).all(), str(f)
        assert_close(row, alone, rtol=1e-4)


def test_padding_never_leaks(network, found, monkeypatch):
    monkeypatch.setattr(layers, "PADDING", np.nan)
    again = Scorer(network).run(FUNCTIONS)
    for path in network:
        np.testing.assert_array_equal(again[path].scores, found[path].scores)
        np.testing.assert_array_equal(again[path].is_sound, found[path].is_sound)


@pytest.mark.parametrize("column_entries", [1, 300])
def test_columns_change_no_score(network, found, column_entries):
    again = Scorer(network, column_entries=column_entries).run(FUNCTIONS)
    for path in network:
        for row, whole in zip(again[path].scores, found[path].scores, strict=True):
            assert_close(row, whole, rtol=1e-4)


def test_a_small_budget_changes_no_score(network, found):
    again = Scorer(network, budget_bytes=100_000).run(FUNCTIONS)
    for path in network:
        assert not any(again[path].reasons)
        for row, whole in zip(again[path].scores, found[path].scores, strict=True):
            assert_close(row, whole, rtol=1e-4)


def test_what_was_computed_is_remembered(network):
    scorer = Scorer(network)
    first = scorer.run(FUNCTIONS)
    dispatched = []
    scorer._engine._programs = lambda work: dispatched.append(work) or {}
    second = scorer.run(FUNCTIONS[::-1])
    assert not dispatched
    np.testing.assert_array_equal(second["dense"].scores[::-1], first["dense"].scores)


def test_a_pruned_network_compiles_nothing(network):
    """Layers and populations of other true sizes, all within the same buckets."""
    pruned = {
        "conv1": layer(3, channels=4, positions=13, entries=7, outgoing=5),
        "conv2": layer(4, channels=19, positions=3, entries=6, outgoing=4),
        "dense": layer(5, channels=7, positions=1, entries=10, outgoing=1),
    }
    Scorer(network).run(FUNCTIONS)
    before = LOWERINGS[0]
    Scorer(pruned).run(FUNCTIONS[::-1])
    assert LOWERINGS[0] == before


def test_a_function_one_layer_refuses_is_scored_on_none(network):
    features = np.eye(8, 4, dtype=np.float32)
    bare = Operands.from_arrays(features=features, labels=[0, 1, 2, 0, 1, 2, 0, 1], kernel=np.eye(4))
    found = Scorer({"conv1": network["conv1"], "bare": bare}).run([parse("gamma"), parse("sum(WI)")])
    assert found["bare"].reasons == ["operand gamma is missing: this layer does not have it", None]
    assert found["conv1"].reasons == [None, None]
    assert np.isnan(found["conv1"].scores[0]).all() and np.isfinite(found["conv1"].scores[1]).all()
    assert not found["conv1"].is_sound[0].any()


def test_layers_must_fit_together(network):
    with pytest.raises(ValueError, match="a scorer needs the operands of at least one layer, got none"):
        Scorer({})
    two = layer(0, channels=3, positions=2, entries=2, outgoing=2, counts=(2, 2))
    with pytest.raises(
        ValueError, match="number of classes, got float32 with 2 classes for two and float32 with 3"
    ):
        Scorer({"conv1": network["conv1"], "two": two})
    with pytest.raises(TypeError, match="needs the Operands of one layer, got ndarray"):
        Scorer({"conv1": np.ones(3)})


def test_first_offenders_of_many_functions(network):
    asked = [("1/(1/(P - P))", "P - P"), ("sum(sqrt(mX - 100)) + N/(NX - NX)", "sqrt(mX - 100)")]
    functions = [parse(f"sum({text})" if text.startswith("1") else text) for text, _ in asked]
    scorer = Scorer(network)
    found = scorer.run(functions)
    assert not found["conv2"].is_sound.any()
    offenders = scorer.first_offenders([(f, "conv2", 0, 16) for f in functions])
    assert [str(node) for node in offenders] == ["1/(P - P)", "sqrt(mX - 100)"]


def test_rows_of_the_other_classes_of_ones_own_operand(network):
    rows = {}

    def read(operands):
        counts = np.array(operands.class_counts)
        size = int(counts.sum() - counts.min())
        return rows["value"][:, :, :size]

    register_operand("others_test", type=("NQ",), read=read, per_class=True)
    try:
        ops = network["dense"]
        rows["value"] = np.random.default_rng(0).standard_normal((6, 3, 28)).astype(np.float32)
        f = parse("sum(others_test*matmul(Q, mX)) + mean(others_test)")
        assert_close(Scorer(ops).run([f])[""].scores[0, 0], compile(f)(ops))
    finally:
        del OPERANDS["others_test"]


@pytest.mark.parametrize(
    ("text", "twin"),
    [
        ("abs(P - mX)", "abs(X - mX)"),
        ("square(Q)*mean(X)", "square(X)*mean(X)"),
        ("rbf(P, Q, 1)", "rbf(X, X, 1)"),
        ("matmul(P, transpose(Q))", "matmul(X, transpose(X))"),
        ("slice(P, 0, 4)", "slice(X, 0, 4)"),
        ("P - mP", None),
        ("P*N", None),
        ("matmul(transpose(P), P)", None),
        ("abs(mX)", "abs(mX)"),
    ],
)
def test_twins(text, twin):
    found = twin_of(parse(text))
    assert (None if found is None else str(found)) == (None if twin is None else str(parse(twin)))


def test_what_follows_from_a_twin():
    answered = {str(f): set_answer(parse(f)) for f in ("std(abs(Q))", "mean(rbf(P, Q, 1))", "var(rbf(P, 1))")}
    assert answered["std(abs(Q))"].name == "std(Q)" and not answered["std(abs(Q))"].is_pair
    assert answered["mean(rbf(P, Q, 1))"].name == "mean(P,Q)" and answered["mean(rbf(P, Q, 1))"].is_pair
    assert answered["var(rbf(P, 1))"] is None
    assert set_answer(parse("mean(abs(X))")) is None and set_answer(parse("var(P)")) is None


@pytest.mark.slow
@pytest.mark.timeout(3600)  # it compiles 900 functions one by one
def test_random_populations_stay_equal_on_a_network(network):
    drawn = [random_expression(jax.random.key(seed), DEFAULT_VOCABULARY) for seed in range(300)]
    found = Scorer(network).run(drawn)
    for path, ops in network.items():
        for f, row in zip(drawn, found[path].scores[:, 0], strict=True):
            alone = np.asarray(compile(f)(ops))
            finite = np.isfinite(alone)
            np.testing.assert_array_equal(np.isfinite(row), finite)
            scale = np.abs(alone[finite]).max(initial=0)
            np.testing.assert_allclose(
                row[finite], alone[finite], rtol=1e-3, atol=1e-4 * scale + 1e-9, err_msg=str(f)
            )


def test_lanes_hold_every_channel_once(network):
    found, starts, num_lanes = layers.layers_of(list(network.values()))
    assert [(one.lane, one.num_channels) for one in found] == [(0, 3), (3, 17), (20, 6)]
    assert starts == [[0], [3], [20]] and num_lanes == 26
    table = found[1].table("X", "full")
    assert table.shape == (32, 4) and table.channel_stride == 32 * 4 and table.class_stride == 0
    assert table.values.shape == (32 * 32 * 4,)

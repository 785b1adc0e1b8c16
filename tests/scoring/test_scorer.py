"""Populations on whole networks: layers side by side, in blocks, within a budget, on the host and on a device."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from float64_oracle import oracle
from test_population_scores import MIXED, assert_close

from jaxprune.language.library import library, own_seeds
from jaxprune.language.operators import OPERATORS
from jaxprune.language.parsing import parse
from jaxprune.language.registration import register_operand, register_operator
from jaxprune.language.sampling import random_expression
from jaxprune.language.vocabulary import DEFAULT_VOCABULARY, OPERANDS
from jaxprune.observation.operands import Operands
from jaxprune.scoring import device_dispatch, large_moments, numpy_evaluator
from jaxprune.scoring import scorer as scorer_module
from jaxprune.scoring.analysis import class_independent_form, set_answer
from jaxprune.scoring.compiled import compile
from jaxprune.scoring.populations import score_population
from jaxprune.scoring.scorer import Scorer

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


def layer(seed, channels, positions, entries, outgoing, counts=(16, 12, 1), dtype=np.float32):
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(len(counts)), counts)
    normal = lambda *shape: rng.standard_normal(shape).astype(dtype)  # noqa: E731
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


SHAPES = {
    "conv1": {"channels": 3, "positions": 12, "entries": 5, "outgoing": 7},
    "conv2": {"channels": 17, "positions": 4, "entries": 8, "outgoing": 3},
    "dense": {"channels": 6, "positions": 1, "entries": 13, "outgoing": 1},
}
SHAPES["conv1 again"] = SHAPES["conv1"]


def make_network(seed):
    """Random layers; those of seed 0 are far from where float32 runs out of digits (3 for the last would not be)."""
    numbers = dict(zip(SHAPES, (0, 1, 2, 4), strict=True))
    return {path: layer(5 * seed + numbers[path], **shape) for path, shape in SHAPES.items()}


@pytest.fixture(scope="module")
def network():
    return make_network(0)


FUNCTIONS = [*CLASSED, *MIXED, *library.values(), *own_seeds.values()]


@pytest.fixture(scope="module", params=["numpy", "device"])
def backend(request):
    return request.param


@pytest.fixture(scope="module")
def found(network, backend):
    return Scorer(network, backend=backend).run(FUNCTIONS)


@pytest.fixture(scope="module")
def fused(network):
    compiled = [compile(f) for f in FUNCTIONS]
    run = jax.jit(lambda ops: [f(ops) for f in compiled])
    return {path: run(ops) for path, ops in network.items()}


@pytest.mark.parametrize("path", SHAPES)
def test_every_layer_equals_the_compiled_function(fused, found, path):
    assert not any(found[path].reasons)
    for f, row, alone in zip(FUNCTIONS, found[path].scores[:, 0], fused[path], strict=True):
        assert np.isfinite(alone).all(), str(f)
        assert_close(row, alone, rtol=1e-4)


def assert_same_scores(again, found):
    for path in found:
        assert not any(again[path].reasons)
        for row, whole in zip(again[path].scores, found[path].scores, strict=True):
            assert_close(row, whole, rtol=1e-4)


@pytest.mark.parametrize("block_entries", [1, 300])
def test_blocks_change_no_score(network, found, block_entries):
    assert_same_scores(Scorer(network, block_entries=block_entries, backend="numpy").run(FUNCTIONS), found)


def test_blocks_of_channels_change_no_score_on_a_device(network, monkeypatch):
    """Values of more than 16 KiB are computed in blocks, the last of which overlap: 17 channels in 8 blocks of 3."""
    functions = [
        parse(text) for text in ("mean(abs(P - mX)) - std(Q*gamma)", "var(rbf(P, Q, 2)) + sum(mX*mP)")
    ]
    expected = Scorer(network, backend="numpy").run(functions)
    monkeypatch.setattr(device_dispatch, "VALUE_SHARE", 1 << 12)
    scorer = Scorer(network, backend="device", budget_bytes=1 << 26)
    assert_same_scores(scorer.run(functions), expected)
    assert max(spec.num_blocks for spec in scorer._evaluator.programs.compiled) >= 4


def test_large_moments_change_no_score_on_a_device(network, monkeypatch):
    functions = [parse("var(Q)*NX + sum(mX*mQ)")]
    expected = Scorer(network, backend="numpy").run(functions)
    monkeypatch.setattr(large_moments, "LARGE_BYTES", 0)
    scorer = Scorer(network, backend="device")
    assert_same_scores(scorer.run(functions), expected)
    (moments,) = scorer._evaluator._moments.values()
    assert isinstance(moments, large_moments.LargeMoments)
    assert set(moments._values) == {"var(Q)", "NX", "mean_samples(X)", "mean_samples(Q)"}
    assert len(moments) == 21 and {"N", "std(P)"} < set(moments)


def test_networks_of_equal_shapes_share_programs():
    alike = [layer(seed, channels=3, positions=5, entries=7, outgoing=2) for seed in range(2)]
    functions = [parse("mean(abs(P - mX)) + gamma"), parse("sum(WI)*2")]
    scorers = [Scorer(one, backend="device") for one in alike]
    scorers[0].run(functions)
    before = scorers[1].num_programs
    assert before > 4
    found = scorers[1].run(functions)[""]
    assert scorers[1].num_programs == before
    for row, other in zip(
        found.scores, Scorer(alike[1], backend="numpy").run(functions)[""].scores, strict=True
    ):
        assert_close(row, other)


def test_small_budgets_change_no_score(network, found, monkeypatch):
    monkeypatch.setattr(scorer_module, "LEAST_BYTES", 0)
    scorer = Scorer(network, budget_bytes=400_000, backend="numpy")
    assert scorer._evaluator._block_entries < 4000
    again = scorer.run(FUNCTIONS)
    for path in found:
        for row, whole, reason in zip(
            again[path].scores, found[path].scores, again[path].reasons, strict=True
        ):
            if reason is None:
                assert_close(row, whole, rtol=1e-4)
    assert sum(reason is None for reason in again["conv2"].reasons) > len(FUNCTIONS) / 2


def test_what_was_computed_is_remembered(network, monkeypatch):
    scorer = Scorer(network, backend="numpy")
    computed = []
    compute = numpy_evaluator.compute_node

    def noted(xp, node, *rest, **more):
        computed.append(node)
        return compute(xp, node, *rest, **more)

    monkeypatch.setattr(numpy_evaluator, "compute_node", noted)
    first = scorer.run(FUNCTIONS)
    assert sum(node.is_large for node in computed) > 50
    computed.clear()
    second = scorer.run(FUNCTIONS[::-1])
    assert computed and not any(node.is_large for node in computed)  # scalars from scalars alone
    np.testing.assert_array_equal(second["dense"].scores[::-1], first["dense"].scores)


def test_a_device_remembers_too(network):
    scorer = Scorer(network, backend="device")
    functions = [parse("mean(abs(P - mX)) + 1"), parse("sum(square(WI))*N")]
    first = scorer.run(functions)
    before = scorer.num_calls
    second = scorer.run(functions[::-1])
    assert scorer.num_calls - before <= 6  # a literal, a sum, a product, soundness, means
    np.testing.assert_array_equal(second["conv2"].scores[::-1], first["conv2"].scores)
    mixed = [parse("sum(square(WI)) + sum(abs(WO))*N"), parse("sum(WI*mean(abs(P - mX)))")]  # known and new
    assert_same_scores(scorer.run(mixed), Scorer(network, backend="numpy").run(mixed))


def test_float64_operands_stay_float64_wherever_they_are_scored(backend):
    with jax.enable_x64(True):
        wide = layer(0, channels=3, positions=5, entries=4, outgoing=2, dtype=np.float64)
    functions = [parse("var(P) + sum(WI)*0.1"), parse("mean(abs(P - mX)) + mean(rbf(X, 2))")]
    found = Scorer(wide, backend=backend).run(functions)[""].scores
    assert found.dtype == np.float64
    with jax.enable_x64(True):
        expected = [compile(f)(wide) for f in functions]
    np.testing.assert_allclose(found[:, 0], expected, rtol=1e-12)


def test_an_operator_registered_again_is_another_one(network, backend):
    scorer = Scorer(network["dense"], backend=backend)
    f = lambda: parse("sum(grow_test(WI))")  # noqa: E731
    filters = np.asarray(network["dense"].filters)
    try:
        register_operator("grow_test", lambda values: values**2)
        assert_close(scorer.run([f()])[""].scores[0, 0], (filters**2).sum(0))
        del OPERATORS["grow_test"]
        register_operator("grow_test", lambda values: values + 1)
        assert_close(scorer.run([f()])[""].scores[0, 0], (filters + 1).sum(0))
        found = Scorer(network["dense"], backend=backend).run([f()])[""].scores[0, 0]
        assert_close(found, (filters + 1).sum(0))
    finally:
        del OPERATORS["grow_test"]


def test_operators_of_ones_own_read_masks_of_classes_and_slices(network, backend):
    def largest(values, *, masks=None, params=()):
        real = jnp.ones(values.shape, bool)
        for axis, mask in enumerate(masks[0]):
            if mask is not None:
                real &= mask.reshape([-1 if other == axis else 1 for other in range(values.ndim)])
        return jnp.max(jnp.where(real, values, -jnp.inf))

    register_operator("largest_test", largest, signatures=["* -> ()"], uses_masks=True)
    try:
        functions = [
            parse("largest_test(slice(Q - mP, 2, 6)) + largest_test(P*gamma)"),
            parse("largest_test(mean(X))"),
        ]
        found = Scorer(network, backend=backend).run(functions)
        for path, ops in network.items():
            for f, row in zip(functions, found[path].scores[:, 0], strict=True):
                assert_close(row, compile(f)(ops), rtol=1e-4)
    finally:
        del OPERATORS["largest_test"]


@pytest.mark.parametrize(
    "text", ["mean(1/(1 - rbf(P, Q, 1)))", "trace(1/matmul(P, transpose(P)))", "sum(1/(X - 0*X))"]
)
def test_pairs_that_no_class_reads_may_be_anything(backend, text):
    """A row has distance 0 from itself, and classes at different positions have products of 0: read by nobody."""
    features = np.zeros((4, 4, 2), np.float32)
    features[:2, :2], features[2:, 2:] = [[1.0, 2.0]], [[3.0, 5.0]]
    features[1] *= 2
    features[3] *= 3
    ops = Operands.from_arrays(features=features, labels=[0, 0, 1, 1], kernel=np.eye(2))
    found = Scorer(ops, backend=backend).run([parse(text)])[""]
    expected = oracle(
        parse(text), {"features": features, "labels": np.array([0, 0, 1, 1]), "kernel": np.eye(2)}
    ).scores
    np.testing.assert_array_equal(np.isfinite(found.scores[0, 0]), np.isfinite(expected))
    np.testing.assert_array_equal(found.is_sound[0, 0], np.isfinite(expected))
    finite = np.isfinite(expected)
    np.testing.assert_allclose(found.scores[0, 0][finite], expected[finite], rtol=1e-5)


def test_a_registered_operand_has_the_axes_it_promises(network):
    register_operand("short_test", type=("F",), read=lambda ops: np.ones((ops.num_channels, 1), np.float32))
    try:
        with pytest.raises(
            ValueError,
            match=r"operand short_test must be read as \[C, F\] with 6 channels, got shape \(6, 1\)",
        ):
            Scorer(network["dense"]).run([parse("sum(short_test)")])
    finally:
        del OPERANDS["short_test"]


def shapes_of(scorer):
    evaluator = scorer._evaluator
    is_on_host = isinstance(evaluator, numpy_evaluator.NumpyEvaluator)
    return [batch.shape for batch in evaluator.batches] if is_on_host else list(evaluator.programs.batches)


def test_layers_alike_stand_side_by_side(network, backend, found):
    assert [group.num_members for group in shapes_of(Scorer(network, backend=backend))] == [2, 1, 1]
    for path, ops in network.items():
        alone = Scorer(ops, backend="numpy").run(FUNCTIONS)[""]
        for row, other in zip(found[path].scores, alone.scores, strict=True):
            assert_close(row, other, rtol=1e-4)


@pytest.fixture(scope="module")
def networks():
    """One for each function of `CLASSED`."""
    return [make_network(seed) for seed in range(len(CLASSED))]


def test_several_layers_of_paired_members(networks, backend):
    """The first function on the last network alone, and so on."""
    stacked = {path: Operands.stack([one[path] for one in networks]) for path in SHAPES}
    found = Scorer(stacked, backend=backend).run(CLASSED, networks=range(len(CLASSED))[::-1])
    for number, (f, members) in enumerate(zip(CLASSED, networks[::-1], strict=True)):
        alone = Scorer(members, backend="numpy").run([f])
        for path in SHAPES:
            assert_close(found[path].scores[number, 0], alone[path].scores[0, 0], rtol=1e-4)


@pytest.mark.parametrize(
    ("backend", "functions"), [("numpy", CLASSED), ("device", CLASSED[:2])], ids=["numpy", "device"]
)
def test_paired_members_of_one_layer(networks, backend, functions):
    """Two functions are enough on a device: `test_several_layers_of_paired_members` runs all of them there."""
    members = [one["dense"] for one in networks[: len(functions)]]
    found = score_population(functions, Operands.stack(members), paired=True, backend=backend)
    for f, row, one in zip(functions, found, members, strict=True):
        assert_close(row, Scorer(one, backend="numpy").run([f])[""].scores[0, 0], rtol=1e-4)


def test_a_device_gets_nothing_from_the_host_in_between_and_stacks_what_is_alike(network):
    functions = [parse(f"sum(abs(WI - {number}))*{number}/var(P)") for number in range(1, 9)]
    scorer = Scorer(network, backend="device")
    with jax.transfer_guard(
        "disallow"
    ):  # what is brought there and back is asked for explicitly, before and after
        scorer.run(functions)
    # literals, differences, magnitudes, sums, products, quotients, soundness twice, means: once for all functions
    assert scorer.num_calls <= 12


def test_after_warming_up_nothing_is_compiled(network):
    scorer = Scorer(layer(9, channels=4, positions=3, entries=6, outgoing=2), backend="device")
    functions = [parse("mean(abs(P - mX)) + 1"), parse("sum(square(WI))*N"), parse("gamma/0.5")]
    number = scorer.warm_up(functions)
    before = dict(scorer._evaluator.programs.compiled)
    scorer.run([parse("2 + mean(abs(P - mX))"), parse("sum(square(WI))*NQ"), parse("beta/0.25")])
    added = scorer._evaluator.programs.compiled.keys() - before.keys()
    assert number == len(before) > 5
    assert all(spec.kind == "mean" for spec in added)
    assert Scorer(network, backend="numpy").warm_up(functions) == 0


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
    alone = layer(0, channels=3, positions=2, entries=2, outgoing=2)
    with pytest.raises(ValueError, match="equally many stacked members, got 2 for b and 1 for a"):
        Scorer({"a": alone, "b": Operands.stack([alone, alone])})
    with pytest.raises(ValueError, match="backend must be one of numpy, device, got 'Numpy'"):
        Scorer(alone, backend="Numpy")


def test_first_offenders_of_many_functions(network, backend):
    asked = [("1/(1/(P - P))", "P - P"), ("sum(sqrt(mX - 100)) + N/(NX - NX)", "sqrt(mX - 100)")]
    functions = [parse(f"sum({text})" if text.startswith("1") else text) for text, _ in asked]
    scorer = Scorer(network, backend=backend)
    found = scorer.run(functions)
    assert not found["conv2"].is_sound.any()
    offenders = scorer.first_offenders([(f, "conv2", 0, 16) for f in functions])
    assert [str(node) for node in offenders] == ["1/(P - P)", "sqrt(mX - 100)"]


def test_rows_of_the_other_classes_of_ones_own_operand(network, backend):
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
        assert_close(Scorer(ops, backend=backend).run([f])[""].scores[0, 0], compile(f)(ops))
    finally:
        del OPERANDS["others_test"]


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ("abs(P - mX)", "abs(X - mX)"),
        ("square(Q)*mean(X)", "square(X)*mean(X)"),
        ("rbf(P, Q, 1)", "rbf(X, 1)"),
        ("matmul(P, transpose(Q))", "matmul(X, transpose(X))"),
        ("slice(P, 0, 4)", "slice(X, 0, 4)"),
        ("P - mP", None),
        ("P*N", None),
        ("matmul(transpose(P), P)", None),
        ("abs(mX)", "abs(mX)"),
    ],
)
def test_class_independent_forms(text, form):
    found = class_independent_form(parse(text))
    assert (None if found is None else str(found)) == (None if form is None else str(parse(form)))


def test_what_follows_from_a_class_independent_form():
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


def test_channels_of_all_layers_have_a_place_each(network):
    scorer = Scorer(network, backend="numpy")
    shapes = shapes_of(scorer)
    assert [(one.start, one.num_channels) for one in shapes] == [(0, 3), (6, 17), (23, 6)]
    assert scorer._evaluator.starts == [[0], [6], [23], [3]] and scorer._evaluator.num_channels == 29

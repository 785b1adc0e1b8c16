import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import monitoring

from jaxprune.language.library import library
from jaxprune.language.operators import OPERATORS
from jaxprune.language.parsing import parse
from jaxprune.language.registration import register_operand, register_operator
from jaxprune.language.sampling import random_expression
from jaxprune.language.vocabulary import DEFAULT_VOCABULARY, OPERANDS
from jaxprune.observation.gradients import Gradients
from jaxprune.observation.moments import sample_moments
from jaxprune.observation.observed import Observed
from jaxprune.observation.operands import Operands
from jaxprune.scoring.compiled import compile
from jaxprune.scoring.populations import score_population, score_with_status
from jaxprune.scoring.scorer import Scorer

MIXED = [
    parse(text)
    for text in (
        "sum(abs(X - mX)) * sqrt(sum(square(WO)))",
        "mean(rbf(P, Q, 2)) - mean(rbf(X, 0.5))",
        "trace(matmul(transpose(Q - mP), Q)) / N",
        "var(slice(X, 2, 7)) + gamma * sum(outer(WI, mQ))",
        "mean(W) * product(count(P) / NX)",
        "std(abs(Q)) + sum(inner(mX, mean_samples(square(P))))",
        "inner(WI, geometric_median(W)) * beta",
        "mean(matmul(Q, transpose(P))) + sum(matmul(WI, W)) + 3",
        "abs(mean(X) / std(Q))",
    )
]


LOWERINGS = [0]
"""How many programs JAX has lowered so far."""


def count_lowering(event, _seconds, **_):
    LOWERINGS[0] += event == "/jax/core/compile/jaxpr_to_mlir_module_duration"


monitoring.register_event_duration_secs_listener(count_lowering)


def make(seed=0, channels=5, counts=(7, 3, 1), positions=6):
    """Unbalanced classes, more examples in the moments than in the sample, fewer positions there."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(len(counts)), np.multiply(counts, 3))
    rng.shuffle(labels)
    features = (
        rng.standard_normal((len(labels), positions, channels)).astype(np.float32) + labels[:, None, None]
    )
    sampled = np.concatenate([np.flatnonzero(labels == k)[:count] for k, count in enumerate(counts)])
    weights = rng.standard_normal((4, 8, channels)).astype(np.float32)
    slopes = rng.standard_normal((sum(counts), len(range(0, positions, 2)), channels)).astype(np.float32)
    return Operands.build(
        moments=sample_moments(features, labels, num_classes=len(counts)),
        samples=jnp.asarray(features[sampled, ::2]),
        sample_labels=labels[sampled],
        kernel=jnp.asarray(weights[0]),
        outgoing=jnp.asarray(weights[1]),
        gamma=jnp.asarray(weights[2, 0]),
        beta=jnp.asarray(weights[2, 1]),
        gradients=Gradients(jnp.asarray(weights[3]), jnp.asarray(slopes)),
    )


def assert_close(actual, desired, rtol=2e-5):
    desired = np.asarray(desired)
    finite = np.isfinite(desired)
    scale = np.abs(desired[finite]).max(initial=0)
    np.testing.assert_array_equal(np.isfinite(actual), finite)
    np.testing.assert_allclose(
        np.asarray(actual)[finite], desired[finite], rtol=rtol, atol=2e-6 * scale + 1e-12
    )


@pytest.fixture(scope="module")
def functions():
    drawn = [random_expression(jax.random.key(seed), DEFAULT_VOCABULARY) for seed in range(30)]
    return [*MIXED, *library.values(), *drawn]


@pytest.fixture(scope="module")
def population(functions):
    return score_population(functions, make())


def test_by_hand():
    features = np.array([[0.0, 1.0], [2.0, 5.0], [4.0, 3.0]])
    ops = Operands.from_arrays(features=features, labels=[0, 0, 1], kernel=[[1.0, -2.0], [3.0, 4.0]])
    texts = ["sum(abs(WI))", "mean(P) - mean(Q)", "sum(square(P)) * N", "var(X)", "sum(X) / count(X)"]
    scores = score_population([parse(text) for text in texts], ops)
    np.testing.assert_allclose(scores[0], [4, 6])
    np.testing.assert_allclose(scores[1], [0, 0], atol=1e-6)  # (1 - 4 + 4 - 1)/2
    np.testing.assert_allclose(scores[2], [(4 * 2 + 16) / 2, (26 * 2 + 9) / 2])
    np.testing.assert_allclose(scores[3], [8 / 3, 8 / 3], rtol=1e-6)
    np.testing.assert_allclose(scores[4], [2, 3], rtol=1e-6)


def test_each_row_equals_the_compiled_function(functions, population):
    ops = make()
    fused = jax.jit(lambda ops: [compile(f)(ops) for f in functions])(ops)
    for f, row, alone in zip(functions, population, fused, strict=True):
        assert alone.shape == (5,), str(f)
        assert_close(row, alone)


@pytest.mark.parametrize("f", [MIXED[0], MIXED[1], library["evolved_eq3"]], ids=str)
def test_jit_equals_eager_and_vmap(f):
    members = [make(0), make(1)]
    jitted = [compile(f)(ops) for ops in members]
    assert_close(inspect.unwrap(compile(f))(members[0]), jitted[0])
    together = Operands.stack(members)
    mapped, stacked = jax.vmap(compile(f))(together), compile(f)(together)
    for index, alone in enumerate(jitted):
        assert_close(mapped[index], alone)
        assert_close(stacked[index], alone)


def test_reordering_channels_reorders_scores(functions, population):
    order = np.array([3, 0, 4, 1, 2])
    own = [i for i, f in enumerate(functions) if not {"W", "gamma"} & f.operands or f in MIXED]
    moved = score_population([functions[i] for i in own], make().take(order))
    for row, i in enumerate(own):
        assert_close(moved[row], population[i][order])


def test_stacked_members_equal_one_by_one(functions, population):
    stacked = score_population(functions, Operands.stack([make(0), make(1)]))
    assert stacked.shape == (len(functions), 2, 5)
    for both, row, other in zip(stacked, population, score_population(functions, make(1)), strict=True):
        assert_close(both[0], row)
        assert_close(both[1], other)


def test_paired_scores_are_the_diagonal(functions):
    members, own = Operands.stack([make(0), make(1)]), functions[:2]
    whole = score_population(own, members)
    paired = score_population(own, members, paired=True)
    assert_close(paired, np.stack([whole[0, 0], whole[1, 1]]))
    for given, message in (
        (members, "got 3 functions and 2 stacked"),
        (make(), "got 3 functions and no stacked"),
    ):
        with pytest.raises(ValueError, match=f"one function for each stacked member, {message} members"):
            score_population(functions[:3], given, paired=True)


def test_no_functions_give_no_rows():
    assert score_population([], make()).shape == (0, 5)
    assert score_with_status([], Operands.stack([make(0), make(1)]))[0].shape == (0, 2, 5)


@pytest.mark.parametrize("block_entries", [1, 250])
def test_blocks_change_no_score(block_entries):
    members = [make(0), make(1)]
    whole = score_population(MIXED, Operands.stack(members))
    found = Scorer(Operands.stack(members), block_entries=block_entries).run(MIXED)[""]
    assert found.is_sound.all()
    for row, expected in zip(found.scores, whole, strict=True):
        assert_close(row, expected)


def test_a_cpu_compiles_nothing(functions):
    drawn = [random_expression(jax.random.key(seed), DEFAULT_VOCABULARY) for seed in range(100, 120)]
    ops = make(2)
    before = LOWERINGS[0]
    score_population([*functions, *drawn], ops)
    assert LOWERINGS[0] == before
    jax.jit(lambda x: x + len(functions))(1.0)
    assert LOWERINGS[0] > before  # the counter counts


def test_one_more_formula_compiles_no_program_of_its_own_on_a_device():
    scorer = Scorer(make(), backend="device")
    texts = ("sum(abs(WI)) + 1", "sum(abs(WI)) * var(P)", "var(Q)*3 + 4", "mean(rbf(P, 1.5))")
    scorer.run([parse(text) for text in texts])
    compiled = scorer._evaluator.programs.compiled
    before = {spec._replace(size=1) for spec in compiled}
    scorer.run([parse("(sum(abs(WI)) + 0.25)*var(Q) + var(P)"), parse("mean(rbf(P, 2.5))")])
    assert {spec._replace(size=1) for spec in compiled} == before


def test_functions_of_samples_read_everything_from_the_sample():
    ops = make()
    only_sample = Operands.build(
        moments=ops.sample_moments,
        samples=ops.samples,
        sample_labels=np.repeat(np.arange(3), ops.class_counts),
        kernel=ops.filters,
        sample_is_full=True,
    )
    mixed, moments = parse("mean(abs(X)) + var(P) + N"), parse("var(P) + N + sum(mQ)")
    np.testing.assert_allclose(compile(mixed)(ops), compile(mixed)(only_sample), rtol=1e-6)
    assert not np.allclose(compile(moments)(ops), compile(moments)(only_sample))


def test_missing_operands_are_named():
    ops = Operands.from_arrays(features=np.eye(4), labels=[0, 1, 0, 1], kernel=np.eye(4))
    functions = [parse("gamma * sum(WO)"), parse("sum(WI)"), parse("sum(GW)")]
    scores, reasons = score_with_status(functions, ops)
    assert reasons[0] == "operand WO and gamma is missing: this layer does not have it"
    assert reasons[1] is None and "operand GW is missing" in reasons[2]
    assert reasons[2].endswith("or weight_gradient= and feature_gradient= of from_arrays")
    assert np.isnan(scores[0]).all() and np.isfinite(scores[1]).all()
    with pytest.raises(ValueError, match=r"sum\(WI\*gamma\): operand gamma is missing"):
        compile(parse("sum(WI*gamma)"))(ops)
    with pytest.raises(
        ValueError, match=r"that it can evaluate on this layer, got .*gamma.*use score_with_status"
    ):
        score_population(functions, ops)


def test_what_costs_too_much_is_refused_before_it_runs():
    ops = make()
    _, reasons = score_with_status([parse("mean(matmul(Q, transpose(Q)))")], ops, budget_bytes=1000)
    assert reasons[0] == (
        "refused: matmul(Q, transpose(Q)) needs 484 bytes for one channel, more than a quarter of the budget of 1000 "
        "bytes; the least that works is 1936 bytes"
    )
    assert score_with_status([parse("mean(matmul(Q, transpose(Q)))")], ops, budget_bytes=1936)[1] == [None]
    _, reasons = score_with_status([parse("mean(outer(mX, matmul(Q, mX)))")], ops, budget_bytes=200)
    assert reasons[0].startswith("refused: outer(mX, matmul(Q, mX)) needs 132 bytes for one channel")
    found = Scorer(ops, max_flops=1000).run([parse("mean(rbf(Q, 1))"), parse("gamma")])[""]
    assert found.reasons[0].startswith("refused: needs ") and "operations on this layer" in found.reasons[0]
    assert found.reasons[1] is None


def test_only_scalars_are_pruning_functions():
    with pytest.raises(ValueError, match=r"scalar per channel, got abs\(mX\) of type \(D\)"):
        compile(parse("abs(mX)"))
    with pytest.raises(TypeError, match=r"must be an Expression, got str. Use parse\(text\)"):
        score_population(["sum(WI)"], make())


def test_only_one_layer_is_scored():
    observed = Observed({"conv1.kernel": make()}, {"conv1.kernel": ("conv1.kernel",)})
    for run in (compile(parse("sum(WI)")), lambda ops: score_population([parse("sum(WI)")], ops)):
        with pytest.raises(TypeError, match=r"needs the Operands of one layer, got Observed.*or use score"):
            run(observed)


def test_intermediate_values_that_are_not_finite_are_found():
    features = np.zeros((4, 2), np.float32)
    features[:, 1] = [1, 2, 3, 5]
    ops = Operands.from_arrays(features=features, labels=[0, 1, 0, 1], kernel=np.ones((2, 2)))
    hidden, shown, sound = parse("1 / (1 / var(X))"), parse("var(P) / var(X)"), parse("var(P) / (var(X) + 1)")
    for block_entries in (None, 1):
        scorer = Scorer(ops, block_entries=block_entries)
        found = scorer.run([hidden, shown, sound])[""]
        assert np.isfinite(found.scores[0]).all()  # plain IEEE: 1 / inf is 0
        np.testing.assert_array_equal(found.is_sound[:, 0], [[False, True], [False, True], [True, True]])
        offenders = scorer.first_offenders([(hidden, "", 0, 0), (shown, "", 0, 0)])
        assert str(offenders[0]) == "1/var(X)" and offenders[1] is shown


def test_offending_samples_are_found_within_blocks():
    ops = make()
    f = parse("mean(sqrt(abs(X) - 100)) + sum(mX)")
    stacked = Operands.stack([ops, ops])
    scorer = Scorer(stacked, block_entries=64)
    assert not scorer.run([f])[""].is_sound.any()
    assert list(map(str, scorer.first_offenders([(f, "", 1, 4)]))) == ["sqrt(abs(X) - 100)"]


def test_registered_operands_and_operators_join_in():
    rng = np.random.default_rng(0)
    extra = rng.standard_normal((4, 3)).astype(np.float32)
    register_operand("entropy_test", type=(), read=lambda ops: jnp.sum(ops.filters**2, axis=0))
    register_operand("drift_test", type=("D",), read=lambda ops: jnp.ones((4, 3, 1)), per_class=True)
    register_operand("slope_test", type=("F",), read=lambda ops: ops.extras.get("slope_test"))
    register_operator("cube_test", lambda values: values**3)
    try:
        features = rng.standard_normal((6, 4)).astype(np.float32)
        kernel = rng.standard_normal((3, 4)).astype(np.float32)
        arrays = {"features": features, "labels": [0, 1, 2, 0, 1, 2], "kernel": kernel}
        ops = Operands.from_arrays(**arrays, extras={"slope_test": extra})
        functions = [
            parse(t)
            for t in (
                "cube_test(entropy_test)",
                "sum(WI*slope_test)",
                "sum(drift_test)",
                "sum(WI)*sum(slope_test)",
            )
        ]
        for scores in (score_population(functions, ops), [compile(f)(ops) for f in functions]):
            np.testing.assert_allclose(scores[0], (kernel**2).sum(0) ** 3, rtol=1e-5)
            np.testing.assert_allclose(scores[1], (kernel.T * extra).sum(1), rtol=1e-5)
            np.testing.assert_allclose(scores[2], np.ones(4))
        np.testing.assert_allclose(
            score_population(functions, Operands.stack([ops, ops]))[:, 1, 0], scores_at(ops, functions)
        )
        del OPERANDS["drift_test"]
        register_operand("drift_test", type=("D",), read=lambda ops: jnp.ones((4, 1)), per_class=True)
        with pytest.raises(
            ValueError, match=r"drift_test must be read as \[C, K, D\] with 4 channels, got shape"
        ):
            score_population([parse("sum(drift_test)")], ops)
    finally:
        OPERANDS.pop("entropy_test", None)
        OPERANDS.pop("drift_test", None)
        OPERANDS.pop("slope_test", None)
        OPERATORS.pop("cube_test", None)


def scores_at(ops, functions):
    return score_population(functions, ops)[:, 0]

"""Gradients at every producer against `jax.grad` of hand-written networks, finite differences and identities."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax import export
from pruned_nets import IMAGES, LABELS, NETWORKS, Net, conv, flat, linear, plain, residual, sigmoid_net

from jaxprune.language.library import library, own_seeds
from jaxprune.language.parsing import parse
from jaxprune.nets import PlainConvNet, SmallConvNet
from jaxprune.observation import observer as observation
from jaxprune.observation.loss_gradients import add_gradients, cross_entropy, sample_gradients
from jaxprune.observation.observed import Observed
from jaxprune.observation.observer import make_observer, observe
from jaxprune.observation.sample import pool_positions
from jaxprune.scoring.ranking import rank_population, score
from jaxprune.structure.model_state import merge_model, parameter_paths, split_model
from jaxprune.structure.producer_sites import channel_columns
from jaxprune.structure.tracing import trace_structure

ORDER = np.argsort(LABELS, kind="stable")


def mean_loss(model, arrays, images=IMAGES, labels=LABELS):
    graphdef, _, rest = split_model(model, "evaluation")
    logits = merge_model(graphdef, arrays, rest)(jnp.asarray(images))
    return optax.softmax_cross_entropy_with_integer_labels(logits, jnp.asarray(labels)).mean()


def parameter_gradients(model, labels=LABELS):
    """Dotted path -> gradient of the mean loss, by differentiating the network itself."""
    arrays = split_model(model)[1]
    names = list(arrays)
    trained = {path: arrays[path] for path in names if path in parameter_paths(model)}
    found = jax.jit(jax.grad(lambda some: mean_loss(model, arrays | some, labels=labels)))(trained)
    return {".".join(map(str, path)): value for path, value in found.items()}


@cache
def network(name):
    """The network of that name, shared by tests that do not change it."""
    return NETWORKS[name]()


@cache
def gradients_by_jax(name):
    """Those of the network itself."""
    return parameter_gradients(network(name))


@cache
def observed_whole(name):
    """Operands with gradients of all images at once, by producer."""
    return observe(network(name), IMAGES, LABELS).with_gradients()


def columns(kernel):
    return np.asarray(kernel).reshape(-1, kernel.shape[-1])


def gradients_of(model, **options):
    observed = observe(model, IMAGES, LABELS, **options).with_gradients()
    return {path: operands.gradients for path, operands in observed.items()}


def assert_close(found, expected, rtol=1e-4):
    scale = float(np.abs(np.asarray(expected)).max())
    np.testing.assert_allclose(found, expected, rtol=rtol, atol=1e-5 * scale)


def linear_net():
    layers = {"fc1": linear(64, 4, 1), "head": linear(4, 3, 2)}
    return Net(layers, lambda net, x: net.head(net.fc1(flat(x))))


def test_a_linear_network_by_hand():
    net = linear_net()
    x = IMAGES.reshape(24, 64)
    hidden = x @ net.fc1.kernel[...] + net.fc1.bias[...][None]
    residuals = jax.nn.softmax(net.head(hidden)) - jax.nn.one_hot(LABELS, 3)  # d loss / d logits
    of_hidden = residuals @ net.head.kernel[...].T
    found = gradients_of(net)["fc1.kernel"]
    assert_close(found.samples[:, 0], of_hidden[ORDER])
    assert_close(found.weights, x.T @ of_hidden / 24)
    assert_close(found.fisher, ((hidden * of_hidden) ** 2).mean(0))
    assert_close(found.first_order, jnp.abs(hidden * of_hidden).mean(0))


@pytest.mark.parametrize("name", NETWORKS)
def test_weight_gradients_are_those_of_the_network_itself(name):
    expected = gradients_by_jax(name)
    for path, found in gradients_of(network(name), num_samples=9, batch_size=7).items():
        assert_close(found.weights, columns(expected[path]))


@pytest.mark.parametrize("name", sorted(set(NETWORKS) - {"residual", "residual_dense"}))
def test_activations_times_gradients_are_weights_times_gradients_of_the_consumer(name):
    """A layer's output is linear in its inputs and in its weights, channel by channel."""
    arrays = split_model(network(name))[1]
    structure = trace_structure(network(name), IMAGES)
    of_weights = gradients_by_jax(name)
    for path, operands in observed_whole(name).items():
        site = structure.sites[path]
        consumer = ".".join(map(str, site.consumer))
        product = np.asarray(arrays[site.consumer]) * np.asarray(of_weights[consumer])
        expected = np.asarray(channel_columns(product, site.consumer_channels)).sum(0)
        products = np.asarray(operands.samples) * np.asarray(operands.gradients.samples)
        found = np.sum(products, axis=(0, 1)) / len(IMAGES)
        assert_close(found, expected)


def test_a_residual_value_is_differentiated_through_both_ways_it_goes():
    net = residual()
    normed = nnx.view(net, use_running_average=True)
    x = jax.jit(lambda images: nnx.relu(normed.norm0(net.stem(images))))(IMAGES)

    @jax.jit
    @jax.grad
    def gradient(x):
        y = normed.norm2(net.conv2(nnx.relu(normed.norm1(net.conv1(x)))))
        logits = net.head(nnx.relu(x + y).mean((1, 2)))
        return optax.softmax_cross_entropy_with_integer_labels(logits, LABELS).sum()

    assert_close(gradients_of(net)["stem.kernel"].samples, np.asarray(gradient(x)).reshape(24, 64, 4)[ORDER])


class TestFiniteDifferences:
    """Central differences in float64 on a LeNet-like net, one with batch norm, and one with tanh."""

    @staticmethod
    def lenet_like(net, x=None, images=None):
        if x is None:
            return jnp.asarray(_pool(jax.nn.relu(net.conv1(images))))
        x = _pool(jax.nn.relu(net.conv2(x)))
        return net.output(jax.nn.relu(net.dense(flat(x))))

    @staticmethod
    def normed(net, x=None, images=None):
        if x is None:
            return jax.nn.relu(net.norm1(net.conv1(images)))
        x = _pool(jax.nn.relu(net.norm2(net.conv2(x))))
        x = jax.nn.relu(net.norm3(net.conv3(x)))
        x = _pool(jax.nn.relu(net.norm4(net.conv4(x))))
        return net.output(jax.nn.relu(net.dense(flat(x))))

    @staticmethod
    def tanh(net, x=None, images=None):
        return jnp.tanh(net.conv1(images)) if x is None else net.head(flat(jnp.tanh(net.conv2(x))))

    @staticmethod
    def tanh_net():
        layers = {"conv1": conv(1, 3), "conv2": conv(3, 4, 1), "head": linear(4 * 64, 3, 2)}
        return Net(
            layers, lambda net, x: TestFiniteDifferences.tanh(net, TestFiniteDifferences.tanh(net, images=x))
        )

    @pytest.mark.parametrize("kind", ["lenet_like", "normed", "tanh"])
    def test_gradients(self, kind):
        make = {
            "lenet_like": lambda: PlainConvNet(nnx.Rngs(0), widths=(3, 4, 5), num_classes=3),
            "normed": lambda: SmallConvNet(nnx.Rngs(0), widths=(3, 4, 4, 5, 6), num_classes=3),
            "tanh": self.tanh_net,
        }[kind]
        parts = getattr(self, kind)
        with jax.enable_x64(True):
            graphdef, arrays, rest = split_model(make(), "evaluation")
            rng = np.random.default_rng(0)
            arrays = {  # running statistics away from zero and one
                path: jax.device_put(np.asarray(value, np.float64) * (1 + 0.3 * rng.random(value.shape)))
                for path, value in arrays.items()
            }
            net = merge_model(graphdef, arrays, rest)
            images = jnp.asarray(IMAGES, jnp.float64)
            operands = observe(net, images, LABELS).with_gradients()["conv1.kernel"]
            assert operands.gradients.samples.dtype == np.float64

            @jax.jit
            def losses(x):
                return optax.softmax_cross_entropy_with_integer_labels(parts(net, x), jnp.asarray(LABELS))

            x = np.asarray(jax.jit(lambda images: parts(net, images=images))(images))
            gradient = np.zeros(x.shape)
            gradient[ORDER] = np.asarray(operands.gradients.samples).reshape(x.shape)
            for _ in range(6):
                nudge = 1e-6 * rng.standard_normal(x.shape)
                found = (np.asarray(losses(x + nudge)) - np.asarray(losses(x - nudge))) / 2
                np.testing.assert_allclose(found, (gradient * nudge).sum((1, 2, 3)), rtol=1e-5, atol=1e-13)

            @jax.jit
            def mean_of(kernel):
                changed = merge_model(graphdef, arrays | {("conv1", "kernel"): kernel}, rest)
                return losses(parts(changed, images=images)).mean()

            kernel = np.asarray(arrays["conv1", "kernel"])
            for _ in range(4):
                nudge = 1e-6 * rng.standard_normal(kernel.shape)
                found = float(mean_of(kernel + nudge) - mean_of(kernel - nudge)) / 2
                expected = float((columns(nudge) * np.asarray(operands.gradients.weights)).sum())
                np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-13)


def _pool(x):
    n, h, w, c = x.shape
    return x.reshape(n, h // 2, 2, w // 2, 2, c).max((2, 4))


@pytest.mark.parametrize("batch_size", [2, 7, 24, 100])
def test_padding_and_batch_size_do_not_matter(batch_size):
    streamed = gradients_of(network("plain"), num_samples=6, batch_size=batch_size)
    chosen = np.concatenate([np.flatnonzero(LABELS[ORDER] == k)[:2] for k in range(3)])
    for path, operands in observed_whole("plain").items():
        found, expected = streamed[path], operands.gradients
        assert_close(found.samples, np.asarray(expected.samples)[chosen])
        for name in ("weights", "fisher", "first_order"):
            assert_close(getattr(found, name), getattr(expected, name))


def test_gradients_of_pooled_positions_are_sums_over_their_windows():
    full = observed_whole("sigmoid_net")["conv1.kernel"].gradients
    pooled = gradients_of(sigmoid_net(), max_positions=16)["conv1.kernel"]
    assert pooled.samples.shape == (24, 16, 4)
    windows = np.asarray(full.samples).reshape(24, 4, 2, 4, 2, 4).sum((2, 4)).reshape(24, 16, 4)
    assert_close(pooled.samples, windows)
    assert_close(pooled.fisher, full.fisher)
    assert float(pool_positions(jnp.ones((1, 5, 5, 1)), 9, jnp.sum).sum()) == 25.0


def test_the_two_averages_over_examples_are_of_all_positions():
    operands = observe(sigmoid_net(), IMAGES, LABELS, max_positions=4, num_samples=6).with_gradients()[
        "conv1.kernel"
    ]
    every = observed_whole("sigmoid_net")["conv1.kernel"]
    product = np.asarray(every.samples) * np.asarray(every.gradients.samples)
    assert_close(operands.gradients.fisher, (product.sum(1) ** 2).mean(0))
    assert_close(operands.gradients.first_order, np.abs(product.mean(1)).mean(0))


@pytest.fixture
def runs(monkeypatch):
    """How often gradients were computed, as a list with an entry each time."""
    done = []
    make = observation.make_gradients

    def counted(*args):
        compute = make(*args)
        return lambda arrays: done.append(1) or compute(arrays)

    monkeypatch.setattr(observation, "make_gradients", counted)
    return done


def test_gradients_are_computed_once_and_only_when_a_function_asks(runs):
    observed = observe(plain(), IMAGES, LABELS)
    score(library["l1"], observed)
    rank_population([library["fdr"], library["l2"]], observed)
    assert runs == [] and observed["conv1.kernel"].gradients is None
    first = score(own_seeds["taylor"], observed)
    assert len(runs) == 1
    rank_population([parse("mean(abs(X*GX))"), own_seeds["taylor"]], observed)
    again = score(own_seeds["taylor"], observed.with_gradients())
    assert len(runs) == 1
    jax.tree.map(np.testing.assert_array_equal, first, again)


def test_scores_read_the_gradients():
    net = plain()
    observed = observe(net, IMAGES, LABELS)
    expected = parameter_gradients(net)
    for path in observed:
        layer, _ = path.split(".")
        kernel = getattr(net, layer).kernel[...]
        taylor = (columns(expected[path]) * columns(kernel)).sum(0) ** 2
        assert_close(score(own_seeds["taylor"], observed)[path], taylor / taylor.mean())
    operands = observed.with_gradients()["conv1.kernel"]
    inner = jnp.mean(jnp.abs(jnp.sum(operands.samples * operands.gradients.samples, axis=1)), axis=0)
    found = score(parse("sum(abs(GX))"), observed)["conv1.kernel"]
    magnitudes = np.abs(operands.gradients.samples).sum((0, 1))
    assert_close(found, magnitudes / magnitudes.mean())
    assert_close(inner, operands.gradients.first_order * operands.samples.shape[1])


def test_members_keep_their_gradients_apart(runs):
    nets = [plain(), plain()]
    nets[1].conv1.kernel[...] = 2 * nets[1].conv1.kernel[...]
    observer = make_observer(nets[0], IMAGES, LABELS, num_samples=6)
    members = [observer(split_model(net)[1]) for net in nets]
    by_net = [observer(split_model(net)[1]).with_gradients() for net in nets]
    expected = [{path: operands.gradients for path, operands in member.items()} for member in by_net]
    runs.clear()
    stacked = Observed.stack(members)
    alone = stacked.member(1).with_gradients()
    assert len(runs) == 1  # the other member's are not needed
    scores = score(own_seeds["taylor"], stacked)
    assert len(runs) == 2 and scores["conv1.kernel"].shape == (2, 4)
    together = stacked.with_gradients()
    for path in stacked:
        for index in range(2):
            member = together.member(index)
            jax.tree.map(assert_close, member[path].gradients, expected[index][path])
            assert_close(scores[path][index], score(own_seeds["taylor"], member)[path])
        assert_close(alone[path].gradients.weights, expected[1][path].weights)
    assert len(runs) == 2
    mixed = Observed.stack([members[0].with_gradients(), observer(split_model(nets[1])[1])])
    assert mixed.has_gradients and len(runs) == 3


def test_reordering_a_layers_channels_reorders_its_gradients():
    net, moved = plain(), plain()
    order = np.array([2, 0, 3, 1])
    moved.conv1.kernel[...] = jax.device_put(np.asarray(net.conv1.kernel[...])[..., order])
    moved.conv1.bias[...] = jax.device_put(np.asarray(net.conv1.bias[...])[order])
    moved.conv2.kernel[...] = jax.device_put(np.asarray(net.conv2.kernel[...])[:, :, order])
    observer = make_observer(net, IMAGES, LABELS)
    expected, found = (
        observer(split_model(model)[1]).with_gradients()["conv1.kernel"].gradients for model in (net, moved)
    )
    jax.tree.map(lambda new, old: assert_close(new, np.asarray(old)[..., order]), found, expected)


@jax.custom_vjp
def clipped_round(x):
    return jnp.round(2 * x) / 2


clipped_round.defvjp(lambda x: (clipped_round(x), x), lambda x, g: (jnp.where(jnp.abs(x) < 1, g, 0.0),))


def test_derivative_rules_of_the_network_hold():
    """ReLU at zero and a rounding with a straight-through derivative: neither is the derivative of its steps."""
    layers = {"conv1": conv(1, 4), "conv2": conv(4, 5, 1), "head": linear(5 * 64, 3, 2)}
    layers["conv1"].kernel[...] = layers["conv1"].kernel[...].at[..., 1].set(0.0)  # its ReLU sees zeros only
    net = Net(
        layers,
        lambda net, x: net.head(flat(clipped_round(net.conv2(jax.checkpoint(nnx.relu)(net.conv1(x)))))),
    )
    expected = parameter_gradients(net)
    found = gradients_of(net)
    for path in ("conv1.kernel", "conv2.kernel"):
        assert_close(found[path].weights, columns(expected[path]))
    assert np.abs(found["conv1.kernel"].weights[:, 0]).max() > 0
    assert np.abs(found["conv1.kernel"].weights[:, 1]).max() == 0


def test_half_precision_networks_have_float32_gradients():
    net = Net(
        {"conv1": conv(1, 4, dtype=jnp.bfloat16), "head": linear(256, 3, 2)},
        lambda net, x: net.head(flat(nnx.relu(net.conv1(x)))),
    )
    found = gradients_of(net)["conv1.kernel"]
    assert {leaf.dtype for leaf in found} == {np.dtype(np.float32)}
    expected = columns(parameter_gradients(net)["conv1.kernel"])
    np.testing.assert_allclose(found.weights, expected, atol=0.01 * np.abs(expected).max())


def test_ones_own_loss_and_several_outputs():
    net = Net(
        {"fc1": linear(64, 4, 1), "head": linear(4, 3, 2), "extra": linear(4, 1, 3)},
        lambda net, x: (net.head(net.fc1(flat(x))), net.extra(net.fc1(flat(x)))),
    )

    def squared(outputs, labels):
        logits, energy = outputs
        return jnp.sum((logits - labels[:, None]) ** 2, axis=-1) + energy[:, 0]

    labels = LABELS * 7 - 3
    found = observe(net, IMAGES, labels, loss=squared).with_gradients()["fc1.kernel"].gradients
    x = IMAGES.reshape(24, 64)
    hidden = x @ net.fc1.kernel[...] + net.fc1.bias[...][None]
    of_logits = 2 * (net.head(hidden) - labels[:, None].astype(np.float32))
    assert_close(found.weights, x.T @ (of_logits @ net.head.kernel[...].T + net.extra.kernel[...].T) / 24)


def whiled(net, x):
    x = nnx.relu(net.conv1(x))
    return jax.lax.while_loop(lambda y: y.sum() > 1e9, lambda y: y / 2, net.head(flat(x)))


BAD = {
    "labels beyond the outputs": (
        {"labels": LABELS + 1},
        r"need labels 0 .. 2, as the network has 3 outputs, got 1 .. 3",
    ),
    "negative labels": (
        {"labels": LABELS - 1},
        r"got -1 .. 1. Number the classes as the outputs are, or give",
    ),
    "words": (
        {"labels": np.array(["a", "b", "c"])[LABELS]},
        "labels that a loss can read, whole numbers, got dtype <U1",
    ),
    "averaged loss": (
        {"loss": lambda outputs, labels: cross_entropy(outputs, labels).mean()},
        r"a loss that gives one number per example, \(24,\), got .*Do not average",
    ),
    "a loss of classes": (
        {"loss": lambda outputs, labels: jnp.argmax(outputs, axis=-1)},
        "a loss that gives one number per example",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_losses_that_cannot_be_are_named_when_gradients_are_asked_for(case):
    changes, message = BAD[case]
    observed = observe(plain(), IMAGES, **({"labels": LABELS} | changes))
    score(library["l1"], observed)
    for ask in (observed.with_gradients, lambda: score(own_seeds["taylor"], observed)):
        with pytest.raises(ValueError, match=message):
            ask()


def test_networks_without_logits_or_derivative_are_named():
    layers = {"conv1": conv(1, 4), "head": linear(256, 3, 2)}
    pixels = Net(layers, lambda net, x: net.head(flat(nnx.relu(net.conv1(x)))).reshape(-1, 3, 1))
    with pytest.raises(
        ValueError, match=r"returns \[N, K\] logits, .*got outputs of shapes \[\(24, 3, 1\)\].*loss=\.\.\."
    ):
        observe(pixels, IMAGES, LABELS).with_gradients()
    with pytest.raises(
        ValueError, match=r"that JAX can differentiate, but it failed with ValueError: Reverse-mode"
    ):
        observe(Net(layers, whiled), IMAGES, LABELS).with_gradients()


def test_both_passes_lower_for_every_platform():
    net = residual()
    structure = trace_structure(net, IMAGES[:2])
    arrays = {path: jax.ShapeDtypeStruct(a.shape, a.dtype) for path, a in split_model(net)[1].items()}
    images, labels = jax.ShapeDtypeStruct((2, 8, 8, 1), np.float32), jax.ShapeDtypeStruct((2,), np.int32)

    def both(arrays, images, labels, is_real):
        sums, rows = sample_gradients(structure, cross_entropy, 16, arrays, images, labels)
        return add_gradients(structure, cross_entropy, arrays, sums, images, labels, is_real), rows

    lowered = export.export(jax.jit(both), platforms=("cpu", "cuda", "tpu"))
    exported = lowered(arrays, images, labels, jax.ShapeDtypeStruct((2,), bool))
    assert exported.platforms == ("cpu", "cuda", "tpu")

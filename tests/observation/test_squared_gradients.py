"""Mean squares of each image's own gradient, against NumPy by hand and against one `jax.grad` per image."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax import export
from pruned_nets import IMAGES, LABELS, NETWORKS, Net, conv, flat, linear, plain

from jaxprune.language.library import library
from jaxprune.language.parsing import parse
from jaxprune.observation import loss_gradients as squared_gradients
from jaxprune.observation.loss_gradients import add_squares, num_together
from jaxprune.observation.observed import Observed
from jaxprune.observation.observer import make_observer, observe
from jaxprune.scoring.formula_cost import layer_costs
from jaxprune.scoring.metrics import metrics
from jaxprune.scoring.ranking import rank_population, score
from jaxprune.structure.model_state import merge_model, parameter_paths, split_model
from jaxprune.structure.program import trace_program
from jaxprune.structure.tracing import trace_structure

OBD = metrics["obd"]


def squares_of(model, **options):
    """Producer path -> [F, C]."""
    observed = observe(model, IMAGES, LABELS, **options).with_squared_gradients()
    return {path: np.asarray(operands.extras["GW2"]).T for path, operands in observed.items()}


@cache
def squares_of_plain():
    """Differentiated as many together as memory allows."""
    return squares_of(plain())


def one_by_one(model):
    """Dotted path -> mean over images of the square of the image's own gradient."""
    graphdef, arrays, rest = split_model(model, "evaluation")
    trained = {path: arrays[path] for path in arrays if path in parameter_paths(model)}

    @jax.jit
    @jax.grad
    def own(some, image, label):
        logits = merge_model(graphdef, arrays | some, rest)(image[None])
        return optax.softmax_cross_entropy_with_integer_labels(logits, label[None]).sum()

    found = [own(trained, image, label) for image, label in zip(IMAGES, LABELS, strict=True)]
    means = jax.tree.map(lambda *each: np.mean([np.asarray(one) ** 2 for one in each], axis=0), *found)
    return {".".join(map(str, path)): value for path, value in means.items()}


def assert_close(found, expected, rtol=1e-4):
    scale = float(np.abs(np.asarray(expected)).max())
    np.testing.assert_allclose(found, expected, rtol=rtol, atol=1e-5 * scale)


def softmax(logits):
    odds = np.exp(logits - logits.max(1, keepdims=True))
    return odds / odds.sum(1, keepdims=True)


def test_a_linear_network_by_hand():
    """d loss_n / d w_fc = x_nf h_nc, with h the gradient at the layer's outputs."""
    net = Net({"fc1": linear(64, 4, 1), "head": linear(4, 3, 2)}, lambda net, x: net.head(net.fc1(flat(x))))
    x, w, b = IMAGES.reshape(24, 64), np.asarray(net.fc1.kernel[...]), np.asarray(net.fc1.bias[...])
    w2, b2 = np.asarray(net.head.kernel[...]), np.asarray(net.head.bias[...])
    of_outputs = (softmax((x @ w + b) @ w2 + b2) - np.eye(3)[LABELS]) @ w2.T
    expected = np.mean([np.outer(x[n], of_outputs[n]) ** 2 for n in range(24)], axis=0)
    assert_close(squares_of(net)["fc1.kernel"], expected)
    saliency = (expected * w**2).sum(0) / 2
    assert_close(score(OBD, observe(net, IMAGES, LABELS))["fc1.kernel"], saliency / saliency.mean())
    together = np.mean([np.outer(x[n], of_outputs[n]) for n in range(24)], axis=0) ** 2
    assert (together.sum(0) < 0.9 * expected.sum(0)).all()  # the squared mean gradient is something else


def test_a_convolution_by_hand():
    """d loss_n / d w of a tap: the sum over positions of what the tap sees times the gradient there."""
    net = Net(
        {"conv1": conv(1, 3), "head": linear(3 * 64, 3, 2)},
        lambda net, x: net.head(flat(net.conv1(x))),
    )
    w, b = np.asarray(net.conv1.kernel[...], np.float64), np.asarray(net.conv1.bias[...])
    w2, b2 = np.asarray(net.head.kernel[...], np.float64), np.asarray(net.head.bias[...])
    padded = np.pad(IMAGES[..., 0].astype(np.float64), ((0, 0), (1, 1), (1, 1)))
    seen = np.stack(
        [padded[:, i : i + 8, j : j + 8] for i in range(3) for j in range(3)], axis=-1
    )  # [N, 8, 8, 9]
    outputs = seen @ w.reshape(9, 3) + b
    logits = outputs.reshape(24, -1) @ w2 + b2
    of_outputs = ((softmax(logits) - np.eye(3)[LABELS]) @ w2.T).reshape(24, 8, 8, 3)
    own = np.einsum("nhwf,nhwc->nfc", seen, of_outputs)
    assert_close(squares_of(net)["conv1.kernel"], np.mean(own**2, axis=0))


@pytest.mark.parametrize("name", NETWORKS)
def test_they_are_those_of_every_image_by_itself(name):
    net = NETWORKS[name]()
    expected = one_by_one(net)
    for path, found in squares_of(net, num_samples=6, batch_size=7).items():
        assert_close(found, expected[path].reshape(found.shape))


@pytest.mark.parametrize("together", [1, 5, 24, 100])
def test_how_many_are_differentiated_together_does_not_matter(together, monkeypatch):
    expected = squares_of_plain()
    monkeypatch.setattr(squared_gradients, "_MAX_TOGETHER", together)
    for path, found in squares_of(plain()).items():
        assert_close(found, expected[path], rtol=1e-5)


def test_no_more_are_held_than_memory_is_set_aside_for():
    assert num_together(15_000_000 * 4, 2000) * 15_000_000 * 4 <= 1 << 28
    assert num_together(10, 7) == 7 and num_together(1 << 40, 7) == 1


def test_the_networks_own_derivative_rules_hold():
    @jax.custom_vjp
    def rounded(x):
        return jnp.round(2 * x) / 2

    rounded.defvjp(lambda x: (rounded(x), None), lambda _, g: (g,))
    net = Net(
        {"conv1": conv(1, 4), "head": linear(4 * 64, 3, 2)},
        lambda net, x: net.head(flat(rounded(net.conv1(x)))),
    )
    found = squares_of(net)["conv1.kernel"]
    assert found.max() > 0
    assert_close(found, one_by_one(net)["conv1.kernel"].reshape(found.shape))


def test_ones_own_loss():
    def margin(outputs, labels):
        return -jnp.take_along_axis(outputs, labels[:, None], axis=1)[:, 0]

    net = Net({"fc1": linear(64, 4, 1), "head": linear(4, 3, 2)}, lambda net, x: net.head(net.fc1(flat(x))))
    of_outputs = -np.asarray(net.head.kernel[...]).T[LABELS]
    expected = np.mean((IMAGES.reshape(24, 64, 1) * of_outputs[:, None]) ** 2, axis=0)
    assert_close(squares_of(net, loss=margin)["fc1.kernel"], expected)


@pytest.fixture
def runs(monkeypatch):
    """How often squares were computed, as a list with an entry each time."""
    done = []
    make = squared_gradients.make_squared_gradients

    def counted(*args):
        compute = make(*args)
        return lambda arrays: done.append(1) or compute(arrays)

    monkeypatch.setattr("jaxprune.observation.observer.make_squared_gradients", counted)
    return done


def test_they_are_computed_once_and_only_when_a_function_asks(runs):
    observed = observe(plain(), IMAGES, LABELS)
    rank_population([library["l1"], metrics["taylor"], metrics["fisher"]], observed)
    assert runs == [] and not observed.has_squared_gradients
    assert layer_costs(parse("sum(GW2)"), observed)[0].refusal == ""
    first = score(OBD, observed)
    again = score(OBD, observed.with_squared_gradients())
    assert len(runs) == 1
    jax.tree.map(np.testing.assert_array_equal, first, again)
    both = observed.with_gradients().with_squared_gradients()
    assert both.has_gradients and both.has_squared_gradients and both.with_squared_gradients() is both


def test_members_keep_theirs_apart(runs):
    nets = [plain(), plain()]
    nets[1].conv1.kernel[...] = 2 * nets[1].conv1.kernel[...]
    observer = make_observer(nets[0], IMAGES, LABELS, num_samples=6)
    members = [observer(split_model(net)[1]) for net in nets]
    stacked = Observed.stack(members)
    found = score(OBD, stacked)
    assert len(runs) == 2
    for index, member in enumerate(members):
        for path, expected in score(OBD, member).items():
            assert_close(found[path][index], expected)
    mixed = Observed.stack([members[0].with_squared_gradients(), observer(split_model(nets[1])[1])])
    assert mixed.has_squared_gradients and len(runs) == 3
    assert_close(score(OBD, mixed.member(1))["conv1.kernel"], found["conv1.kernel"][1])


def test_what_does_not_suit_the_loss_is_named():
    for labels, options, message in [
        (LABELS + 1, {}, r"need labels 0 .. 2, as the network has 3 outputs, got 1 .. 3"),
        (LABELS, {"loss": lambda outputs, labels: outputs.mean()}, r"one number per example, \(1,\), got"),
    ]:
        with pytest.raises(ValueError, match=message):
            observe(plain(), IMAGES, labels, **options).with_squared_gradients()

    def halved(net, x):
        logits = net.head(flat(nnx.relu(net.conv1(x))))
        return jax.lax.while_loop(lambda s: s.max() > 1e9, lambda s: s / 2, logits)

    net = Net({"conv1": conv(1, 4), "head": linear(4 * 64, 3, 2)}, halved)
    with pytest.raises(
        ValueError, match=r"network and a loss that JAX can differentiate.*without GW, GX and GW2"
    ):
        observe(net, IMAGES, LABELS).with_squared_gradients()


def test_it_lowers_for_every_platform():
    net = plain()
    graphdef, arrays, rest = split_model(net, "evaluation")
    one = trace_program(graphdef, arrays, rest, jax.ShapeDtypeStruct((1, 8, 8, 1), jnp.float32))
    kernels = {site.kernel for site in trace_structure(net, IMAGES).sites.values()}
    sums = {path: jnp.zeros(arrays[path].shape) for path in sorted(kernels)}

    def step(arrays, sums, images, labels, is_real):
        def loss(outputs, labels):
            return optax.softmax_cross_entropy_with_integer_labels(outputs, labels)

        return add_squares(one, loss, arrays, sums, images, labels, is_real)

    arguments = (dict(arrays), sums, jnp.asarray(IMAGES[:4]), jnp.asarray(LABELS[:4]), jnp.ones(4, bool))
    exported = export.export(jax.jit(step), platforms=("cpu", "cuda", "tpu"))(*arguments)
    assert exported.platforms == ("cpu", "cuda", "tpu")

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from pruned_nets import (
    IMAGES,
    LABELS,
    NETWORKS,
    Net,
    channels_first,
    conv,
    conv_norm_relu,
    conv_relu_norm,
    flat,
    linear,
    mlp,
    norm,
    plain,
    pool,
    relative_error,
    residual,
    run,
    scores_of,
)

from jaxprune.observation.covariances import Covariance
from jaxprune.observation.observed import Observed
from jaxprune.observation.observer import observe
from jaxprune.pruning.compensation import compensated_state, predict_removed
from jaxprune.pruning.compensation_gain import compensation_gains
from jaxprune.pruning.masking import apply_masks, channel_masks
from jaxprune.pruning.planning import make_plan, plan
from jaxprune.pruning.slimming import slim
from jaxprune.structure.model_state import merge_model, set_mode, split_model
from jaxprune.structure.tracing import trace_structure


def plan_of(net, **kept):
    """A plan that keeps some channels of groups, named by their first layer."""
    structure = trace_structure(net, IMAGES)
    return make_plan(structure, {f"{name}.kernel": channels for name, channels in kept.items()})


def arrays_of(net):
    return {path: np.asarray(array, np.float64) for path, array in split_model(net)[1].items()}


def regression(rows, kept, ridge=1e-3):
    """The prediction of removed columns from kept ones, by normal equations of centred data."""
    mean = rows.mean(0)
    centred = rows - mean
    removed = [channel for channel in range(rows.shape[1]) if channel not in kept]
    covariance = centred.T @ centred / len(rows)
    square = covariance[np.ix_(kept, kept)] + ridge * np.trace(covariance) / rows.shape[1] * np.eye(len(kept))
    weights = np.linalg.inv(square) @ covariance[np.ix_(kept, removed)]
    return removed, weights, mean[removed] - weights.T @ mean[kept]


class TestAgainstNumPy:
    def test_a_dense_chain(self):
        net = mlp()
        kept = [0, 2, 5, 6]
        smaller = slim(net, plan_of(net, fc1=kept), compensate=observe(net, IMAGES, LABELS))
        rows = np.asarray(nnx.tanh(net.fc1(flat(jnp.asarray(IMAGES)))), np.float64)
        removed, weights, constant = regression(rows, kept)
        kernel, bias = (np.asarray(variable[...], np.float64) for variable in (net.fc2.kernel, net.fc2.bias))
        np.testing.assert_allclose(
            smaller.fc2.kernel[...], kernel[kept] + weights @ kernel[removed], rtol=1e-4, atol=1e-5
        )
        np.testing.assert_allclose(
            smaller.fc2.bias[...], bias + constant @ kernel[removed], rtol=1e-4, atol=1e-5
        )
        np.testing.assert_array_equal(smaller.fc3.kernel[...], net.fc3.kernel[...])

    def test_a_convolution_is_corrected_at_each_position_of_its_window(self):
        net = plain()
        kept = [0, 3]
        smaller = slim(net, plan_of(net, conv1=kept), compensate=observe(net, IMAGES, LABELS))
        features = np.asarray(pool(nnx.relu(net.conv1(jnp.asarray(IMAGES)))), np.float64)
        removed, weights, constant = regression(features.reshape(-1, 4), kept)
        kernel = np.asarray(net.conv2.kernel[...], np.float64)
        expected = kernel[:, :, kept] + np.einsum("kr,hwro->hwko", weights, kernel[:, :, removed])
        np.testing.assert_allclose(smaller.conv2.kernel[...], expected, rtol=1e-4, atol=1e-5)
        shift = np.einsum("r,hwro->o", constant, kernel[:, :, removed])
        np.testing.assert_allclose(smaller.conv2.bias[...] - net.conv2.bias[...], shift, rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize(("build", "axes"), [(plain, (0, 1, 2)), (channels_first, (2, 0, 1))])
    def test_a_flattened_map_is_corrected_at_each_of_its_positions(self, build, axes):
        net, name = build(), "conv2" if build is plain else "conv1"
        maps = pool(nnx.relu(net.conv1(jnp.asarray(IMAGES))))
        maps = pool(nnx.relu(net.conv2(maps))) if build is plain else pool(maps)
        num_channels = maps.shape[-1]
        kept = [1, 2]
        smaller = slim(net, plan_of(net, **{name: kept}), compensate=observe(net, IMAGES, LABELS))
        rows = np.asarray(maps, np.float64).reshape(-1, num_channels)
        removed, weights, constant = regression(rows, kept)
        kernel = np.asarray(net.dense.kernel[...], np.float64)
        cube = kernel.reshape(np.array([2, 2, num_channels])[list(axes)].tolist() + [-1])
        last = np.moveaxis(cube, axes.index(2), 2)
        expected = last[:, :, kept] + np.einsum("kr,hwro->hwko", weights, last[:, :, removed])
        expected = np.moveaxis(expected, 2, axes.index(2)).reshape(-1, kernel.shape[1])
        np.testing.assert_allclose(smaller.dense.kernel[...], expected, rtol=1e-4, atol=1e-5)
        shift = np.einsum("r,hwro->o", constant, last[:, :, removed])
        np.testing.assert_allclose(smaller.dense.bias[...] - net.dense.bias[...], shift, rtol=1e-4, atol=1e-5)

    def test_the_mean_of_a_batch_norm_takes_the_constant_of_a_layer_without_bias(self):
        layers = {"conv1": conv(1, 4), "conv2": conv(4, 6, 1, use_bias=False), "norm2": norm(6, 1)}
        layers["head"] = linear(6, 3, 2)
        net = Net(layers, lambda n, x: n.head(nnx.relu(n.norm2(n.conv2(nnx.relu(n.conv1(x))))).mean((1, 2))))
        kept = [0, 1]
        smaller = slim(net, plan_of(net, conv1=kept), compensate=observe(net, IMAGES, LABELS))
        rows = np.asarray(nnx.relu(net.conv1(jnp.asarray(IMAGES))), np.float64).reshape(-1, 4)
        removed, _, constant = regression(rows, kept)
        kernel = np.asarray(net.conv2.kernel[...], np.float64)
        shift = np.einsum("r,hwro->o", constant, kernel[:, :, removed])
        np.testing.assert_allclose(net.norm2.mean[...] - smaller.norm2.mean[...], shift, rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(smaller.norm2.bias[...], net.norm2.bias[...])

    def test_a_layer_without_bias_or_norm_gets_the_best_prediction_without_a_constant(self):
        layers = {"fc1": linear(64, 8), "fc2": linear(8, 3, 1, use_bias=False)}
        net = Net(layers, lambda n, x: n.fc2(nnx.sigmoid(n.fc1(flat(x)))))
        kept = [0, 3, 4]
        smaller = slim(net, plan_of(net, fc1=kept), compensate=observe(net, IMAGES, LABELS))
        rows = np.asarray(nnx.sigmoid(net.fc1(flat(jnp.asarray(IMAGES)))), np.float64)
        moments = rows.T @ rows / len(rows)
        removed = [1, 2, 5, 6, 7]
        square = moments[np.ix_(kept, kept)] + 1e-3 * np.trace(moments) / 8 * np.eye(3)
        weights = np.linalg.solve(square, moments[np.ix_(kept, removed)])
        kernel = np.asarray(net.fc2.kernel[...], np.float64)
        np.testing.assert_allclose(
            smaller.fc2.kernel[...], kernel[kept] + weights @ kernel[removed], rtol=1e-4, atol=1e-5
        )

    def test_a_single_output_has_a_bias_too(self):
        layers = {"fc1": linear(64, 8), "fc2": linear(8, 1, 1)}
        net = Net(layers, lambda n, x: n.fc2(nnx.sigmoid(n.fc1(flat(x)))))
        smaller = slim(net, plan_of(net, fc1=[0, 3, 4]), compensate=observe(net, IMAGES, LABELS))
        rows = np.asarray(nnx.sigmoid(net.fc1(flat(jnp.asarray(IMAGES)))), np.float64)
        removed, _, constant = regression(rows, [0, 3, 4])
        expected = constant @ np.asarray(net.fc2.kernel[...], np.float64)[removed]
        np.testing.assert_allclose(smaller.fc2.bias[...], expected, rtol=1e-4, atol=1e-6)

    def test_all_consumers_of_a_residual_stream_are_corrected(self):
        net = residual()
        kept = [0, 2]
        smaller = slim(net, plan_of(net, stem=kept), compensate=observe(net, IMAGES, LABELS))
        still = set_mode(net, "evaluation")
        x = nnx.relu(still.norm0(still.stem(jnp.asarray(IMAGES))))
        y = still.norm2(still.conv2(nnx.relu(still.norm1(still.conv1(x)))))
        for layer, values in (("conv1", x), ("head", nnx.relu(x + y).mean((1, 2)))):
            rows = np.asarray(values, np.float64).reshape(-1, 4)
            removed, weights, _ = regression(rows, kept)
            kernel = np.asarray(getattr(net, layer).kernel[...], np.float64)
            expected = kernel[..., kept, :] + np.einsum("kr,...ro->...ko", weights, kernel[..., removed, :])
            np.testing.assert_allclose(getattr(smaller, layer).kernel[...], expected, rtol=1e-3, atol=1e-4)


def redundant(first, channels, copies):
    """Makes channels of a layer equal to others of it."""
    kernel, bias = np.array(first.kernel[...]), np.array(first.bias[...])
    kernel[..., channels], bias[channels] = kernel[..., copies], bias[copies]
    first.kernel[...], first.bias[...] = jnp.asarray(kernel), jnp.asarray(bias)


class TestNothingIsLost:
    def test_copies_of_kept_channels_are_not_missed(self):
        net = Net(
            {"conv1": conv(1, 8), "conv2": conv(8, 6, 1, padding="VALID"), "head": linear(6, 3, 2)},
            lambda n, x: n.head(nnx.relu(n.conv2(nnx.relu(n.conv1(x)))).mean((1, 2))),
        )
        redundant(net.conv1, [1, 4, 6], [0, 3, 0])
        chosen = plan_of(net, conv1=[0, 2, 3, 5, 7])
        compensated = slim(net, chosen, compensate=observe(net, IMAGES, LABELS))
        assert relative_error(run(net), run(compensated)) < 3e-3  # of the order of the ridge
        assert relative_error(run(net), run(slim(net, chosen))) > 0.05

    def test_linear_combinations_of_kept_channels_are_not_missed(self):
        net = Net({"fc1": linear(64, 8), "fc2": linear(8, 3, 1)}, lambda n, x: n.fc2(n.fc1(flat(x))))
        kernel = np.array(net.fc1.kernel[...])
        kernel[:, 5:] = kernel[:, :5] @ np.random.default_rng(0).normal(size=(5, 3)) + 0.0
        net.fc1.kernel[...] = jnp.asarray(kernel)
        net.fc1.bias[...] = jnp.arange(8.0)
        chosen = plan_of(net, fc1=[0, 1, 2, 3, 4])
        compensated = slim(net, chosen, compensate=observe(net, IMAGES, LABELS))
        assert relative_error(run(net), run(compensated)) < 1e-2
        assert relative_error(run(net), run(slim(net, chosen))) > 0.3

    def test_constant_channels_become_part_of_the_bias(self):
        net = Net(
            {"conv1": conv(1, 4), "conv2": conv(4, 6, 1, padding="VALID"), "head": linear(6, 3, 2)},
            lambda n, x: n.head(nnx.relu(n.conv2(nnx.relu(n.conv1(x)))).mean((1, 2))),
        )
        kernel, bias = np.array(net.conv1.kernel[...]), np.array([0.0, 3.0, 0.0, 1000.0], np.float32)
        kernel[..., [1, 3]] = 0
        net.conv1.kernel[...], net.conv1.bias[...] = jnp.asarray(kernel), jnp.asarray(bias)
        chosen = plan_of(net, conv1=[0, 2])
        compensated = slim(net, chosen, compensate=observe(net, IMAGES, LABELS))
        assert relative_error(run(net), run(compensated)) < 1e-5

    def test_a_depthwise_convolution_passes_channels_on(self):
        layers = {"first": conv(1, 6), "depth": conv(6, 6, 1, feature_group_count=6)}
        layers |= {"point": nnx.Conv(6, 5, (1, 1), rngs=nnx.Rngs(2)), "head": linear(5, 3, 3)}

        def forward(n, x):
            return n.head(nnx.relu(n.point(nnx.relu(n.depth(nnx.relu(n.first(x)))))).mean((1, 2)))

        net = Net(layers, forward)
        redundant(net.first, [1, 4], [0, 3])
        redundant(net.depth, [1, 4], [0, 3])
        chosen = plan_of(net, first=[0, 2, 3, 5])
        compensated = slim(net, chosen, compensate=observe(net, IMAGES, LABELS))
        assert relative_error(run(net), run(compensated)) < 3e-3
        assert relative_error(run(net), run(slim(net, chosen))) > 0.05


class TestGroupedConvolutions:
    """Four blocks of two channels; each block's outputs read its own two channels only."""

    def net(self):
        layers = {"conv1": conv(1, 8), "mid": conv(8, 12, 1, feature_group_count=4, padding="VALID")}
        layers |= {"conv3": nnx.Conv(12, 5, (1, 1), rngs=nnx.Rngs(2)), "head": linear(5, 3, 3)}
        return Net(
            layers,
            lambda n, x: n.head(nnx.relu(n.conv3(nnx.relu(n.mid(nnx.relu(n.conv1(x)))))).mean((1, 2))),
        )

    def test_each_block_is_corrected_by_its_own_channels(self):
        net, kept = self.net(), [1]
        chosen = make_plan(trace_structure(net, IMAGES), {"conv1.kernel:inner": kept})
        smaller = slim(net, chosen, compensate=observe(net, IMAGES, LABELS))
        rows = np.asarray(nnx.relu(net.conv1(jnp.asarray(IMAGES))), np.float64).reshape(-1, 8)
        kernel, bias = (np.asarray(part[...], np.float64) for part in (net.mid.kernel, net.mid.bias))
        for block in range(4):
            removed, weights, constant = regression(rows[:, 2 * block : 2 * block + 2], kept)
            own = kernel[..., 3 * block : 3 * block + 3]
            expected = own[:, :, kept] + np.einsum("kr,hwro->hwko", weights, own[:, :, removed])
            part = smaller.mid.kernel[...][..., 3 * block : 3 * block + 3]
            np.testing.assert_allclose(part, expected, rtol=1e-4, atol=1e-5)
            shift = bias[3 * block : 3 * block + 3] + np.einsum("r,hwro->o", constant, own[:, :, removed])
            np.testing.assert_allclose(
                smaller.mid.bias[...][3 * block : 3 * block + 3], shift, rtol=1e-4, atol=1e-5
            )

    def test_copies_within_blocks_are_not_missed(self):
        net = self.net()
        redundant(net.conv1, [1, 3, 5, 7], [0, 2, 4, 6])
        chosen = make_plan(trace_structure(net, IMAGES), {"conv1.kernel:inner": [0]})
        observed = observe(net, IMAGES, LABELS)
        assert relative_error(run(net), run(slim(net, chosen, compensate=observed))) < 3e-3
        assert relative_error(run(net), run(slim(net, chosen))) > 0.05
        (gain,) = compensation_gains(net, chosen, observed)
        assert (gain.group, gain.consumer) == ("conv1.kernel:inner", "mid.kernel")
        assert gain.after < 3e-3 < 0.3 < gain.before

    def test_whole_blocks_are_passed_on_to_what_mixes_them(self):
        net = self.net()
        redundant(net.conv1, [2, 3, 6, 7], [0, 1, 4, 5])
        redundant(net.mid, [3, 4, 5, 9, 10, 11], [0, 1, 2, 6, 7, 8])
        chosen = make_plan(trace_structure(net, IMAGES), {"conv1.kernel:outer": [0, 2]})
        observed = observe(net, IMAGES, LABELS)
        compensated = slim(net, chosen, compensate=observed)
        assert relative_error(run(net), run(compensated)) < 3e-3
        np.testing.assert_array_equal(compensated.mid.kernel[...][..., :3], net.mid.kernel[...][..., :3])
        assert [gain.consumer for gain in compensation_gains(net, chosen, observed)] == ["conv3.kernel"]


class TestGains:
    @pytest.mark.parametrize("has_bias", [True, False])
    def test_they_are_the_errors_of_outputs(self, has_bias):
        layers = {"fc1": linear(64, 8), "fc2": linear(8, 5, 1, use_bias=has_bias), "head": linear(5, 3, 2)}
        net = Net(layers, lambda n, x: n.head(nnx.relu(n.fc2(nnx.sigmoid(n.fc1(flat(x)))))))
        chosen, kept = plan_of(net, fc1=[0, 2, 3, 7]), [0, 2, 3, 7]
        observed = observe(net, IMAGES, LABELS)
        (gain,) = compensation_gains(net, chosen, observed)
        rows = np.asarray(nnx.sigmoid(net.fc1(flat(jnp.asarray(IMAGES)))), np.float64)
        full = rows @ np.asarray(net.fc2.kernel[...], np.float64)
        errors = []
        for smaller in (slim(net, chosen), slim(net, chosen, compensate=observed)):
            found = rows[:, kept] @ np.asarray(smaller.fc2.kernel[...], np.float64)
            if has_bias:
                found = found + np.asarray(smaller.fc2.bias[...] - net.fc2.bias[...])[None]
            errors.append(np.sqrt(np.square(found - full).mean() / np.square(full).mean()))
        np.testing.assert_allclose([gain.before, gain.after], errors, rtol=1e-3)
        assert str(gain) == f"fc1.kernel -> fc2.kernel: output error {gain.before:.1%} -> {gain.after:.1%}"

    @pytest.mark.parametrize("name", NETWORKS)
    def test_every_consumer_of_every_group_gains(self, name):
        net = NETWORKS[name]()
        structure = trace_structure(net, IMAGES)
        chosen = plan(net, scores_of(structure), IMAGES, kept_fraction=0.75)
        gains = compensation_gains(net, chosen, observe(net, IMAGES, LABELS))
        assert {gain.group for gain in gains} == set(structure.groups)
        assert all(0 <= gain.after < gain.before for gain in gains)


@pytest.mark.parametrize("name", NETWORKS)
def test_it_comes_nearer_to_the_full_network_than_a_cut(name):
    """On average over plans: what is best for each layer alone need not be for all of them together."""
    net = NETWORKS[name]()
    observed, full, errors = observe(net, IMAGES, LABELS), run(net), []
    structure = trace_structure(net, IMAGES)
    for seed in range(4):
        scores = scores_of(structure, seed)
        half = plan(net, scores, IMAGES, kept_fraction=0.75)
        both = (slim(net, half, compensate=each) for each in (observed, None))
        errors.append([np.square(full - run(smaller)).mean() for smaller in both])
    compensated, cut = np.mean(errors, axis=0)
    assert compensated < 0.7 * cut


def test_a_plan_that_keeps_everything_changes_nothing():
    net = conv_norm_relu()
    structure = trace_structure(net, IMAGES)
    chosen = make_plan(structure, {group: range(width) for group, width in structure.widths.items()})
    same = slim(net, chosen, compensate=observe(net, IMAGES, LABELS))
    for path, array in split_model(net)[1].items():
        np.testing.assert_array_equal(split_model(same)[1][path], array)


def test_the_model_is_left_alone():
    net = plain()
    before = arrays_of(net)
    slim(net, plan_of(net, conv1=[0, 1]), compensate=observe(net, IMAGES, LABELS))
    for path, array in arrays_of(net).items():
        np.testing.assert_array_equal(array, before[path])


def test_a_dead_group_gives_its_mean_to_the_bias_and_no_nan():
    weights, constant = predict_removed(
        Covariance(np.array([1.0, 2.0, 3.0]), np.zeros((3, 3))), np.array([1])
    )
    assert weights.tolist() == [[0.0, 0.0]]
    assert constant.tolist() == [1.0, 3.0]
    net = mlp()
    net.fc1.kernel[...] = jnp.zeros_like(net.fc1.kernel[...])
    net.fc1.bias[...] = jnp.arange(8.0)
    smaller = slim(net, plan_of(net, fc1=[3]), compensate=observe(net, IMAGES, LABELS))
    assert relative_error(run(net), run(smaller)) < 1e-5


def test_weights_keep_their_type():
    layers = {
        "fc1": linear(64, 8, param_dtype=jnp.bfloat16),
        "fc2": linear(8, 3, 1, param_dtype=jnp.bfloat16),
    }
    net = Net(layers, lambda n, x: n.fc2(nnx.relu(n.fc1(flat(x)))))
    redundant(net.fc1, [1, 4, 6], [0, 3, 0])
    chosen = plan_of(net, fc1=[0, 2, 3, 5, 7])
    smaller = slim(net, chosen, compensate=observe(net, IMAGES, LABELS))
    assert smaller.fc2.kernel[...].dtype == smaller.fc2.bias[...].dtype == jnp.bfloat16
    assert relative_error(run(net), run(smaller)) < 0.02
    assert relative_error(run(net), run(slim(net, chosen))) > 0.1


def test_masked_networks_can_be_compensated_too():
    net = conv_relu_norm()
    chosen = plan_of(net, conv1=[0, 2], dense=[1, 2, 3])
    observed = observe(net, IMAGES, LABELS)
    structure = trace_structure(net, IMAGES)
    graphdef, flat_state, rest = split_model(net)
    kept = {name: np.asarray(channels) for name, channels in chosen.kept.items()}
    full = compensated_state(structure, flat_state, kept, observed.covariances())
    masked = merge_model(
        graphdef, jax.device_put(apply_masks(full, channel_masks(structure, chosen.kept))), rest
    )
    assert relative_error(run(slim(net, chosen, compensate=observed)), run(masked)) < 1e-5


class TestRefusals:
    def refused(self, net, chosen=None, **kept):
        with pytest.raises(ValueError, match="compensation needs channels that only") as caught:
            slim(net, chosen or plan_of(net, **kept), compensate=observe(net, IMAGES, LABELS))
        return str(caught.value)

    def test_a_norm_across_channels(self):
        layers = {"fc1": linear(64, 8), "norm": nnx.LayerNorm(8, rngs=nnx.Rngs(0)), "fc2": linear(8, 3, 1)}
        net = Net(layers, lambda n, x: n.fc2(n.norm(n.fc1(flat(x)))))
        message = self.refused(net, fc1=[0, 1])
        assert (
            "group fc1.kernel is read by a value of all channels together (a norm, say) in reduce_" in message
        )
        assert "ignore=" in message

    def test_products_of_activations(self):
        layers = {"q": linear(8, 6), "k": linear(8, 6, 1), "v": linear(8, 6, 2), "head": linear(6, 3, 3)}

        def forward(n, x):
            x = x[..., 0]
            attention = jax.nn.softmax(jnp.einsum("nid,njd->nij", n.q(x), n.k(x)))
            return n.head(jnp.einsum("nij,njd->nid", attention, n.v(x)).mean(1))

        net = Net(layers, forward)
        message = self.refused(net, q=[0, 1, 2])
        assert (
            "group q.kernel is read by the product with other activations or a constant in dot_gen" in message
        )
        values = slim(net, plan_of(net, v=[0, 1, 2, 4, 5]), compensate=observe(net, IMAGES, LABELS))
        cut = slim(net, plan_of(net, v=[0, 1, 2, 4, 5]))
        assert relative_error(run(net), run(values)) < relative_error(run(net), run(cut))

    def test_a_kernel_that_is_read_twice(self):
        layers = {"fc1": linear(64, 8), "fc2": linear(8, 5, 1), "head": linear(5, 3, 2)}

        def forward(n, x):
            y = n.fc1(flat(x))
            return n.head(n.fc2(nnx.relu(y)) + n.fc2(nnx.tanh(y)))

        message = self.refused(Net(layers, forward), fc1=[0, 1])
        assert "fc2.kernel, which is not read just once, and as it is stored" in message

    def test_a_loop(self):
        layers = {"fc1": linear(64, 8), "again": linear(8, 8, 1), "head": linear(8, 3, 2)}

        def forward(n, x):
            kernel = n.again.kernel[...]
            x = jax.lax.fori_loop(0, 3, lambda _, y: nnx.tanh(y @ kernel), n.fc1(flat(x)))
            return n.head(x)

        assert "again.kernel, in a loop or a branch" in self.refused(Net(layers, forward), fc1=[0, 1])

    def test_a_kernel_that_is_computed(self):
        layers = {"fc1": linear(64, 8), "fc2": linear(8, 3, 1)}
        net = Net(layers, lambda n, x: jnp.matmul(nnx.relu(n.fc1(flat(x))), jnp.square(n.fc2.kernel[...])))
        assert "fc2.kernel, which is not read just once" in self.refused(net, fc1=[0, 1])

    def test_all_groups_are_named_but_not_whole_ones(self):
        layers = {"fc1": linear(64, 8), "norm1": nnx.LayerNorm(8, rngs=nnx.Rngs(0)), "fc2": linear(8, 6, 1)}
        layers |= {"norm2": nnx.LayerNorm(6, rngs=nnx.Rngs(0)), "fc3": linear(6, 3, 2)}
        net = Net(layers, lambda n, x: n.fc3(n.norm2(n.fc2(n.norm1(n.fc1(flat(x)))))))
        message = self.refused(net, fc1=[0, 1], fc2=[2])
        assert "group fc1.kernel" in message and "group fc2.kernel" in message
        assert "fc1" not in self.refused(net, fc1=range(8), fc2=[2])

    def test_what_was_observed_on_another_network(self):
        with pytest.raises(
            ValueError, match=r"needs covariances of this network, got none of fc1.kernel -> fc2"
        ):
            slim(mlp(), plan_of(mlp(), fc1=[0]), compensate=observe(plain(), IMAGES, LABELS))

    def test_stacked_operands_and_those_without_a_network(self):
        net, chosen = mlp(), plan_of(mlp(), fc1=[0, 1])
        observed = observe(net, IMAGES, LABELS)
        stacked = Observed.stack([observed, observed])
        with pytest.raises(ValueError, match=r"covariances needs .* got stacked members"):
            slim(net, chosen, compensate=stacked)
        with pytest.raises(ValueError, match="operands that do not know their network"):
            slim(net, chosen, compensate=Observed(observed.operands, observed.groups))
        one, same = (slim(net, chosen, compensate=each) for each in (observed, stacked.member(1)))
        np.testing.assert_array_equal(one.fc2.kernel[...], same.fc2.kernel[...])


def test_all_images_count_and_not_only_the_sample():
    net = plain()
    chosen = plan_of(net, conv1=[0, 3], conv2=[1, 2, 4])
    whole = slim(net, chosen, compensate=observe(net, IMAGES, LABELS))
    batches = slim(net, chosen, compensate=observe(net, IMAGES, LABELS, num_samples=6, batch_size=7))
    assert relative_error(run(whole), run(batches)) < 1e-5

    def test_images_in_place_of_what_was_observed(self):
        net = mlp()
        structure = trace_structure(net, IMAGES)
        chosen = make_plan(structure, {"fc1.kernel": (0, 1)})
        for call in (
            lambda: slim(net, chosen, compensate=IMAGES),
            lambda: compensation_gains(net, chosen, IMAGES),
        ):
            with pytest.raises(TypeError, match="compensation needs what observe returns, got ndarray"):
                call()

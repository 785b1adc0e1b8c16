import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from pruned_nets import IMAGES, LABELS, NETWORKS, plain, run, scores_of

from jaxprune.pruning.masking import apply_masks, channel_masks, keep_masked, mask
from jaxprune.pruning.planning import plan
from jaxprune.structure.model_state import merge_model, parameter_paths, split_model
from jaxprune.structure.tracing import trace_structure

OPTIMIZERS = {
    "adam": lambda: optax.adam(1e-2),
    "momentum": lambda: optax.sgd(1e-2, momentum=0.9, nesterov=True),
    "weight decay": lambda: optax.adamw(1e-2, weight_decay=0.1),
    "clipped": lambda: optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-2)),
}


def parts(name):
    net = NETWORKS[name]()
    structure = trace_structure(net, IMAGES)
    chosen_plan = plan(net, scores_of(structure), IMAGES, kept_fraction=0.5)
    return net, structure, chosen_plan


def test_masks_by_hand():
    structure = trace_structure(plain(), IMAGES)
    masks = channel_masks(structure, {"conv1.kernel": (0, 2)})
    assert masks[("conv1", "bias")].tolist() == [True, False, True, False]
    assert masks[("conv2", "kernel")][0, 0, :, 0].tolist() == [True, False, True, False]
    assert masks[("dense", "kernel")].all()


def test_flattened_rows_are_masked_channel_by_channel():
    structure = trace_structure(plain(), IMAGES)
    masks = channel_masks(structure, {"conv2.kernel": (0, 1, 2, 3, 4)})
    rows = masks[("dense", "kernel")].reshape(4, 6, 5)
    assert not rows[:, 5].any()
    assert rows[:, :5].all()


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("name", ["conv_norm_relu", "sigmoid_net"])
def test_masked_training_stays_exactly_zero(name, optimizer):
    net, structure, chosen_plan = parts(name)
    masks = channel_masks(structure, chosen_plan.kept)
    graphdef, flat, rest = split_model(mask(net, chosen_plan), "training")
    trained = {path: flat[path] for path in parameter_paths(net)}
    fixed = {path: value for path, value in flat.items() if path not in trained}
    transformation = keep_masked(masks, OPTIMIZERS[optimizer]())

    @jax.jit
    def step(arrays, state):
        def loss(arrays):
            logits = merge_model(graphdef, {**fixed, **arrays}, rest)(jnp.asarray(IMAGES))
            return optax.softmax_cross_entropy_with_integer_labels(logits, jnp.asarray(LABELS)).mean()

        updates, state = transformation.update(jax.grad(loss)(arrays), state, arrays)
        return optax.apply_updates(arrays, updates), state

    state, start = transformation.init(trained), trained
    for _ in range(4):
        trained, state = step(trained, state)
    for path, value in trained.items():
        held = np.asarray(masks[path])
        assert (np.asarray(value)[~held] == 0).all()
        assert held.all() or not np.array_equal(np.asarray(value), np.asarray(start[path]))


def test_masks_hold_in_an_nnx_optimizer():
    net, structure, chosen_plan = parts("conv_norm_relu")
    masks = channel_masks(structure, chosen_plan.kept)
    masked = mask(net, chosen_plan)
    optimizer = nnx.Optimizer(masked, keep_masked(masks, optax.adam(1e-2)), wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer):
        optimizer.update(model, nnx.grad(lambda model: (model(IMAGES) ** 2).mean())(model))

    step(masked, optimizer)
    kernel = np.asarray(masked.conv1.kernel[...])
    held = np.asarray(masks[("conv1", "kernel")])
    assert (kernel[~held] == 0).all()
    assert (kernel[held] != np.asarray(net.conv1.kernel[...])[held]).any()


def test_masks_can_end_a_chain():
    chain = optax.chain(optax.add_decayed_weights(0.1), keep_masked({("w",): np.array([True, False])}))
    parameters = {("w",): jnp.ones(2)}
    updates, _ = chain.update({("w",): jnp.ones(2)}, chain.init(parameters), parameters)
    assert updates[("w",)].tolist() == pytest.approx([1.1, 0.0])


def test_updates_of_another_model_are_refused():
    transformation = keep_masked({("w",): np.array([True])})
    with pytest.raises(ValueError, match="needs updates whose paths are those of the masks"):
        transformation.update({"v": jnp.ones(1)}, transformation.init({}))


def test_masks_of_traced_indices_work_under_vmap():
    structure = trace_structure(plain(), IMAGES)
    candidates = jnp.array([[0, 1], [2, 3]])
    masks = jax.jit(jax.vmap(lambda index: channel_masks(structure, {"conv1.kernel": index})))(candidates)
    for member, index in enumerate(np.asarray(candidates)):
        expected = channel_masks(structure, {"conv1.kernel": tuple(index)})
        assert all(np.array_equal(masks[path][member], expected[path]) for path in expected)


def test_masking_never_changes_the_callers_model():
    net, _, chosen_plan = parts("conv_norm_relu")
    before = jax.tree.map(np.array, split_model(net)[1])
    logits = run(net)
    masked = mask(net, chosen_plan)
    masked.conv1.kernel[...] = jnp.zeros_like(masked.conv1.kernel[...])
    for path, value in split_model(net)[1].items():
        assert np.array_equal(value, before[path])
    assert np.array_equal(run(net), logits)


def test_numpy_and_jax_arrays_are_masked_alike():
    masks = {("w",): np.array([True, False])}
    for array in (np.array([1.0, np.nan]), jnp.array([1.0, jnp.nan])):
        assert np.asarray(apply_masks({("w",): array, ("v",): array}, masks)[("w",)]).tolist() == [1.0, 0.0]

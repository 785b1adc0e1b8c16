"""Fine-tuning in one call: with labels or a teacher, checkpoints, a bar, and clear errors."""

from __future__ import annotations

from functools import partial

import jax
import numpy as np
import pytest
from flax import nnx
from toy_training import IMAGES, LABELS, PIXELS, RECIPE, ToyNet, evaluation_batches, toy_batches

from jaxprune.datasets.dataset import Dataset
from jaxprune.datasets.guarded_split import Split
from jaxprune.datasets.input_pipeline import array_batches
from jaxprune.datasets.scaling import scaling_of
from jaxprune.nets import PlainConvNet
from jaxprune.structure.model_state import split_model
from jaxprune.training.data_parallel import Pixels
from jaxprune.training.finetuning import _source_of, finetune
from jaxprune.training.network_training import train_network

DATA, NUM_STEPS = (IMAGES, LABELS), 6
QUICK = RECIPE.replace(name="quick", learning_rate=0.05, warmup=0.0, ema=0.0)
tune = partial(finetune, recipe=QUICK, num_steps=NUM_STEPS, progress=False, **PIXELS)


class StoppedError(Exception):
    """What ends a run here, as a kill would."""


def assert_equal(one, other):
    assert one.history == other.history
    for path, array in one.weights.items():
        np.testing.assert_array_equal(array, other.weights[path])


@pytest.fixture(scope="module")
def teacher():
    net = ToyNet()
    net.output[...] = -net.output[...]
    return net


@pytest.fixture(scope="module")
def taught(teacher):
    return tune(ToyNet(), DATA, validation=DATA, teacher=teacher, temperature=2.0, distill_weight=0.75)


def test_it_is_train_network_on_the_arrays():
    def batches(start):
        return array_batches(
            IMAGES, LABELS, batch_size=16, seed=0, num_steps=NUM_STEPS, start_step=start, augment=False
        )

    net = ToyNet()
    before = jax.device_get(split_model(net)[1])
    expected = train_network(ToyNet(), batches, QUICK, num_steps=NUM_STEPS, **PIXELS)
    assert_equal(tune(net, DATA), expected)
    for path, array in split_model(net)[1].items():
        np.testing.assert_array_equal(array, before[path])


def test_a_teacher_draws_the_network_to_its_own_answers(teacher, taught):
    """The teacher's answers are those of the network, turned round: learning from it moves away from labels."""
    alone = tune(ToyNet(), DATA)

    def distance(net):
        def logits(net):
            net = nnx.view(net, use_running_average=True, deterministic=True)
            return jax.nn.log_softmax(net((IMAGES / 255 - 0.5).astype(np.float32) * 4))

        wanted, found = (np.asarray(nnx.jit(logits)(own)) for own in (teacher, net))
        return (np.exp(wanted) * (wanted - found)).sum(-1).mean()

    assert distance(taught.model) < 0.95 * distance(alone.model)
    assert [evaluation.num_done for evaluation in taught.history] == [0, NUM_STEPS]


def test_a_run_with_a_teacher_goes_on_bit_for_bit_and_no_other_teacher_is_taken(tmp_path, teacher, taught):
    options = {"validation": DATA, "teacher": teacher, "temperature": 2.0, "distill_weight": 0.75}

    def stop(progress):
        if progress.num_done == 4:
            raise StoppedError

    with pytest.raises(StoppedError):
        tune(ToyNet(), DATA, out=tmp_path, save_every=3, on_progress=stop, **options)
    assert [path.name for path in tmp_path.iterdir()] == ["3"]
    seen = []
    again = tune(ToyNet(), DATA, out=tmp_path, save_every=3, on_progress=seen.append, **options)
    assert seen[0].num_done == 4
    assert_equal(again, taught)
    with pytest.raises(ValueError, match=r"of another one: teacher was \[.*2.0, 0.75\] and is None"):
        tune(ToyNet(), DATA, out=tmp_path, save_every=3, validation=DATA)


def test_a_bar_on_standard_error(capsys):
    tune(ToyNet(), toy_batches, num_steps=2, progress=True)
    shown = capsys.readouterr()
    assert "fine-tuning, loss" in shown.err and "2/2" in shown.err and not shown.out


def test_a_dataset_brings_its_validation_split_and_scaling():
    images = np.repeat(IMAGES.astype(np.float32) / 255, 2, axis=0)
    data = Dataset.from_arrays("toy", train=(images, np.repeat(LABELS, 2)))
    net = PlainConvNet(nnx.Rngs(0), widths=(2, 2, 4))
    tuned = finetune(net, data, QUICK.replace(epochs=1, batch_size=26), progress=False)
    assert [evaluation.counts.num_examples for evaluation in tuned.history] == [
        len(data.validation.labels)
    ] * 2


def test_a_dataset_of_bytes_brings_mean_and_deviation_of_its_pixels():
    scaling = scaling_of(IMAGES)
    split = Split(IMAGES, LABELS)
    source = _source_of(Dataset("bytes", split, split, None, 4, scaling=scaling), None, None)
    pixels = Pixels(source.mean, source.std)
    np.testing.assert_allclose(pixels(jax.numpy.asarray(IMAGES)), scaling(IMAGES), rtol=1e-4, atol=1e-5)


class Tokens(nnx.Module):
    """Tokens [N, T] to the logits of a table, averaged over places."""

    def __init__(self):
        self.table = nnx.Param(np.zeros((5, 2), np.float32))

    def __call__(self, tokens):
        return self.table[...][tokens].mean(1)


def test_tokens_go_to_the_network_as_they_are():
    """One step of rate 1 on tokens 0 of class 0 and 3 of class 1: gradients are +-1/4, and 257 does not wrap."""
    recipe = QUICK.replace(
        optimizer="sgd", learning_rate=1.0, epochs=1, batch_size=2, schedule="constant", augment="none",
        momentum=0.0, nesterov=False, weight_decay=0.0, label_smoothing=0.0,
    )  # fmt: skip
    data = (np.array([[0, 0], [3, 3]]), np.array([0, 1]))
    tuned = finetune(Tokens(), data, recipe, validation=data, progress=False)
    rows = np.zeros((5, 2), np.float32)
    rows[0], rows[3] = (0.25, -0.25), (-0.25, 0.25)
    np.testing.assert_allclose(tuned.model.table[...], rows, atol=1e-6)
    assert tuned.history[-1].counts.top1 == 2


class TestRefused:
    @pytest.mark.parametrize(
        ("options", "match"),
        [
            (
                {"temperature": 2.0, "distill_weight": 0.5},
                "temperature and distill_weight need a teacher, got none",
            ),
            ({"teacher": ToyNet(), "temperature": 0.0}, "temperature must be a finite number > 0, got 0.0"),
            ({"teacher": ToyNet(), "distill_weight": 1.5}, r"distill_weight must be in \[0, 1\], got 1.5"),
            (
                {"recipe": QUICK.replace(compensate=True)},
                "a recipe that only trains, got 'quick' with compensate=True",
            ),
            ({"recipe": "quick"}, "A recipe needs to be one of"),
            (
                {"mean": None},
                r"needs mean= and std= of uint8 images.*got uint8 with mean=None and std=\(0.25,\)",
            ),
        ],
    )
    def test_options(self, options, match):
        with pytest.raises(ValueError, match=match):
            tune(ToyNet(), DATA, **options)

    def test_floats_with_a_mean(self):
        with pytest.raises(ValueError, match=r"neither for images of floats.*got float32 with mean=\(0.5,\)"):
            tune(ToyNet(), (IMAGES.astype(np.float64), LABELS))

    def test_batches_without_a_number_of_steps(self):
        with pytest.raises(ValueError, match="needs num_steps with a function of batches, got None"):
            tune(ToyNet(), toy_batches, num_steps=None, validation=DATA)

    @pytest.mark.parametrize("data", [IMAGES, (IMAGES,), {"images": IMAGES}])
    def test_data(self, data):
        with pytest.raises(
            TypeError, match=r"data as \(images, labels\), a Dataset or a function of batches, got"
        ):
            tune(ToyNet(), data)
        with pytest.raises(TypeError, match=r"needs validation as \(images, labels\), got"):
            tune(ToyNet(), DATA, validation=data)

    def test_several_inputs_for_each_example(self):
        for images in ({"images": IMAGES}, (IMAGES, IMAGES)):
            with pytest.raises(TypeError, match=r"with one array of images or tokens, got .* for the images"):
                tune(ToyNet(), (images, LABELS))

    def test_whole_numbers_that_are_no_tokens(self):
        with pytest.raises(ValueError, match=r"tokens \[N, T\] from 0 .* got int32 \(64, 8, 8, 1\) from"):
            tune(ToyNet(), (IMAGES.astype(np.int32), LABELS))
        with pytest.raises(ValueError, match=r"tokens \[N, T\] from 0 .* from -1 to"):
            tune(ToyNet(), (IMAGES.reshape(64, 64).astype(np.int64) - 1 - IMAGES.min(), LABELS))

    def test_tokens_with_labels_at_each_place(self):
        tokens = np.zeros((4, 3), int)
        with pytest.raises(
            ValueError, match=r"data with one label for each row of tokens, got labels \(4, 3\)"
        ):
            tune(Tokens(), (tokens, tokens))

    def test_iterators_in_place_of_functions(self):
        with pytest.raises(TypeError, match=r"got generator"):
            tune(ToyNet(), evaluation_batches())

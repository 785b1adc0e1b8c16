"""Sensitivity: each group is masked alone, by one compiled program, and what it shows gives floors for plans."""

import json

import jax
import numpy as np
import pytest
from compilations import counted_compilations
from flax import nnx
from pruned_nets import IMAGES, LABELS, Net, conv_norm_relu, linear, mlp, plain, run, scores_of
from zoo_cases import case_of

from jaxprune.comparison.group_sensitivity import Sensitivity, sensitivity
from jaxprune.datasets.dataset import Dataset
from jaxprune.figures.sensitivity_figure import sensitivity_figure
from jaxprune.pruning.masking import apply_masks, channel_masks, mask, zero_channels
from jaxprune.pruning.planning import make_plan, plan, select
from jaxprune.structure.model_state import split_model
from jaxprune.structure.tracing import trace_structure

STRUCTURE = trace_structure(mlp(), IMAGES)
SCORES = scores_of(STRUCTURE)
FOUND = Sensitivity(
    90.0, {"a": 4, "b": 2}, {"a": (1, 2, 3), "b": (1,)}, {"a": (89.5, 70.0, 89.2), "b": (80.0,)}, 1000, "l1"
)


def accuracy(model):
    return 100 * float(np.mean(run(model).argmax(-1) == LABELS))


def test_floors_by_hand():
    """Of a, one channel would do by itself, but two of them do not: the curve is not trusted below its first drop."""
    assert FOUND.floors(1.0) == {"a": 3, "b": 2}
    assert FOUND.floors(0.5) == {"a": 4, "b": 2}
    assert FOUND.floors(20) == {"a": 1, "b": 1}


def test_accuracies_are_those_of_masked_networks():
    model = mlp()
    found = sensitivity(model, SCORES, (IMAGES, LABELS), fractions=[0.25, 0.75], batch_size=10)
    assert found.dense_accuracy == pytest.approx(accuracy(model))
    assert found.counts == {"fc1.kernel": (2, 6), "fc2.kernel": (2, 5)} and found.num_labels == 24
    for name, counts in found.counts.items():
        for count, measured in zip(counts, found.accuracies[name], strict=True):
            masked = mask(model, make_plan(STRUCTURE, select(SCORES, {name: count})))
            assert measured == pytest.approx(accuracy(masked))


def test_one_program_serves_all_groups_fractions_and_batches():
    model = mlp()
    sensitivity(
        model, SCORES, (IMAGES, LABELS), fractions=[0.5], batch_size=7
    )  # what else is compiled on first use
    with counted_compilations() as compiled:
        sensitivity(model, SCORES, (IMAGES, LABELS), batch_size=5)
    assert len(compiled) == 1


@pytest.mark.parametrize("network", [plain, conv_norm_relu, mlp], ids=lambda network: network.__name__)
def test_zeroing_by_flags_is_masking(network):
    structure = trace_structure(network(), IMAGES)
    flat = jax.device_get(split_model(network())[1])
    kept = {name: np.arange(1, width, 2) for name, width in structure.widths.items()}
    flags = {name: np.isin(np.arange(width), kept[name]) for name, width in structure.widths.items()}
    expected = apply_masks(flat, channel_masks(structure, kept))
    for path, array in zero_channels(structure, flat, flags).items():
        np.testing.assert_array_equal(array, expected[path])


def test_zeroing_by_flags_is_masking_of_heads_and_places():
    model, structure, _ = case_of("vit_s16")
    flat = jax.device_get(split_model(model)[1])
    kept = {name: np.arange(1, width) for name, width in structure.widths.items()}
    flags = {name: np.arange(width) > 0 for name, width in structure.widths.items()}
    expected = apply_masks(flat, channel_masks(structure, kept))
    masked = zero_channels(structure, flat, flags)
    assert all(np.array_equal(masked[path], expected[path]) for path in flat)


def test_floors_are_what_a_plan_takes():
    found = sensitivity(mlp(), SCORES, (IMAGES, LABELS), fractions=[0.5])
    floors = {**found.floors(100.0), "fc1.kernel": 6}
    chosen = plan(mlp(), SCORES, IMAGES, kept_fraction=2 / 3, min_kept=floors)
    assert chosen.kept_counts == {"fc1.kernel": 6, "fc2.kernel": 4}  # both at their floors


def test_a_dataset_is_measured_on_its_validation_images():
    data = Dataset.from_arrays("mine", train=(IMAGES, LABELS), validation=(IMAGES[:9], LABELS[:9]))
    found = sensitivity(mlp(), SCORES, data, fractions=[0.5], ignore=["fc1*"])
    assert found.num_labels == 9 and list(found.widths) == ["fc2.kernel"]


def test_tokens_with_a_label_at_each_place_are_measured():
    layers = {"embed": nnx.Embed(5, 4, rngs=nnx.Rngs(0)), "hidden": linear(4, 6), "head": linear(6, 5, 1)}
    model = Net(layers, lambda net, x: net.head(nnx.relu(net.hidden(net.embed(x)))))
    tokens = np.arange(14).reshape(7, 2) % 5
    scores = scores_of(trace_structure(model, tokens))
    found = sensitivity(model, scores, (tokens, tokens), fractions=[0.5], ignore=["embed*"], batch_size=4)
    kept = select(scores, {"hidden.kernel": 3})
    masked = mask(model, make_plan(trace_structure(model, tokens), kept))
    expected = 100 * np.mean(run(masked, tokens).argmax(-1) == tokens)
    assert found.num_labels == 14 and found.accuracies["hidden.kernel"][0] == pytest.approx(expected)


def test_other_inputs_are_measured_as_one_array_is():
    def forward(net, batch):
        return plain_forward(net, jax.numpy.concatenate([batch["left"], batch["right"]], 2))

    model = mlp()
    plain_forward, model.forward = model.forward, forward
    batch = {"left": IMAGES[:, :, :4], "right": IMAGES[:, :, 4:]}
    options = {"fractions": [0.5], "ignore": ["fc1*"], "batch_size": 10}
    found = sensitivity(model, SCORES, (batch, LABELS), **options)
    assert found == sensitivity(mlp(), SCORES, (IMAGES, LABELS), **options)


def test_json_round_trip():
    assert Sensitivity.from_json(FOUND.to_json()) == FOUND


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 2}, "needs a sensitivity as to_json writes it"),
        ({"more": 1}, "needs a sensitivity as to_json writes it"),
        ({"widths": 3}, "widths, counts and accuracies must be by group"),
        ({"widths": {"a": 4}}, "must be of the same groups"),
        ({"counts": {"a": 3, "b": [1]}}, "group a must have lists of counts and accuracies"),
        ({"counts": {"a": [1, 2, 5], "b": [1]}}, "group a must have counts from 1 to its width"),
        ({"counts": {"a": [2, 1, 3], "b": [1]}}, "group a must have rising counts"),
        (
            {"accuracies": {"a": [1, 2, 300], "b": [1]}},
            "group a must have rising counts, and an accuracy in percent",
        ),
        ({"dense_accuracy": "high"}, "the accuracy of the whole network must be in percent"),
    ],
)
def test_records_that_do_not_fit_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        Sensitivity.from_json(json.dumps({**json.loads(FOUND.to_json()), **change}))


def test_text_that_is_no_record_is_refused():
    with pytest.raises(ValueError, match="needs a sensitivity as to_json writes it, got 'nonsense'"):
        Sensitivity.from_json("nonsense")


@pytest.mark.parametrize(
    ("data", "options", "message"),
    [
        (
            (IMAGES, LABELS[:3]),
            {},
            r"data needs one label for each of at least one example, got images \(24, 8, 8, 1\)",
        ),
        ((IMAGES, LABELS + 0.5), {}, "labels must be whole numbers from 0, got dtype float64"),
        ((IMAGES, LABELS + 1), {}, "labels must be from 0 to 2, got 1 to 3"),
        (
            (IMAGES, np.zeros((24, 2), int)),
            {},
            r"labels need one class for each place of the outputs \(\), got \(2,\)",
        ),
        ((IMAGES,), {}, "data needs a Dataset, or images and labels, got 1 arrays"),
        (IMAGES, {}, r"data needs a Dataset, or images and labels, got ndarray. Give \(inputs, labels\)"),
        (
            ({"images": IMAGES}, LABELS[:3]),
            {},
            r"data needs one label for each of at least one example, got images \(24, 8, 8, 1\)",
        ),
        ((IMAGES, LABELS), {"fractions": []}, "fractions needs at least one fraction to measure"),
        ((IMAGES, LABELS), {"fractions": [1.5]}, r"fractions must be in \(0, 1\], got 1\.5"),
        ((IMAGES, LABELS), {"ignore": ["x*"]}, "ignore needs names or patterns of groups"),
        ((IMAGES, LABELS), {"batch_size": 0}, "batch_size must be a whole number >= 1, got 0"),
    ],
)
def test_input_that_cannot_be_measured_is_refused(data, options, message):
    with pytest.raises(ValueError, match=message):
        sensitivity(mlp(), SCORES, data, **options)


def test_a_network_of_several_outputs_is_refused():
    model = mlp()
    forward = model.forward
    model.forward = lambda net, x: (forward(net, x), x)
    with pytest.raises(ValueError, match="needs a network that returns one array of logits"):
        sensitivity(model, SCORES, (IMAGES, LABELS))


@pytest.mark.parametrize("drop", [-1.0, float("nan"), float("inf")])
def test_a_drop_that_is_none_is_refused(drop):
    with pytest.raises(ValueError, match=r"max_drop needs points of accuracy >= 0, such as 1\.0, got"):
        FOUND.floors(drop)


def test_few_groups_are_lines_and_many_are_rows():
    figure = sensitivity_figure(FOUND, "title")
    lines = {line.get_color(): line for line in figure.axes[0].lines}
    assert lines["#0072B2"].get_xydata().tolist() == [[0.25, 89.5], [0.5, 70.0], [0.75, 89.2], [1.0, 90.0]]
    many = {f"layer{number}.kernel": 4 for number in range(9)}
    counts, percents = dict.fromkeys(many, (1, 2)), dict.fromkeys(many, (50.0, 91.0))
    axes = sensitivity_figure(Sensitivity(90.0, many, counts, percents, 10)).axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()][:2] == ["layer0 (4)", "layer1 (4)"]
    assert axes.collections[0].get_array().ravel().tolist() == [40.0, 0.0]  # a gain is no drop

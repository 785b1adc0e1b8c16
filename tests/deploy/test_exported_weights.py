"""Weights written in the names of other libraries come back bit by bit, of dense and of slim networks."""

from __future__ import annotations

import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from zoo.abstract import abstract, output_of
from zoo.randomise import randomise

import jaxprune as jp
from jaxprune import export_weights, load_pretrained
from jaxprune.deploy.tensor_files import open_tensors, write_tensors
from jaxprune.nets import NETWORKS, LeNet5, find_network
from jaxprune.structure.model_state import take_apart

STAGES = {"repeats": (1, 2, 1, 1, 1, 1, 1), "image_shape": (32, 32, 3)}
MOBILE = {"widths": (3, 4, 4, 5, 4, 3, 4, 5, 6), **STAGES}
SETTINGS = {
    "resnet18": {"widths": (4, 4, 6, 8, 10), "image_shape": (32, 32, 3)},
    "resnet50": {"widths": (4, 2, 4, 2, 4), "depth": 14, "image_shape": (32, 32, 3)},
    "resnet20": {"widths": (4, 8, 12), "depth": 8},
    "imagenet_vgg16": {"widths": (4,) * 8 + (6, 5), "depth": 11, "image_shape": (32, 32, 3)},
    "mobilenet_v2": MOBILE,
    "efficientnet_lite0": MOBILE,
}
CASES = [
    ("resnet18", "torchvision", {}),
    ("resnet18", "pytorch_cifar", {"stem": "3x3"}),
    ("resnet50", "timm", {}),
    ("resnet20", "torchvision", {}),
    ("resnet20", "pytorch_cifar", {"shortcut": "B"}),
    ("imagenet_vgg16", "torchvision", {}),
    ("imagenet_vgg16", "timm", {"has_norms": True}),
    ("mobilenet_v2", "torchvision", {}),
    ("mobilenet_v2", "timm", {}),
    ("efficientnet_lite0", "efficientnet_pytorch", {}),
    ("efficientnet_lite0", "timm", {"padding": "equal"}),
]
TOLD_BY_THE_FILE = ("stem", "shortcut", "has_norms")
SLIM_CASES = ["resnet20", "imagenet_vgg16", "mobilenet_v2"]


def network(name, key, **settings):
    return randomise(abstract(partial(NETWORKS[name], num_classes=3), **SETTINGS[name], **settings), key)


def load(name, path, **settings):
    return load_pretrained(name.removeprefix("imagenet_"), path, **{**SETTINGS[name], **settings})


def assert_same_bits(one, other):
    assert nnx.graphdef(one) == nnx.graphdef(other)
    ours, theirs = take_apart(one).flat, take_apart(other).flat
    assert ours.keys() == theirs.keys()
    for path, array in ours.items():
        assert array.dtype == theirs[path].dtype, path
        np.testing.assert_array_equal(np.asarray(array), np.asarray(theirs[path]), err_msg=str(path))


def planned(name, model, key):
    """A plan that keeps about 60 % of the channels, by random scores."""
    example = jax.ShapeDtypeStruct((1, *model.image_shape), jnp.float32)
    structure = jp.trace_structure(model, example)
    generator = np.random.default_rng(np.asarray(jax.random.key_data(key)).tolist())
    scores = {group: generator.random(width) for group, width in structure.widths.items()}
    return jp.plan(model, scores, example, kept_fraction=0.6)


@pytest.mark.parametrize(("name", "layout", "settings"), CASES)
def test_a_dense_network_comes_back_bit_by_bit(name, layout, settings, tmp_path, key):
    model = network(name, key, **settings)
    export_weights(model, tmp_path / "model.safetensors", layout=layout)
    asked = {setting: value for setting, value in settings.items() if setting not in TOLD_BY_THE_FILE}
    assert_same_bits(load(name, tmp_path / "model.safetensors", num_classes=3, **asked), model)


@pytest.mark.parametrize("name", SLIM_CASES)
def test_a_slim_network_comes_back_bit_by_bit_with_its_plan(name, tmp_path, key):
    model = network(name, key)
    plan = planned(name, model, key)
    slim = jp.slim(model, plan)
    path = tmp_path / "slim.safetensors"
    export_weights(slim, path, plan=plan)
    loaded = load(name, path)
    assert_same_bits(loaded, slim)
    images = jax.ShapeDtypeStruct((2, *model.image_shape), jnp.float32)
    assert output_of(loaded, images).shape == (2, 3)
    with open_tensors(path) as (file, shapes):
        record = json.loads(file.metadata()["jaxprune_weights"])
    assert jp.Plan.from_json(json.dumps(record["plan"])) == plan
    assert set(record["producers"]) == set(plan.kept) and set(record["producers"].values()) <= set(shapes)


def test_the_image_shape_of_a_slim_network_is_that_of_its_plan(tmp_path, key):
    model = network("resnet20", key, image_shape=(16, 20, 3))
    plan = planned("resnet20", model, key)
    path = tmp_path / "slim.safetensors"
    export_weights(jp.slim(model, plan), path, plan=plan)
    assert load("resnet20", path).image_shape == (16, 20, 3)


def test_half_precision_is_kept_in_the_file_and_becomes_float32_unless_asked(tmp_path, key):
    model = network("resnet20", key)
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)
    half = nnx.merge(graphdef, jax.tree.map(lambda array: array.astype(jnp.bfloat16), params), rest)
    path = tmp_path / "half.safetensors"
    export_weights(half, path)
    with open_tensors(path) as (_, shapes):
        assert shapes["conv1.weight"].dtype == "BF16" and shapes["bn1.running_var"].dtype == "F32"
    assert_same_bits(load("resnet20", path, dtype=jnp.bfloat16), half)
    single = load("resnet20", path)
    assert single.stem.conv.kernel.dtype == jnp.float32
    np.testing.assert_array_equal(single.stem.conv.kernel[...], half.stem.conv.kernel[...].astype(np.float32))


class TestBadInput:
    def test_networks_without_names_elsewhere_are_refused(self, tmp_path):
        with pytest.raises(
            ValueError, match=r"names it knows \(ImageNetResNet, .*EfficientNetLite0\), got LeNet5"
        ):
            export_weights(abstract(LeNet5), tmp_path / "x.safetensors")

    def test_layouts_without_the_network_are_refused(self, tmp_path):
        model = find_network("efficientnet_lite0", has_weights=False)
        with pytest.raises(
            ValueError, match=r"one of the layouts efficientnet_pytorch, timm .* got 'torchvision'"
        ):
            export_weights(model, tmp_path / "x.safetensors")

    def test_shapes_alone_are_refused(self, tmp_path):
        with pytest.raises(ValueError, match="needs a network with weights, got one of shapes alone"):
            export_weights(find_network("resnet20", has_weights=False), tmp_path / "x.safetensors")

    def test_plans_that_did_not_make_the_network_are_refused(self, tmp_path, key):
        model = network("resnet20", key)
        plan = planned("resnet20", model, key)
        with pytest.raises(
            ValueError, match=r"but: this is the network before slimming\. Pass the result of"
        ):
            export_weights(model, tmp_path / "x.safetensors", plan=plan)
        narrow = randomise(abstract(NETWORKS["resnet20"], depth=8, widths=(1, 1, 1)), key)
        with pytest.raises(
            ValueError, match=r"stem\.conv\.kernel keeps 2 channels, the network has 1; .*Pass the"
        ):
            export_weights(narrow, tmp_path / "x.safetensors", plan=plan)
        assert not list(tmp_path.iterdir())

    def test_a_plan_edited_in_the_file_is_noticed_when_it_is_loaded(self, tmp_path, key):
        model = network("resnet20", key)
        plan = planned("resnet20", model, key)
        path = tmp_path / "slim.safetensors"
        export_weights(jp.slim(model, plan), path, plan=plan)
        with open_tensors(path) as (file, shapes):
            arrays = {name: file.get_tensor(name) for name in shapes}
            record = json.loads(file.metadata()["jaxprune_weights"])
        record["plan"]["groups"]["blocks.0.first.conv.kernel"]["kept"] = [0, 1, 2]
        write_tensors(path, arrays, {"jaxprune_weights": json.dumps(record)})
        with pytest.raises(
            ValueError, match=r"the metadata .* needs the kept channels that the plan was saved with"
        ):
            load("resnet20", path)

    def test_a_file_that_cannot_be_written_leaves_nothing(self, tmp_path, key, monkeypatch):
        model = network("resnet20", key)
        with pytest.raises(FileNotFoundError):
            export_weights(model, tmp_path / "no folder" / "x.safetensors")
        target = tmp_path / "x.safetensors"
        target.write_bytes(b"old")

        def full(self, content):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(type(target), "write_bytes", full)
        with pytest.raises(OSError, match="No space left"):
            export_weights(model, target)
        assert target.read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1

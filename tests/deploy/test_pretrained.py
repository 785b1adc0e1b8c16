"""Weights of other libraries: the same logits as there, and all that does not fit at once."""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from stored_weights import IMAGE_SHAPE, random_array, random_images

import jaxprune as jp
from jaxprune import Plan, load_pretrained
from jaxprune.deploy.tensor_files import write_tensors
from jaxprune.deploy.weight_names import stored_tensors
from jaxprune.nets import find_network

GOLDEN = json.loads((Path(__file__).parent.parent / "golden" / "pretrained.json").read_text())

RESNET = {"widths": (4, 4, 8, 16, 32)}
VGG = {"widths": (4, 4, 8, 8, *(16,) * 3, *(32,) * 6, 256, 256)}
MOBILE = {"widths": (4, 2, 3, 4, 8, 12, 20, 40, 160)}
LITE = {"widths": (4, 2, 3, 5, 10, 14, 24, 40, 160)}
CASES = {
    "torchvision resnet18": ("resnet18", RESNET),
    "torchvision resnet50": ("resnet50", RESNET),
    "pytorch_cifar resnet8": ("resnet20", {"widths": (4, 8, 16), "depth": 8}),
    "torchvision vgg16": ("vgg16", VGG),
    "timm vgg16_bn": ("vgg16_bn", VGG),
    "torchvision mobilenet_v2": ("mobilenet_v2", MOBILE),
    "timm mobilenetv2_100": ("mobilenet_v2", MOBILE),
    "efficientnet_lite_pytorch efficientnet-lite0": ("efficientnet_lite0", LITE),
    "timm efficientnet_lite0": ("efficientnet_lite0", {**LITE, "padding": "equal", "epsilon": 1e-5}),
    "timm tf_efficientnet_lite0": ("efficientnet_lite0", LITE),
}


@partial(jax.jit, static_argnums=0)
def logits_of(graphdef, state, x):
    return nnx.merge(graphdef, state)(x)


def run(model, images):
    return logits_of(*nnx.split(nnx.view(model, use_running_average=True, raise_if_not_found=False)), images)


def arrays_of(name):
    golden = GOLDEN[name]
    return {
        key: random_array(key, tuple(shape), golden["norm_scale"]) for key, shape in golden["shapes"].items()
    }


@pytest.mark.parametrize("name", CASES)
def test_logits_are_those_of_the_other_library(name, tmp_path):
    network, settings = CASES[name]
    path = tmp_path / "model.safetensors"
    write_tensors(path, arrays_of(name), {"format": "pt"})
    model = load_pretrained(network, path, image_shape=IMAGE_SHAPE, **settings)
    np.testing.assert_allclose(run(model, random_images(2)), GOLDEN[name]["logits"], rtol=1e-4, atol=1e-4)


def test_efficientnet_lite0_prunes_to_three_quarters_of_its_macs_and_slim_equals_masked(tmp_path):
    """The masked network runs in the program that the dense one was compiled to."""
    name = "efficientnet_lite_pytorch efficientnet-lite0"
    write_tensors(tmp_path / "model.safetensors", arrays_of(name), {})
    model = load_pretrained(
        "efficientnet_lite0", tmp_path / "model.safetensors", image_shape=IMAGE_SHAPE, **LITE
    )
    example = jax.ShapeDtypeStruct((2, *IMAGE_SHAPE), jnp.float32)
    widths = jp.trace_structure(model, example).widths
    generator = np.random.default_rng(0)
    scores = {group: generator.random(width) for group, width in widths.items()}
    plan = jp.plan(model, scores, example, macs_fraction=0.75, scope="global")
    slim, masked = jp.slim(model, plan), jp.mask(model, plan)
    assert 0.74 < jp.count_macs(slim, example) / jp.count_macs(model, example) <= 0.75
    logits = run(masked, random_images(2))
    np.testing.assert_allclose(run(slim, random_images(2)), logits, rtol=1e-4, atol=1e-5)
    assert np.abs(logits - np.array(GOLDEN[name]["logits"])).max() > 0.1


NARROW = {"widths": (2, 2, 3)}


def small_weights(**changes):
    """Arrays of a narrow ResNet-8 for CIFAR-10 in the names of torchvision; None leaves an array out."""
    model = find_network("resnet20", has_weights=False, depth=8, num_classes=4, **NARROW)
    arrays = {
        each.name: random_array(each.name, each.stored_shape) for each in stored_tensors(model, "torchvision")
    }
    arrays |= changes
    return {name: array for name, array in arrays.items() if array is not None}


def load_small(path, arrays, metadata=None, **settings):
    write_tensors(path, arrays, metadata or {})
    return load_pretrained("resnet20", path, depth=8, **{**NARROW, **settings})


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.safetensors"


class TestWhatIsRead:
    @pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod."])
    def test_counters_are_ignored_and_prefixes_of_training_taken_off(self, path, prefix):
        arrays = {f"{prefix}{name}": array for name, array in small_weights().items()}
        arrays[f"{prefix}bn1.num_batches_tracked"] = np.array(7)
        model = load_small(path, arrays)
        np.testing.assert_array_equal(model.stem.norm.mean[...], arrays[f"{prefix}bn1.running_mean"])

    def test_half_and_double_precision_become_float32(self, path):
        kernel = small_weights()["conv1.weight"].astype(np.float16)
        var = small_weights()["bn1.running_var"].astype(np.float64)
        model = load_small(path, small_weights(**{"conv1.weight": kernel, "bn1.running_var": var}))
        assert {array.dtype for array in jax.tree.leaves(nnx.state(model))} == {np.dtype(np.float32)}
        np.testing.assert_array_equal(model.stem.conv.kernel[0, 0, 0, 0], np.float32(kernel[0, 0, 0, 0]))

    def test_parameters_have_the_type_that_is_asked_for_and_statistics_float32(self, path):
        model = load_small(path, small_weights(), dtype=jnp.float16)
        assert model.stem.conv.kernel.dtype == model.stem.norm.scale.dtype == jnp.float16
        assert model.stem.norm.var.dtype == jnp.float32

    def test_names_may_be_spelled_otherwise(self, path):
        write_tensors(path, small_weights(), {})
        assert load_pretrained("ResNet-20", str(path), depth=8, **NARROW).output.bias.shape == (4,)

    def test_a_new_output_layer_is_drawn_for_other_classes(self, path):
        model = load_small(path, small_weights(), num_classes=7, new_output=True)
        assert model.output.kernel.shape == (3, 7)
        assert np.std(model.output.kernel[...]) > 0 and not np.any(model.output.bias[...])
        same = load_small(
            path, small_weights(**{"fc.weight": None, "fc.bias": None}), num_classes=7, new_output=True
        )
        np.testing.assert_array_equal(same.output.kernel[...], model.output.kernel[...])
        assert load_small(path, small_weights(), new_output=True).output.kernel.shape == (3, 4)

    def test_dropout_gets_its_random_state(self, path):
        model = find_network("imagenet_vgg16", has_weights=False, depth=11, num_classes=4, widths=(2,) * 10)
        arrays = {
            each.name: random_array(each.name, each.stored_shape) for each in stored_tensors(model, "timm")
        }
        write_tensors(path, arrays, {})
        loaded = load_pretrained("vgg16", path, depth=11, widths=(2,) * 10, dropout_rate=0.5)
        counts, keys = nnx.state(loaded, nnx.RngCount), nnx.state(loaded, nnx.RngKey)
        assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves((counts, keys)))
        assert len(jax.tree.leaves(keys)) >= 1


class TestBadInput:
    def test_everything_that_does_not_fit_is_listed_at_once(self, path):
        wrong = {
            "conv1.weight": np.zeros((2, 3, 5, 5), np.float32),
            "bn1.weight": np.zeros(2, np.int8),
            "layer1.0.bn1.bias": None,
            "fc.bias": None,
            "attention.weight": np.zeros(3, np.float32),
        }
        with pytest.raises(
            ValueError, match=r"model\.safetensors needs to hold the weights of resnet20"
        ) as error:
            load_small(path, small_weights(**wrong), num_classes=10)
        for clause in (
            "in the names of torchvision or pytorch_cifar (nearest: torchvision)",
            "2 missing: layer1.0.bn1.bias, fc.bias;",
            "1 not known to the network: attention.weight;",
            "1 of another shape: conv1.weight (needs (2, 3, 3, 3), got (2, 3, 5, 5));",
            "1 not of a floating-point type: bn1.weight (I8);",
            "the output has 4 classes, not num_classes=10. Check the name of the network",
        ):
            assert clause in str(error.value)

    def test_another_number_of_classes_says_so_and_how_to_go_on(self, path):
        with pytest.raises(
            ValueError,
            match=r"but: the output has 4 classes, not num_classes=10\. Leave num_classes out, or .*of 10",
        ):
            load_small(path, small_weights(), num_classes=10)

    def test_weights_of_another_network_are_refused(self, path):
        write_tensors(path, small_weights(), {})
        with pytest.raises(
            ValueError, match=r"weights of mobilenet_v2 in .* missing: .*33 not known to the netw"
        ):
            load_pretrained("mobilenet_v2", path)

    def test_unknown_networks_are_refused(self, path):
        with pytest.raises(ValueError, match=r"needs one of resnet18, .*, got 'resnet51'\. Did you mean"):
            load_pretrained("resnet51", path)

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"", "whole safetensors file, but .*Get the file again; it is damaged"),
            (b"no tensors in here, but text", "whole safetensors file, but .*Get the file again"),
            (
                b"PK\x03\x04 torch.save writes these",
                r"looks like a file of PyTorch: convert it as docs/pretrained\.md",
            ),
            (b"\x80\x02\x8a\x0al\xfc as older ones do", "looks like a file of PyTorch"),
        ],
    )
    def test_other_files_are_refused(self, path, content, message):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=message):
            load_pretrained("resnet20", path)

    def test_a_cut_file_is_refused(self, path):
        write_tensors(path, small_weights(), {})
        path.write_bytes(path.read_bytes()[:-5])
        with pytest.raises(ValueError, match="needs to be a whole safetensors file"):
            load_pretrained("resnet20", path)

    def test_missing_files_are_what_python_says(self, path):
        with pytest.raises(FileNotFoundError, match=r"model\.safetensors"):
            load_pretrained("resnet20", path)

    def test_without_the_library_the_message_says_how_to_install_it(self, path, monkeypatch):
        monkeypatch.setitem(sys.modules, "safetensors", None)
        monkeypatch.setitem(sys.modules, "safetensors.numpy", None)
        with pytest.raises(
            ImportError, match=r"need safetensors, which is not installed\. Run pip install 'jaxprune\[dep"
        ):
            load_pretrained("resnet20", path)

    @pytest.mark.parametrize(
        ("dtype", "message"),
        [
            (jnp.int32, "needs a floating-point dtype, got int32"),
            (np.float64, "needs jax_enable_x64 for dtype float64"),
        ],
    )
    def test_types_that_parameters_cannot_have_are_refused(self, path, dtype, message):
        with pytest.raises(ValueError, match=message):
            load_pretrained("resnet20", path, dtype=dtype)

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("{", r"model\.safetensors: the metadata 'jaxprune_weights' Expecting"),
            ("[]", "needs metadata of format 1, got"),
            ('{"format": 2}', "needs metadata of format 1, got"),
            (
                '{"format": 1, "plan": {"format": 1}}',
                "needs a plan as Plan.to_json writes it, but fingerprint",
            ),
        ],
    )
    def test_damaged_metadata_is_refused(self, path, text, message):
        with pytest.raises(ValueError, match=message):
            load_small(path, small_weights(), {"jaxprune_weights": text})

    def test_a_slim_network_needs_the_settings_of_the_dense_one(self, path):
        plan = Plan({"stem.conv.kernel": (0,)}, {"stem.conv.kernel": 5}, "0" * 16, (1, 32, 32, 3), "float32")
        record = {"format": 1, "plan": json.loads(plan.to_json())}
        with pytest.raises(
            ValueError,
            match=r"holds a slim network, .*: group stem\.conv\.kernel has 2 channels, not 5\. Pass the same",
        ):
            load_small(path, small_weights(), {"jaxprune_weights": json.dumps(record)})

from __future__ import annotations

import errno
import importlib.util
import os
import subprocess
import sys
import types
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export as jax_export
from pruned_nets import IMAGES, Net, conv_relu_norm, linear, run, scores_of

import jaxprune as jp
from jaxprune.deploy import exporting
from jaxprune.structure.tracing import trace_structure

PROBE = """
import sys
import types
from pathlib import Path
import jax, jax.export
import numpy as np
network = jax.export.deserialize(bytearray(Path(sys.argv[1]).read_bytes()))
images = np.load(sys.argv[2])
np.savez(sys.argv[3], all=network.call(images), two=network.call(images[:2]))
assert not {"jaxprune", "flax"} & set(sys.modules)
"""


@pytest.fixture(scope="module")
def smaller():
    """A slim network with batch norm and dropout, in training mode."""
    net = conv_relu_norm()
    net.train()
    return jp.slim(net, jp.plan(net, scores_of(trace_structure(net, IMAGES)), IMAGES, kept_fraction=0.5))


def test_a_process_without_jaxprune_runs_the_file_with_any_batch_size(smaller, tmp_path):
    content = jp.export(smaller, IMAGES, tmp_path / "net.stablehlo")
    assert (tmp_path / "net.stablehlo").read_bytes() == content
    np.save(tmp_path / "images.npy", IMAGES)
    files = [tmp_path / name for name in ("net.stablehlo", "images.npy", "found.npz")]
    subprocess.run([sys.executable, "-c", PROBE, *files], check=True, cwd=tmp_path, timeout=120)
    found, wanted = np.load(tmp_path / "found.npz"), np.asarray(run(smaller))
    assert np.abs(found["all"] - wanted).max() < 1e-5
    assert np.abs(found["two"] - wanted[:2]).max() < 1e-5
    assert not smaller.norm1.use_running_average, "the network is still in training mode"


def test_platforms_and_a_fixed_batch(smaller):
    exported = jax_export.deserialize(
        bytearray(jp.export(smaller, IMAGES, batch=3, platforms=["cpu", "tpu"]))
    )
    assert exported.platforms == ("cpu", "tpu")
    assert [each.shape for each in exported.in_avals] == [(3, 8, 8, 1)]
    any_size = jax_export.deserialize(
        bytearray(jp.export(smaller, jax.ShapeDtypeStruct((1, 8, 8, 1), "float32")))
    )
    assert any_size.platforms == ("cpu", "cuda", "tpu")
    assert str(any_size.in_avals[0].shape[0]) == "b"


class Out(NamedTuple):
    a: object


def batch_of_two(net, x):
    return net.first(x).reshape(7, -1)


def looks_at_the_batch(net, x):
    return x if x.shape[0] > 4 else net.first(x)


EXAMPLE = jax.ShapeDtypeStruct((14, 8), "float32")


def made(forward) -> Net:
    return Net({"first": linear(8, 8)}, forward)


@pytest.mark.parametrize(
    ("forward", "place", "advice"),
    [
        (
            batch_of_two,
            r"with any batch size, .* in .*\(batch_of_two\)",
            "pass batch=14, or write the operation",
        ),
        (looks_at_the_batch, r"in .*test_exporting.py:\d+ \(looks_at_the_batch\)", "pass batch=14, or write"),
        (
            lambda net, x: jax.jit(jnp.linalg.eigvals)(x.T @ net.first(x)),
            "failed in eig at .*test_exporting.py",
            r"It can be exported for cpu: pass platforms=\('cpu',\)",
        ),
        (
            lambda net, x: jax.pure_callback(
                lambda v: v, jax.ShapeDtypeStruct(x.shape, x.dtype), net.first(x)
            ),
            "failed in pure_callback at .*test_exporting.py",
            "Write the network without it",
        ),
        (
            lambda net, x: Out(net.first(x)),
            "failed with ValueError: .*Out",
            "return arrays, tuples, lists or dicts",
        ),
    ],
    ids=["reshape", "comparison", "eigenvalues", "callback", "named tuple"],
)
def test_what_cannot_be_exported_is_named_with_a_way_out(forward, place, advice, tmp_path):
    (tmp_path / "net").write_bytes(b"old")
    with pytest.raises(
        ValueError, match=rf"needs a network that can be exported for cpu, cuda, tpu .*{place}.*{advice}"
    ):
        jp.export(made(forward), EXAMPLE, tmp_path / "net")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("net", b"old")]


def test_the_advice_is_right():
    exported = jax_export.deserialize(bytearray(jp.export(made(batch_of_two), EXAMPLE, batch=14)))
    assert exported.out_avals[0].shape == (7, 16)
    with pytest.raises(ValueError, match="with batch size 3, but"):
        jp.export(made(batch_of_two), EXAMPLE, batch=3)


def test_networks_of_several_inputs_are_called_as_they_are():
    def forward(net, x, *, scale, table, is_doubled):
        y = net.first(x["left"]) * scale + table.sum()
        return 2 * y if is_doubled else y

    net = Net({"first": linear(8, 8)}, None)
    net.__class__ = type("Several", (Net,), {"__call__": forward})
    x, scale, table = np.ones((3, 8), np.float32), np.full((3, 8), 2.0, np.float32), np.ones(2, np.float32)
    example = jp.Inputs({"left": x}, scale=scale, table=table, is_doubled=True)
    exported = jax_export.deserialize(bytearray(jp.export(net, example, platforms=["cpu"])))
    found = exported.call({"left": x[:2]}, scale=scale[:2], table=table)
    assert np.allclose(found, net({"left": x[:2]}, scale=scale[:2], table=table, is_doubled=True), rtol=1e-6)
    report = jp.compare_speed(net, net, example, batch_sizes=[2], rounds=3)
    assert report.macs == (64, 64)


def test_dictionaries_come_out_as_they_are():
    net = made(lambda net, x: {"features": x, "logits": (net.first(x),)})
    exported = jax_export.deserialize(bytearray(jp.export(net, EXAMPLE, platforms=["cpu"])))
    assert jax.tree.map(lambda leaf: str(leaf.shape[0]), exported.out_tree.unflatten(exported.out_avals)) == {
        "features": "b",
        "logits": ("b",),
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"platforms": ("cpu", "gpu")},
            r"platforms needs some of cpu, cuda, rocm, tpu, got \('cpu', 'gpu'\)",
        ),
        ({"platforms": "cpu"}, "platforms needs some of .*, got 'cpu'"),
        ({"platforms": ()}, r"platforms needs some of .*, got \(\)"),
        ({"batch": 0}, 'batch needs to be "symbolic" or a whole number >= 1, got 0'),
        ({"format": "pickle"}, "format needs to be one of stablehlo, onnx, tflite, got 'pickle'"),
    ],
)
def test_bad_arguments(arguments, message, smaller):
    with pytest.raises(ValueError, match=message):
        jp.export(smaller, IMAGES, **arguments)


def test_networks_of_shapes_scalars_and_large_networks_are_refused(smaller, monkeypatch):
    with pytest.raises(ValueError, match="needs a network with weights, got one of shapes alone"):
        jp.export(
            jp.find_network("lenet5", has_weights=False), jax.ShapeDtypeStruct((1, 28, 28, 1), "float32")
        )
    with pytest.raises(ValueError, match="needs an example with a batch axis, got a scalar"):
        jp.export(smaller, jnp.float32(1.0))
    monkeypatch.setattr(exporting, "_MAX_BYTES", 100)
    with pytest.raises(
        ValueError, match=r"one file holds less than 2 GiB of weights, got .* GiB. Save the network"
    ):
        jp.export(smaller, IMAGES)


def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch):
    (tmp_path / "net").write_bytes(b"old")

    def fill_disk(path, content) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", fill_disk)
    net = made(lambda net, x: net.first(x))
    with pytest.raises(
        FileNotFoundError, match=r"needs to be in a folder that exists, got .*none/net. Make it first"
    ):
        jp.export(net, EXAMPLE, tmp_path / "none" / "net")
    with pytest.raises(OSError, match="No space left"):
        jp.export(net, EXAMPLE, tmp_path / "net", platforms=["cpu"])
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("net", b"old")]


@pytest.mark.parametrize(("name", "extra"), [("stablehlo", "deploy"), ("onnx", "onnx"), ("tflite", "tflite")])
def test_a_missing_package_is_named_with_its_extra(name, extra, smaller, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda package: None)
    with pytest.raises(ImportError, match=rf"exporting to {name} needs the package .*jaxprune\[{extra}\]"):
        jp.export(smaller, IMAGES, format=name)


def test_onnx_runs_in_its_own_runtime(smaller, tmp_path):
    pytest.importorskip("jax2onnx")
    runtime = pytest.importorskip("onnxruntime")
    jp.export(smaller, IMAGES, tmp_path / "net.onnx", format="onnx")
    session = runtime.InferenceSession(tmp_path / "net.onnx")
    for images in (IMAGES, IMAGES[:2]):
        (found,) = session.run(None, {session.get_inputs()[0].name: np.asarray(images)})
        assert np.abs(found - np.asarray(run(smaller, images))).max() < 1e-5


def test_tflite_runs_in_its_own_interpreter(smaller):
    tf = pytest.importorskip("tensorflow")
    interpreter = tf.lite.Interpreter(
        model_content=jp.export(smaller, IMAGES, format="tflite", batch=len(IMAGES))
    )
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], np.asarray(IMAGES))
    interpreter.invoke()
    found = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
    assert np.abs(found - np.asarray(run(smaller))).max() < 1e-5


def test_what_a_converter_refuses_is_named(smaller, monkeypatch):
    def refuse(function, specs):
        raise NotImplementedError(f"no rule for {specs[0].shape}\nsecond line")

    monkeypatch.setitem(sys.modules, "jax2onnx", types.SimpleNamespace(to_onnx=refuse, __spec__=object()))
    message = r"the converter to onnx knows, but it failed with NotImplementedError: no rule for \(%s, 8, 8, 1\)\. %s"
    with pytest.raises(
        ValueError, match=message % ("'B'", r"Pass a fixed batch size \(batch=1\), or export to")
    ):
        jp.export(smaller, IMAGES, format="onnx")
    with pytest.raises(ValueError, match=message % (3, "Export to stablehlo")):
        jp.export(smaller, IMAGES, format="onnx", batch=3)


def test_tflite_needs_a_fixed_batch(smaller, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda package: package)
    with pytest.raises(
        ValueError, match=r'format="tflite" needs a fixed batch size, got "symbolic".*Pass batch=1'
    ):
        jp.export(smaller, IMAGES, format="tflite")

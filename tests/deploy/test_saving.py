from __future__ import annotations

import errno
import json
import os
import random
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from damages import DAMAGES
from flax import nnx
from pruned_nets import IMAGES, Net, conv_relu_norm, linear, run, scores_of

import jaxprune as jp
from jaxprune.deploy import saving
from jaxprune.deploy.stored_state import stored_state
from jaxprune.files import atomic_folder, sealed
from jaxprune.nets.small_nets import PlainConvNet
from jaxprune.pruning.planning import make_plan
from jaxprune.structure.model_state import merge_model, take_apart
from jaxprune.structure.tracing import trace_structure

FACTORY = "pruned_nets:conv_relu_norm"
"""With batch norm and dropout."""


@pytest.fixture(scope="module")
def pruned():
    """A slim network and its plan."""
    net = conv_relu_norm()
    plan = jp.plan(net, scores_of(trace_structure(net, IMAGES)), IMAGES, kept_fraction=0.5)
    return jp.slim(net, plan), plan


@pytest.fixture(scope="module")
def saved(pruned, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "network"
    jp.save(pruned[0], folder, plan=pruned[1], factory=FACTORY)
    return folder


def assert_same_state(left: nnx.Module, right: nnx.Module) -> None:
    ours, theirs = stored_state(left), stored_state(right)
    assert (ours.random, ours.values) == (theirs.random, theirs.values)
    assert ours.arrays.keys() == theirs.arrays.keys()
    for name, array in ours.arrays.items():
        assert (array.dtype, array.shape) == (theirs.arrays[name].dtype, theirs.arrays[name].shape), name
        assert array.tobytes() == theirs.arrays[name].tobytes(), name


def recast(model: nnx.Module, dtype: object) -> nnx.Module:
    graphdef, flat, rest = take_apart(model)[:3]
    return merge_model(graphdef, {path: array.astype(dtype) for path, array in flat.items()}, rest)


PROBE = """
import sys
import numpy as np
import jaxprune as jp
from pruned_nets import IMAGES, run
from jaxprune.deploy.stored_state import stored_state
from jaxprune.deploy.tensor_files import write_tensors
model = jp.load(sys.argv[1])
write_tensors(sys.argv[2], {**stored_state(model).arrays, "outputs": np.asarray(run(model))})
"""


def test_a_new_process_loads_bit_equal_arrays_and_outputs(pruned, saved, root, tmp_path):
    paths = os.pathsep.join([str(root), str(root / "tests" / "support")])
    command = [sys.executable, "-c", PROBE, saved, tmp_path / "found"]
    subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": paths}, timeout=120)
    found = saving.read_tensors(tmp_path / "found")
    arrays = {**stored_state(pruned[0]).arrays, "outputs": np.asarray(run(pruned[0]))}
    assert found.keys() == arrays.keys()
    assert all(found[name].tobytes() == array.tobytes() for name, array in arrays.items())


def test_the_manifest_says_how_the_network_is_made_in_plain_json(saved):
    manifest = json.loads((saved / "manifest.json").read_text())
    assert manifest["format"] == 1 and set(manifest["versions"]) == {"jaxprune", "jax", "flax"}
    assert manifest["network"] == {"name": FACTORY, "options": {}}
    assert sorted(manifest["files"]) == ["plan.json", "weights.safetensors"]
    assert jp.Plan.load(saved / "plan.json").kept_counts == {"conv1.kernel": 2, "dense.kernel": 2}


@pytest.mark.parametrize("weights", ["safetensors", "orbax"])
def test_a_network_by_name_and_options(weights, tmp_path):
    model = PlainConvNet(nnx.Rngs(1), widths=(2, 3, 4), num_classes=5)
    options = {"widths": (2, 3, 4), "num_classes": 5}
    jp.save(model, tmp_path / "net", factory="plain-conv-net", options=options, weights=weights)
    assert_same_state(jp.load(tmp_path / "net"), model)
    jp.save(model, tmp_path / "partial", factory=partial(PlainConvNet, **options), weights=weights)
    assert_same_state(jp.load(tmp_path / "partial"), model)


def test_several_rounds_of_pruning(pruned, tmp_path):
    smaller, first = pruned
    second = make_plan(trace_structure(smaller, IMAGES), {"conv1.kernel": (1,)})
    smallest = jp.slim(smaller, second)
    jp.save(smallest, tmp_path / "net", plan=[first, second], factory=FACTORY)
    assert_same_state(jp.load(tmp_path / "net"), smallest)
    assert {file.name for file in (tmp_path / "net").iterdir()} > {"plan_1.json", "plan_2.json"}


class Own(nnx.Module):
    """Holds a number in an attribute, which `slim` is told, and all kinds of variables."""

    def __init__(self, rngs: nnx.Rngs, width: int = 4):
        self.first, self.second, self.width = linear(6, width), linear(width, 3, 1), width
        self.steps, self.name = nnx.Variable(3), nnx.Variable("mine")
        self.pair = nnx.Variable((jnp.ones(2), 4, 0.1))
        self.key = nnx.Variable(jax.random.key(5))
        self.shift = nnx.data(jnp.zeros(3))  # an array outside of variables
        self.drop = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        return self.second(self.drop(self.first(x)).reshape(-1, self.width)) + self.shift[None]


def test_all_kinds_of_variables_and_attributes(tmp_path):
    model, example = Own(nnx.Rngs(0)), jax.ShapeDtypeStruct((2, 6), "float32")
    plan = make_plan(trace_structure(model, example), {})
    plan = jp.Plan({"first.kernel": (0, 3)}, {"first.kernel": 4}, plan.fingerprint, (1, 6), "float32")
    smaller = jp.slim(model, plan, attributes={"width": 2})
    smaller.steps.set_raw_value(7)
    smaller.pair.set_raw_value((jnp.array([1.0, jnp.nan]), -1, float("inf")))
    smaller.drop.rngs.count[...] = jnp.uint32(3)
    jp.save(smaller, tmp_path / "net", plan=plan, factory=Own, attributes={"width": 2})
    loaded = jp.load(tmp_path / "net")
    assert_same_state(loaded, smaller)
    assert (loaded.width, loaded.steps.get_raw_value(), loaded.pair.get_raw_value()[2]) == (
        2,
        7,
        float("inf"),
    )
    x = jnp.ones((5, 6))
    assert np.array_equal(loaded(x), smaller(x)), "the same random numbers"


def test_a_loaded_network_trains(saved):
    gradients = nnx.jit(nnx.grad(lambda model: (model(IMAGES) ** 2).mean()))(jp.load(saved))
    assert gradients["dense"]["kernel"][...].shape == (8, 2)


@pytest.mark.parametrize("is_cast_first", [True, False])
def test_bfloat16_stays(pruned, is_cast_first, tmp_path):
    smaller, plan = pruned
    if is_cast_first:
        net = recast(conv_relu_norm(), jnp.bfloat16)
        plan = make_plan(trace_structure(net, IMAGES), plan.kept)
        model = jp.slim(net, plan)
    else:
        model = recast(smaller, jnp.bfloat16)
    jp.save(model, tmp_path / "net", plan=plan, factory=FACTORY)
    loaded = jp.load(tmp_path / "net")
    assert_same_state(loaded, model)
    assert loaded.conv1.kernel.dtype == jnp.bfloat16


def test_random_state_that_is_missing_is_made_anew(pruned, tmp_path):
    def with_more_random_state() -> nnx.Module:
        net = conv_relu_norm()
        net.more = nnx.Dropout(0.5, rngs=nnx.Rngs(dropout=1))
        return net

    jp.save(pruned[0], tmp_path / "net", plan=pruned[1])
    loaded = jp.load(tmp_path / "net", factory=with_more_random_state)
    assert loaded.more.rngs.count[...] == 0
    assert loaded.more(jnp.ones(64)).shape == (64,)
    assert_same_state(jp.load(tmp_path / "net", factory=conv_relu_norm), pruned[0])


def test_a_factory_that_looks_at_values(pruned, tmp_path):
    def looks() -> nnx.Module:
        net = conv_relu_norm()
        assert float(net.conv1.kernel[...].sum()) != 0
        return net

    jp.save(pruned[0], tmp_path / "net", plan=pruned[1])
    assert_same_state(jp.load(tmp_path / "net", factory=looks), pruned[0])


def wide() -> nnx.Module:
    """Another network than `conv_relu_norm`."""
    net = conv_relu_norm()
    net.extra, net.norm2 = linear(2, 2), None
    net.head = linear(5, 4)
    net.dense = recast(net.dense, jnp.bfloat16)
    return net


def test_all_mismatches_are_listed(tmp_path):
    jp.save(conv_relu_norm(), tmp_path / "net")
    with pytest.raises(ValueError, match=r"does not say how its dense network is made. Pass load"):
        jp.load(tmp_path / "net")
    with pytest.raises(ValueError, match=r"needs other arrays than the saved ones") as raised:
        jp.load(tmp_path / "net", factory=wide)
    told = set(re.split("; |: ", str(raised.value).split(". Name the factory")[0])[2:])
    assert told == {
        "extra.bias is missing",
        "extra.kernel is missing",
        *(f"norm2.{name} is saved and not in the network" for name in ("bias", "mean", "scale", "var")),
        "head.bias is saved as (3,) and needed as (4,)",
        "head.kernel is saved as (5, 3) and needed as (5, 4)",
        "dense.bias is saved as float32 and needed as bfloat16",
        "dense.kernel is saved as float32 and needed as bfloat16",
    }
    with pytest.raises(
        ValueError, match=r"needs to be the one that factory and plan make, but: .*extra.bias"
    ):
        jp.save(conv_relu_norm(), tmp_path / "other", factory=wide)
    assert [path.name for path in tmp_path.iterdir()] == ["net"]


def test_keys_of_another_generator_and_wide_floats_are_mismatches(tmp_path):
    jp.save(Own(nnx.Rngs(0)), tmp_path / "net", factory=Own)

    def other() -> nnx.Module:
        net = Own(nnx.Rngs(0))
        net.key = nnx.Variable(jax.random.key(0, impl="rbg"))
        return net

    with pytest.raises(
        ValueError, match=r"key is saved as threefry2x32 keys \(\) and needed as key<rbg> \(\)"
    ):
        jp.load(tmp_path / "net", factory=other)
    net = Net({"first": linear(2, 3)}, None)
    net.first.bias = nnx.Param(np.zeros(3))
    jp.save(net, tmp_path / "wide")
    with pytest.raises(ValueError, match=r"first.bias is saved as float64, which needs jax.config.update"):
        jp.load(tmp_path / "wide", factory=lambda: Net({"first": linear(2, 3)}, None))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"factory": lambda: None}, "needs to be at the top of a module .*Move it there, or leave out"),
        ({"factory": partial(PlainConvNet, 3)}, "needs keyword arguments to be saved, got the positional"),
        (
            {
                "factory": PlainConvNet,
                "options": {"widths": (2, 3, 4), "dtype": jnp.float32, "gain": float("nan")},
            },
            "lists or dicts of these to be saved, got dtype=.*gain=nan",
        ),
        ({"factory": "plain_con_net"}, "needs to be one of .*plain_conv_net.*, or module:factory"),
        ({"factory": "pruned_nets:nothing"}, "needs a module on the Python path with a function 'nothing'"),
        (
            {"factory": "subprocess:run", "options": {"args": ["true"]}},
            "needs a class of flax.nnx.Module or a function with a parameter rngs to pass arguments to",
        ),
        ({"factory": "pruned_nets:IMAGES"}, "needs a class of flax.nnx.Module or a function"),
        ({"factory": "pathlib:Path"}, "needs a class of flax.nnx.Module or a function"),
        ({"factory": "pruned_nets:relative_error"}, "needs a class of flax.nnx.Module or a function"),
        ({"factory": "os:getcwdb"}, "needs a function written in Python"),
        (
            {"factory": "tempfile:gettempdir"},
            "needs to be a factory of a Flax NNX module .*, got one that gives str",
        ),
        ({"options": {"widths": 3}}, "options .* need factory=, which takes them"),
        ({"weights": "pickle"}, "weights needs to be one of safetensors, orbax, got 'pickle'"),
        ({"attributes": {"width": 2}}, "attributes needs one mapping for each plan, got 1 for 0 plans"),
    ],
)
def test_bad_arguments_are_refused_and_nothing_is_written(arguments, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        jp.save(conv_relu_norm(), tmp_path / "net", **arguments)
    assert not list(tmp_path.iterdir())


def test_a_plan_of_another_kind_is_refused(tmp_path):
    with pytest.raises(TypeError, match=r"plan needs a Plan or several, got str"):
        jp.save(conv_relu_norm(), tmp_path / "net", plan=["plan.json"])
    with pytest.raises(TypeError, match=r"plan needs a Plan or several, got str\. Make one with"):
        jp.save(conv_relu_norm(), tmp_path / "net", plan="plan.json")


def test_arrays_of_one_name_and_empty_arrays_are_refused(tmp_path):
    net = Net({"a": nnx.Dict({"b": linear(2, 3)}), "a.b": linear(2, 3)}, None)
    with pytest.raises(ValueError, match=r"different dotted paths, got several called a.b.bias, a.b.kernel"):
        jp.save(net, tmp_path / "net")
    with pytest.raises(ValueError, match="saving needs a network with weights, got one of shapes alone"):
        jp.save(jp.find_network(FACTORY, has_weights=False), tmp_path / "net")
    net = Net({"a": linear(2, 3)}, None)
    net.a.bias = nnx.Param(jnp.zeros(0))
    with pytest.raises(
        ValueError, match=r'weights="orbax" needs arrays with entries, got empty ones: a.bias'
    ):
        jp.save(net, tmp_path / "net", weights="orbax")


def test_what_is_there_is_replaced_only_if_asked_and_only_saved_networks(pruned, saved, tmp_path):
    before = {path: path.read_bytes() for path in saved.iterdir()}
    with pytest.raises(
        FileExistsError, match=r"nothing but a saved network is replaced, and only with overwrite=True"
    ):
        jp.save(pruned[0], saved)
    assert {path: path.read_bytes() for path in saved.iterdir()} == before
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("kept")
    with pytest.raises(FileExistsError, match=r"there is .*notes already"):
        jp.save(pruned[0], tmp_path / "notes", overwrite=True)
    jp.save(pruned[0], tmp_path / "net")
    jp.save(conv_relu_norm(), tmp_path / "net", overwrite=True)
    assert jp.load(tmp_path / "net", factory=conv_relu_norm).conv1.kernel.shape == (3, 3, 1, 4)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["net", "notes"]
    with pytest.raises(
        FileNotFoundError, match=r"needs to be in one that exists, got .*no/such. Make it first"
    ):
        jp.save(pruned[0], tmp_path / "no" / "such")


@pytest.mark.parametrize("weights", ["safetensors", "orbax"])
def test_a_full_disk_leaves_nothing_and_the_old_network(weights, pruned, tmp_path, monkeypatch):
    jp.save(pruned[0], tmp_path / "net")

    def fill_disk(path, *_: object) -> None:
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(saving, "write_tensors" if weights == "safetensors" else "save_network", fill_disk)
    with pytest.raises(
        OSError, match=r"could not save the network to .*: No space left.*Nothing was written"
    ) as raised:
        jp.save(pruned[0], tmp_path / "net", weights=weights, overwrite=True)
    assert raised.value.errno == errno.ENOSPC
    assert [path.name for path in tmp_path.iterdir()] == ["net"]
    assert_same_state(
        jp.load(tmp_path / "net", factory=lambda: jp.slim(conv_relu_norm(), pruned[1])), pruned[0]
    )


def test_a_folder_that_appears_meanwhile_is_not_replaced(tmp_path):
    (tmp_path / "net").mkdir()
    with pytest.raises(FileExistsError, match=r"File exists: .*net"), atomic_folder(tmp_path / "net"):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["net"]


def test_a_failing_last_step_brings_the_old_network_back(pruned, tmp_path, monkeypatch):
    jp.save(pruned[0], tmp_path / "net")
    rename = Path.rename

    def fail(self, target):
        if self.name.endswith(".tmp"):
            raise OSError(errno.EIO, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(OSError, match=r"Input/output error"):
        jp.save(conv_relu_norm(), tmp_path / "net", overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["net"]
    assert jp.load(tmp_path / "net", factory=lambda: jp.slim(conv_relu_norm(), pruned[1])) is not None


@pytest.mark.parametrize("name", ["manifest.json", "plan.json", "weights.safetensors"])
def test_any_damage_is_noticed_or_does_not_matter(name, pruned, saved, tmp_path):
    whole = (saved / name).read_bytes()
    rng = random.Random(name)
    for other in saved.iterdir():
        (tmp_path / other.name).write_bytes(other.read_bytes())
    refused = 0
    for damage in DAMAGES.values():
        try:
            damaged = damage(bytearray(whole), rng)
        except (IndexError, ValueError):  # not a file of lines
            continue
        (tmp_path / name).write_bytes(damaged)
        if damaged != whole:
            try:
                assert_same_state(jp.load(tmp_path), pruned[0])
            except ValueError as error:
                refused += 1
                assert str(tmp_path) in str(error)
    assert refused >= len(DAMAGES) - 5


def reseal(folder, **changes: object) -> None:
    record = json.loads((folder / "manifest.json").read_text())
    del record["check"]
    (folder / "manifest.json").write_text(json.dumps(sealed({**record, **changes})))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"format": 2, "versions": {"jaxprune": "9.0"}},
            "format 1 or older, got .* of format 2, written by jaxprune 9.0",
        ),
        ({"format": "1"}, "whose manifest.json is of another kind"),
        ({"kind": "other"}, "whose manifest.json is of another kind"),
        ({"weights": "pickle"}, "does not have that form .weights are 'pickle'"),
        ({"network": {"name": 3}}, "does not have that form .a network needs a name and options"),
        ({"values": {"a": 3}}, "does not have that form"),
        ({"files": {"more.json": {"bytes": 1, "sha256": ""}}}, "more.json is missing"),
        ({"files": {"plan.json": {"bytes": 1, "sha256": ""}}}, "plan.json has .* bytes instead of 1"),
    ],
    ids=str,
)
def test_foreign_and_newer_manifests_are_refused(changes, message, saved, tmp_path):
    for other in saved.iterdir():
        (tmp_path / other.name).write_bytes(other.read_bytes())
    reseal(tmp_path, **changes)
    with pytest.raises(ValueError, match=message):
        jp.load(tmp_path)


def test_other_folders_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is nothing at .*none"):
        jp.load(tmp_path / "none")
    (tmp_path / "mine.txt").write_text("")
    with pytest.raises(ValueError, match=r"a folder with mine.txt in it and no manifest.json"):
        jp.load(tmp_path)
    with pytest.raises(ValueError, match=r"mine.txt, which is no folder"):
        jp.load(tmp_path / "mine.txt")


def test_a_checkpoint_without_its_arrays_is_refused(tmp_path):
    jp.save(Net({"a": linear(2, 3)}, None), tmp_path / "net", weights="orbax")
    reseal(tmp_path / "net", files={})
    (tmp_path / "net" / "weights" / "_METADATA").write_text("{}")
    with pytest.raises(
        ValueError, match=r"needs the weights that jaxprune.save wrote to .*, but it cannot be read"
    ):
        jp.load(tmp_path / "net", factory=lambda: Net({"a": linear(2, 3)}, None))


def test_shapes_alone_are_slimmed_and_masked_to_shapes():
    net, shapes = conv_relu_norm(), jp.find_network(FACTORY, has_weights=False)
    plan = jp.plan(net, scores_of(trace_structure(net, IMAGES)), IMAGES, kept_fraction=0.5)
    smaller = jp.slim(shapes, plan)
    wanted = {path: array.shape for path, array in take_apart(jp.slim(net, plan)).flat.items()}
    assert {path: array.shape for path, array in take_apart(smaller).flat.items()} == wanted
    assert all(isinstance(array, jax.ShapeDtypeStruct) for array in take_apart(smaller).flat.values())
    assert jp.count_parameters(smaller) == jp.count_parameters(jp.slim(net, plan))
    assert jp.mask(shapes, plan).conv1.kernel.shape == (3, 3, 1, 4)
    with pytest.raises(
        ValueError, match=r"needs a network with weights to compensate, got one of shapes alone"
    ):
        jp.slim(shapes, plan, compensate=jp.observe(net, IMAGES, np.arange(len(IMAGES)) % 2))

"""A pruning run trains, plans, cuts and fine-tunes once, goes on where it was, and loads what it saved."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from cli_tasks import SmallNet
from flax import nnx
from toy_transfer import RECIPE, small_data

import jaxprune as jp
from jaxprune.comparison.pruning_records import PruningRow, spread
from jaxprune.comparison.pruning_run import prune_network
from jaxprune.comparison.pruning_setup import set_up_pruning
from jaxprune.files import RunDirectoryError
from jaxprune.pruning.planning import Plan


def setup(**changes):
    """A small run of two fine-tunings and two trainings from new weights."""
    settings = {
        "network": "cli_tasks:SmallNet",
        "data": small_data(),
        "recipe": RECIPE,
        "base_recipe": RECIPE.replace(epochs=3),
        "seeds": 2,
        "with_scratch": True,
        "macs_fraction": 0.5,
    }
    return set_up_pruning("l1", **(settings | changes))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run and its folder, which no test may change."""
    folder = tmp_path_factory.mktemp("pruning") / "out"
    return prune_network(setup(), folder), folder


@pytest.fixture
def copy(finished, tmp_path):
    """A copy of the finished folder."""
    return shutil.copytree(finished[1], tmp_path / "copy")


def test_mean_and_spread_by_hand():
    assert spread((2.0, 4.0, 6.0)) == {"mean": 4.0, "sd": 2.0, "each": [2.0, 4.0, 6.0]}
    assert spread((5.0,))["sd"] is None


def test_sizes_and_rows(finished):
    result, folder = finished
    assert (result.macs, result.parameters) == ((5 * 8 + 8 * 2, 5 * 4 + 4 * 2), (66, 34))
    assert result.plan.kept_counts == {"first.kernel": 4} and result.plan.budget.asked == 0.5
    names = [(row.name, row.seed) for row in result.rows]
    assert names == [
        ("dense", 0), ("pruned", 0), ("finetuned", 0), ("finetuned", 1), ("scratch", 0), ("scratch", 1),
    ]  # fmt: skip
    assert set(result.test) == set(names) and len(result.opened) == 1
    steps = {row.name: row.steps for row in result.rows}
    assert steps == {"dense": 9, "pruned": 0, "finetuned": 6, "scratch": 15}  # from scratch as many as both
    assert all(PruningRow.from_json(row.to_json()) == row for row in result.rows)
    assert result.accuracies("finetuned") == tuple(
        row.accuracy.top1 for row in result.rows if row.name == "finetuned"
    )
    assert not (folder / "training" / "dense-0").exists()


def test_what_is_written_is_what_was_measured(finished):
    result, folder = finished
    facts = json.loads((folder / "result.json").read_text())
    assert facts["accuracy"]["test"]["finetuned"]["each"] == list(
        result.accuracies("finetuned", on_test=True)
    )
    assert Plan.load(folder / "plan.json") == result.plan
    model = jp.load(folder / "network")
    x, labels = small_data().validation
    accuracy = 100 * np.mean(np.argmax(model(x), -1) == labels)
    best = max(result.accuracies("finetuned"))
    assert accuracy == pytest.approx(best) and result.accuracies("finetuned")[result.best_seed] == best
    if not result.export_problem:
        exported = jax.export.deserialize(bytearray((folder / "network.stablehlo").read_bytes()))
        np.testing.assert_allclose(exported.call(x[:3]), model(x[:3]), atol=1e-5)
    assert [row["batch_size"] for row in facts["speed"]["rows"]] == [1, 16]


def test_a_run_that_is_finished_does_nothing_again(finished, copy, monkeypatch):
    for name in ("network_trainings.train_network", "network_trainings.evaluate_network"):
        monkeypatch.setattr(f"jaxprune.comparison.{name}", None)
    monkeypatch.setattr("jaxprune.comparison.pruning_run.write_outputs", None)
    before = (copy / "results.jsonl").read_bytes()
    assert prune_network(setup(), copy).to_json() == finished[0].to_json()
    assert (copy / "results.jsonl").read_bytes() == before


def test_a_run_that_lost_its_last_lines_ends_alike(finished, copy):
    lines = (copy / "results.jsonl").read_bytes().splitlines(keepends=True)
    kept = [line for line in lines if b'"scratch"' not in line and b'"finetuned"' not in line]
    (copy / "results.jsonl").write_bytes(b"".join(kept[:3]))  # dense, plan and pruned
    assert b'"plan"' in b"".join(kept[:3])
    again = prune_network(setup(), copy)
    assert [row.digest for row in again.rows] == [row.digest for row in finished[0].rows]
    assert len(again.opened) == 2  # test images were opened twice, and the record says so


def test_other_settings_and_changed_files_are_refused(finished, copy):
    for changes, text in (
        ({"seed": 3}, "settings.seed was 0 and is now 3"),
        ({"macs_fraction": 0.25}, "settings.budget.macs_fraction was 0.5 and is now 0.25"),
    ):
        with pytest.raises(RunDirectoryError, match=text):
            prune_network(setup(**changes), copy)
    plan = finished[0].plan
    other = {"first.kernel": tuple(i for i in range(8) if i not in plan.kept["first.kernel"])}
    Plan(other, plan.widths, plan.fingerprint, plan.example_shape, plan.example_dtype).save(
        copy / "plan.json"
    )
    with pytest.raises(RunDirectoryError, match="needs the plan that was made, but it was changed since"):
        prune_network(setup(), copy)
    (copy / "plan.json").write_text("{")
    with pytest.raises(RunDirectoryError, match="needs to be a plan, but it is missing or damaged"):
        prune_network(setup(), copy)


def test_a_stored_network_has_to_be_there_and_whole(copy):
    shutil.rmtree(copy / "networks" / "finetuned-0")
    shutil.rmtree(copy / "networks" / "finetuned-1")
    with pytest.raises(RunDirectoryError, match="needs the network that was stored, got nothing there"):
        prune_network(setup(), copy)
    shutil.copytree(copy / "networks" / "scratch-0", copy / "networks" / "finetuned-0")
    shutil.copytree(copy / "networks" / "scratch-0", copy / "networks" / "finetuned-1")
    with pytest.raises(
        RunDirectoryError, match="needs the network that was stored, but it is another network"
    ):
        prune_network(setup(), copy)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Checkpoints of one dense network: of Orbax, and of jaxprune."""
    folder = tmp_path_factory.mktemp("weights")
    model = SmallNet(nnx.Rngs(5))
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder / "orbax", nnx.state(model))
    jp.save(model, folder / "saved", factory=SmallNet)
    return folder


LOADED = {"base_recipe": None, "seeds": 1, "with_scratch": False, "kept_fraction": 0.5, "macs_fraction": None}


def test_weights_of_both_kinds_are_the_same_network(trained, tmp_path):
    digests = {kind: setup(weights=trained / kind, **LOADED).digest for kind in ("orbax", "saved")}
    assert digests["orbax"] == digests["saved"] is not None
    result = prune_network(setup(weights=trained / "orbax", **LOADED), tmp_path / "out")
    model = SmallNet(nnx.Rngs(5))
    x, labels = small_data().validation
    accuracy = 100 * np.mean(np.argmax(model(x), -1) == labels)
    assert result.accuracies("dense")[0] == pytest.approx(accuracy)
    assert not (tmp_path / "out" / "dense").exists()


def test_weights_that_changed_since_are_noticed(trained, tmp_path):
    changed = shutil.copytree(trained / "saved", tmp_path / "weights")
    run = setup(weights=changed, **LOADED)
    prune_network(run, tmp_path / "out")
    jp.save(SmallNet(nnx.Rngs(6)), changed, factory=SmallNet, overwrite=True)
    with pytest.raises(RunDirectoryError, match=r"weights was '\w+' and is now"):
        prune_network(setup(weights=changed, **LOADED), tmp_path / "out")
    with pytest.raises(RunDirectoryError, match="holds others now"):
        prune_network(run, tmp_path / "out")


class Wide(SmallNet):
    """The same with other widths, and a layer that the network does not have."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.first = nnx.Linear(5, 9, rngs=rngs)
        self.second = nnx.Linear(9, 2, rngs=rngs)
        self.third = nnx.Linear(2, 2, rngs=rngs)


def test_all_mismatches_of_weights_are_told_at_once(tmp_path):
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "orbax", nnx.state(Wide(nnx.Rngs(0))))
    jp.save(Wide(nnx.Rngs(0)), tmp_path / "saved", factory=Wide)
    for kind in ("orbax", "saved"):
        with pytest.raises(ValueError, match=r"first\.kernel is") as error:
            setup(weights=tmp_path / kind, **LOADED)
        for text in (
            "first.kernel is (5, 9) and not (5, 8)",
            "first.bias is (9,)",
            "second.kernel is (9, 2)",
        ):
            assert text in str(error.value)
    assert "third.kernel is not known to the network" in str(error.value)


def test_a_safetensors_file_gives_the_form_of_its_network(tmp_path):
    pytest.importorskip("safetensors")
    images = np.random.default_rng(0).normal(size=(40, 32, 32, 3)).astype(np.float32)
    labels = np.arange(40) % 3
    splits = {"train": (images, labels), "validation": (images[:9], labels[:9])}
    data = jp.Dataset.from_arrays("small", **splits, standardise=False)
    model = jp.find_network("resnet20", num_classes=3, shortcut="B")
    jp.export_weights(model, tmp_path / "resnet20.safetensors")
    options = LOADED | {"data": data, "network": "ResNet-20"}
    run = setup(weights=tmp_path / "resnet20.safetensors", **options)
    assert run.factory_options == {"image_shape": (32, 32, 3), "num_classes": 3, "shortcut": "B"}
    assert run.digest is not None and run.structure.count_parameters() > 200_000
    with pytest.raises(ValueError, match=r"need one of the networks resnet18, .*got 'cli_tasks:SmallNet'"):
        setup(weights=tmp_path / "resnet20.safetensors", **LOADED)
    jp.export_weights(jp.find_network("resnet20", num_classes=4), tmp_path / "four.safetensors")
    with pytest.raises(ValueError, match=r"for the 3 classes of small.* output.kernel is \(64, 4\)"):
        setup(weights=tmp_path / "four.safetensors", **options)


def test_a_recipe_that_compensates_is_a_pruning_that_does():
    run = setup(recipe=RECIPE.replace(compensate=True), seeds=1, with_scratch=False)
    assert run.settings.compensate and not run.settings.recipe.compensate


def test_what_cannot_be_met_is_said_before(tmp_path):
    for changes, text in (
        ({"seeds": 0}, r"pruning needs seeds >= 1 \(got 0\)"),
        ({"calibration_images": 1}, r"pruning needs calibration_images >= 2 \(got 1\)"),
        ({"coarse_classes": 3}, "coarse_classes must be at most the number of classes, 2, got 3"),
        (
            {"macs_fraction": None, "counts": [3, 4]},
            "kept_counts needs 1 numbers, one each for first.kernel, got 2",
        ),
        ({"macs_fraction": None, "latency_fraction": 2.0}, r"latency_fraction must be in \(0, 1\], got 2.0"),
        ({"macs_fraction": 1.5}, r"macs_fraction must be in \(0, 1\], got 1.5"),
        ({"kept_fraction": 0.5}, "Give exactly one budget"),
        ({"weights": "w", "with_scratch": False}, "got both weights and a base recipe"),
    ):
        with pytest.raises(ValueError, match=text):
            setup(**changes)


def test_a_file_is_no_folder(tmp_path):
    Path(tmp_path / "file").write_text("")
    with pytest.raises(RunDirectoryError, match="a pruning run needs a folder, got the file"):
        prune_network(setup(), tmp_path / "file")

"""A transfer prunes all rows equally, writes every row, and goes on where it was to the same weights."""

from __future__ import annotations

import json
import shutil

import jax
import numpy as np
import pytest
from flax import nnx
from toy_transfer import FUNCTION, RECIPE, settings, small_data

from jaxprune.comparison.transfer_folder import TransferFolder, check_folder, file_name
from jaxprune.comparison.transfer_networks import rescaled, weights_digest
from jaxprune.comparison.transfer_plans import first_channels_plan, random_plan
from jaxprune.comparison.transfer_protocol import run_transfer, transfer
from jaxprune.comparison.transfer_records import DENSE
from jaxprune.comparison.transfer_results import Transfer, load_transfer
from jaxprune.comparison.transfer_setup import set_up_transfer
from jaxprune.files import RunDirectoryError
from jaxprune.pruning.planning import Plan
from jaxprune.pruning.slimming import slim
from jaxprune.structure.model_state import split_model
from jaxprune.training.checkpoint import load_network, save_network

ROWS = (FUNCTION, "l1", "random", "scratch")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished transfer and its folder, which no test may change."""
    folder = tmp_path_factory.mktemp("transfer") / "out"
    return transfer(FUNCTION, **settings(), out=folder), folder


@pytest.fixture
def copy(finished, tmp_path):
    """A copy of the finished folder."""
    return shutil.copytree(finished[1], tmp_path / "copy")


def test_every_function_and_control_has_a_row_on_every_base(finished):
    result, _ = finished
    assert result.names == ROWS
    assert [(row.base, row.name) for row in result.rows] == [(b, n) for b in (0, 1) for n in (DENSE, *ROWS)]
    assert set(result.test) == {(b, n) for b in (0, 1) for n in (DENSE, *ROWS)} and len(result.opened) == 1
    for row in result.rows:
        assert (row.before is None) == (row.name == DENSE) and 0 <= row.after.top1 <= 100
        assert row.after.top5 is None  # of two classes
        epochs = RECIPE.epochs + (row.name == DENSE)
        assert [epoch for epoch, _ in row.curve] == list(range(1, epochs + 1))
        assert row.curve[-1][1] == row.after.top1 and row.steps == 3 * epochs


def test_all_rows_keep_equally_many_channels_and_different_ones(finished):
    result, folder = finished
    assert dict(result.facts.kept) == {"first.kernel": 4} and dict(result.facts.widths) == {"first.kernel": 8}
    assert (result.facts.macs, result.facts.slim_macs) == (56, 28)
    assert (result.facts.parameters, result.facts.slim_parameters) == (66, 34)
    plans = {name: Plan.load(folder / "networks" / f"0-{file_name(name)}.plan.json") for name in ROWS}
    assert all(plan.kept_counts == {"first.kernel": 4} for plan in plans.values())
    assert len({plan.to_kept() for plan in plans.values()}) > 1
    assert plans["scratch"].kept["first.kernel"] == (0, 1, 2, 3)


def test_stored_networks_are_those_that_were_measured(finished):
    result, folder = finished
    setup = set_up_transfer(FUNCTION, **settings())
    for name in ROWS:
        row = result.row(1, name)
        plan = Plan.load(folder / "networks" / f"1-{file_name(name)}.plan.json")
        like = split_model(slim(setup.make_network(0), plan))[1]
        identity = f"transfer to cli_tasks:SmallNet on small, base 1, {name}, seed 0"
        weights, _ = load_network(folder / "networks" / f"1-{file_name(name)}", like, identity)
        assert weights_digest(weights) == row.digest
    kept = {(row.base, row.kept_digest, row.kind == "scratch") for row in result.rows}
    assert len({row.digest for row in result.rows}) == len(kept)  # equal channels are fine-tuned once


def test_a_transfer_that_is_finished_trains_nothing_again(finished, copy, monkeypatch):
    monkeypatch.setattr("jaxprune.comparison.network_trainings.train_network", None)
    monkeypatch.setattr("jaxprune.comparison.network_trainings.evaluate_network", None)
    before = (copy / "results.jsonl").read_bytes()
    again = transfer(FUNCTION, **settings(), out=copy)
    assert again == finished[0] == load_transfer(copy)
    assert (copy / "results.jsonl").read_bytes() == before


def without_times(row):
    return {name: value for name, value in row.to_json().items() if name != "seconds"}


@pytest.mark.slow
@pytest.mark.parametrize("num_lines", [0, 3, 10, 13])
def test_a_transfer_that_lost_its_last_lines_ends_alike(num_lines, finished, copy):
    """A kill leaves the first lines, and perhaps networks of rows that were not written."""
    lines = (copy / "results.jsonl").read_bytes().splitlines(keepends=True)
    (copy / "results.jsonl").write_bytes(b"".join(lines[:num_lines]))
    (copy / "transfer.json").unlink()
    again = transfer(FUNCTION, **settings(), out=copy)
    assert [without_times(row) for row in again.rows] == [without_times(row) for row in finished[0].rows]
    assert again.test == finished[0].test
    assert len(again.opened) == 2  # test images were opened twice, and the record says so


@pytest.mark.slow
def test_a_damaged_line_is_put_aside_and_its_row_done_again(finished, copy):
    lines = (copy / "results.jsonl").read_bytes().splitlines(keepends=True)
    index = next(i for i, line in enumerate(lines) if b'"name": "l1"' in line and b'"row"' in line)
    lines[index] = lines[index].replace(b'"l1"', b'"l3"')
    (copy / "results.jsonl").write_bytes(b"".join(lines))
    messages = []
    again = transfer(FUNCTION, **settings(), out=copy, on_message=messages.append)
    assert "1 damaged line(s)" in messages[0] and (copy / "results.discarded.jsonl").exists()
    assert without_times(again.row(0, "l1")) == without_times(finished[0].row(0, "l1"))


def test_other_settings_are_refused_by_name(copy):
    changed = settings(kept_fraction=0.25, recipe=RECIPE.replace(learning_rate=0.01), seed=5)
    with pytest.raises(RunDirectoryError, match="holds a transfer with other settings") as error:
        transfer(FUNCTION, **changed, out=copy)
    for text in (
        "settings.kept_fraction was 0.5 and is now 0.25",
        "settings.recipe.learning_rate was 0.001 and is now 0.01",
        "settings.seed was 0 and is now 5",
    ):
        assert text in str(error.value)
    with pytest.raises(RunDirectoryError, match=r"settings.functions.fdr was not set and is now"):
        transfer(FUNCTION, **settings(against=("l1", "random", "fdr")), out=copy)
    x, y = small_data().train
    with pytest.raises(RunDirectoryError, match=r"data was '[0-9a-f]+' and is now"):
        transfer(FUNCTION, **settings(data=small_data(train=(x + 1, y))), out=copy)


def test_a_network_has_to_give_a_logit_for_each_class(tmp_path):
    x, y = small_data().train
    data = small_data(train=(x, np.arange(len(y)) % 3))
    with pytest.raises(ValueError, match=r"needs to give 3 logits.*got an output of shape \(2,\)"):
        transfer(FUNCTION, **settings(data=data), out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_several_processes_are_refused_before_anything_is_read(monkeypatch):
    """Each would decode whole batches and write the same folder."""
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(
        ValueError, match=r"a transfer without hosts= needs one process.* got 2 processes\. Pass the"
    ):
        transfer(FUNCTION, **settings() | {"data": "tfds:unknown"}, out="out")


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("thesis")
    with pytest.raises(
        RunDirectoryError, match=r"needs to be a new or empty folder.*got one with thesis.txt"
    ):
        transfer(FUNCTION, **settings(), out=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
    with pytest.raises(RunDirectoryError, match="needs a folder, got the file"):
        check_folder(tmp_path / "thesis.txt", {})


def test_a_folder_serves_one_process_at_a_time(tmp_path):
    with (
        TransferFolder(tmp_path / "a", {"settings": {}}),
        pytest.raises(RunDirectoryError, match="is in use by process"),
    ):
        TransferFolder(tmp_path / "a", {"settings": {}})


@pytest.mark.slow
def test_a_changed_plan_or_network_is_noticed(copy):
    path = copy / "networks" / "0-l1.plan.json"
    plan = json.loads(path.read_text())
    plan["groups"]["first.kernel"]["kept"] = [0, 1, 2, 7]
    path.write_text(json.dumps(plan))
    (copy / "results.jsonl").write_bytes(
        b"".join(
            line
            for line in (copy / "results.jsonl").read_bytes().splitlines(keepends=True)
            if not (b'"name": "l1"' in line and b'"row"' in line)
        )
    )
    with pytest.raises(RunDirectoryError, match="needs the plan that was made, but it was changed since"):
        transfer(FUNCTION, **settings(), out=copy)
    path.unlink()
    with pytest.raises(RunDirectoryError, match="needs to be a plan, but it is missing or damaged"):
        transfer(FUNCTION, **settings(), out=copy)


@pytest.mark.slow
def test_a_missing_or_damaged_base_network_is_noticed(copy):
    lines = (copy / "results.jsonl").read_bytes().splitlines(keepends=True)
    (copy / "results.jsonl").write_bytes(b"".join(line for line in lines if b'"record": "test"' not in line))
    shutil.rmtree(copy / "bases" / "0")
    with pytest.raises(RunDirectoryError, match="needs the network that was stored, got nothing there"):
        transfer(FUNCTION, **settings(), out=copy)
    (copy / "bases" / "0").mkdir()
    with pytest.raises(RunDirectoryError, match="needs the network that was stored, but it cannot be read"):
        transfer(FUNCTION, **settings(), out=copy)


@pytest.mark.slow
def test_base_networks_can_be_loaded_and_are_recognised(finished, tmp_path):
    model = set_up_transfer(FUNCTION, **settings()).make_network(3)
    weights = split_model(model)[1]
    save_network(tmp_path / "given", weights, {})
    more = settings(base_recipe=None, weights=[tmp_path / "given"], bases=2, against=(), with_scratch=False)
    result = transfer(FUNCTION, **more, out=tmp_path / "out")
    dense = [result.row(base, DENSE) for base in (0, 1)]
    assert dense[0].digest == dense[1].digest == weights_digest(weights) and dense[0].curve == ()
    assert result.row(0, FUNCTION).kept_digest == result.row(1, FUNCTION).kept_digest
    assert result.row(0, FUNCTION).digest != result.row(1, FUNCTION).digest  # another order of images
    save_network(tmp_path / "given", split_model(set_up_transfer(FUNCTION, **more).make_network(4))[1], {})
    (tmp_path / "out" / "transfer.json").unlink()
    lines = (tmp_path / "out" / "results.jsonl").read_bytes().splitlines(keepends=True)
    kept = [line for line in lines if b'"record": "test"' not in line]
    (tmp_path / "out" / "results.jsonl").write_bytes(b"".join(kept))
    setup = set_up_transfer(FUNCTION, **more)
    with pytest.raises(RunDirectoryError, match="needs the weights that the transfer was started with"):
        run_transfer(setup, tmp_path / "out")


@pytest.mark.slow
def test_a_rival_without_scores_is_left_out_and_said(tmp_path):
    messages = []
    more = settings(against=("N/(NX - NX)",), bases=1, with_scratch=False)
    result = transfer(FUNCTION, **more, out=tmp_path / "out", on_message=messages.append)
    assert result.names == (FUNCTION,)
    assert "not finite" in result.refused["N/(NX - NX)"] and any("is left out" in each for each in messages)


@pytest.mark.slow
def test_a_function_without_scores_is_refused(tmp_path):
    with pytest.raises(
        ValueError, match=r"needs a score for every channel.*on base 0 it is invalid: not finite"
    ):
        transfer("N/(NX - NX)", **settings(bases=1), out=tmp_path / "out")


@pytest.mark.slow
def test_a_training_that_diverges_is_named(tmp_path):
    bad = RECIPE.replace(optimizer="sgd", learning_rate=1e30)
    with pytest.raises(ValueError, match="base 0, dense: Training diverged"):
        transfer(FUNCTION, **settings(base_recipe=bad, bases=1), out=tmp_path / "out")


@pytest.mark.slow
def test_sequential_scoring_and_a_global_ranking_work(tmp_path):
    more = settings(bases=1, against=(), with_scratch=False)
    sequential = transfer(FUNCTION, **more | {"scoring": "sequential"}, out=tmp_path / "a")
    ranked = transfer(
        FUNCTION,
        **more | {"scope": "global", "kept_fraction": None, "macs_fraction": 0.4},
        out=tmp_path / "b",
    )
    assert dict(sequential.facts.kept) == {"first.kernel": 4}  # one group: as all groups at once
    assert dict(ranked.facts.kept) == {"first.kernel": 3}


def test_a_transfer_is_plain_data(finished):
    result, _ = finished
    plain = json.loads(json.dumps(result.to_json()))
    assert Transfer.from_json(plain) == result
    assert plain["differences"]["l1"]["n"] == 2
    assert result.paired(FUNCTION, "l1").mean == -result.paired("l1", FUNCTION).mean


def test_a_damaged_or_missing_result_is_refused(copy, tmp_path):
    text = (copy / "transfer.json").read_text()
    (copy / "transfer.json").write_text(text.replace('"small"', '"large"'))
    with pytest.raises(RunDirectoryError, match="changed or damaged since"):
        load_transfer(copy)
    with pytest.raises(RunDirectoryError, match=r"needs a finished transfer, got no transfer\.json"):
        load_transfer(tmp_path)


def test_a_slice_of_a_fresh_network_is_scaled_like_a_fresh_slim_one():
    model = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
    scaled = rescaled(model, {("kernel",): (8, 3)})
    np.testing.assert_allclose(scaled.kernel[...], 2 * model.kernel[...], rtol=1e-6)


def test_random_channels_depend_on_the_key_alone(key):
    structure = set_up_transfer(FUNCTION, **settings()).structure
    counts = {"first.kernel": 4}
    one, again = (random_plan(structure, counts, key) for _ in range(2))
    assert one == again and one.kept_counts == counts
    others = {random_plan(structure, counts, jax.random.key(seed)).to_kept() for seed in range(8)}
    assert len(others) > 4
    assert first_channels_plan(structure, counts).kept["first.kernel"] == (0, 1, 2, 3)

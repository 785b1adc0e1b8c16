"""`jaxprune score`: bases of tasks and networks of one's own, many formulas at once, and what cannot be."""

from __future__ import annotations

import csv
import io
import json

import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax import nnx
from own_networks import SmallNet
from prepared_data import write_prepared

from jaxprune.cli import main
from jaxprune.commands.score import read_formulas
from jaxprune.nets.factories import find_network
from jaxprune.scoring import scorable, scorer


@pytest.fixture
def score_base(bases_dir):
    def run(*arguments: str) -> int:
        return main(["score", "--task", "cli_tasks:small", "--bases-dir", str(bases_dir), *arguments])

    return run


@pytest.fixture
def data(tmp_path):
    """24 examples of 2 classes for `SmallNet`."""
    rng = np.random.default_rng(0)
    path = tmp_path / "mine.npz"
    np.savez(path, images=rng.normal(size=(24, 5)).astype(np.float32), labels=np.arange(24) % 2)
    return path


@pytest.fixture
def score_own(data):
    def run(*arguments: str, network: str = "own_networks:seeded") -> int:
        return main(["score", "--network", network, "--data", str(data), *arguments])

    return run


def read_csv(text):
    return list(csv.DictReader(io.StringIO(text)))


def test_scores_are_a_table_csv_or_json_of_all_channels(score_base, capsys):
    assert score_base("l1", "mean(X) + 1") == 0
    table = capsys.readouterr().out.splitlines()
    assert table[0].split() == ["group", "channel", "l1", "mean(X)", "+", "1"]
    assert table[9] == "" and [line.split()[-1] for line in table[-2:]] == ["ok", "ok"]
    assert score_base("l1", "l2", "--format", "csv") == 0
    shown = capsys.readouterr()
    rows = read_csv(shown.out)
    assert [row["channel"] for row in rows] == [str(channel) for channel in range(8)]
    assert "l2        ok" in shown.err, "what became of each function does not disturb the numbers"
    assert score_base("l1", "--format", "json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["network"] == "small, base 0"
    (l1,) = facts["functions"]
    assert (l1["name"], l1["formula"], l1["status"]) == ("l1", "sum(abs(WI))", "ok")
    np.testing.assert_allclose(l1["scores"]["first.kernel"], [float(row["l1"]) for row in rows])
    np.testing.assert_allclose(np.mean(l1["scores"]["first.kernel"]), 1.0, rtol=1e-5)


def test_every_function_has_a_status(score_own, tmp_path, capsys, monkeypatch):
    formulas = ["l1", "N/(NX - NX)", "N + 1", "abs(gamma)", "mean(rbf(P, 1))"]
    monkeypatch.setattr(scorer, "MAX_FLOPS", 1e3)
    assert score_own(*formulas, "--output", str(tmp_path / "new" / "scores.json")) == 0
    shown = capsys.readouterr()
    lines = {line.split("  ")[0]: line.split("  ", 1)[1].strip() for line in shown.out.splitlines()[1:]}
    assert lines["l1"] == "ok"
    assert lines["N/(NX - NX)"].split("  ")[-1].strip() == "in group first.kernel, channel 0: N/(NX - NX)"
    assert lines["N + 1"].startswith("constant") and "equal in every group" in lines["N + 1"]
    assert "missing operand" in lines["bn_scale"] and "gamma in first.kernel" in lines["bn_scale"]
    assert "refused" in lines["mean(rbf(P, 1))"] and "operations" in lines["mean(rbf(P, 1))"]
    functions = json.loads((tmp_path / "new" / "scores.json").read_text())["functions"]
    assert [function["status"] for function in functions] == [
        "ok",
        "not finite",
        "constant",
        "missing operand",
        "refused",
    ]
    assert functions[1]["scores"]["first.kernel"] == [None] * 8, "JSON knows no NaN"
    assert len({*functions[0]["scores"]["first.kernel"]}) == 8
    assert "wrote" in shown.err and "no --weights" in shown.err


def test_a_group_of_equal_scores_is_named(capsys, tmp_path):
    # one position: spread over positions says nothing of a dense layer
    assert (
        main(["score", "--network", "plain_conv_net", "--data", "digits", "--num-images", "40", "var(mX)"])
        == 0
    )
    assert "equal scores in dense.kernel" in capsys.readouterr().out


def test_duplicates_are_scored_once_and_returned_twice(score_own, capsys, monkeypatch):
    seen = []
    once = scorable.score_producers
    monkeypatch.setattr(scorable, "score_producers", lambda fs, ops: seen.append(list(fs)) or once(fs, ops))
    assert score_own("l1", "mean(X)", "sum(abs(WI))", "l1", "--format", "csv") == 0
    rows = capsys.readouterr().out.splitlines()
    assert rows[0] == "group,channel,l1,mean_activation,l1,l1"
    values = rows[1].split(",")
    assert values[2] == values[4] == values[5] != values[3]
    assert [[str(f) for f in fs] for fs in seen] == [["sum(abs(WI))", "mean(X)"]], (
        "one call with two functions"
    )


def test_groups_are_chosen_and_those_without_an_operand_are_named(tmp_path, capsys):
    path = tmp_path / "tokens.npz"
    rng = np.random.default_rng(0)
    np.savez(path, images=rng.normal(size=(12, 5, 6)).astype(np.float32), labels=np.arange(12) % 2)
    words = ["score", "--network", "own_networks:Attending", "--data", str(path)]
    assert (
        main([*words, "l1", "bn_scale", "--groups", "stem*", "--groups", "*axis2", "--ignore", "att*"]) == 0
    )
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines[1:7]] == [
        ["stem.kernel", str(channel)] for channel in range(6)
    ]
    assert main([*words, "l1", "bn_scale", "--format", "json"]) == 0
    l1, scales = json.loads(capsys.readouterr().out)["functions"]
    heads, places, out = list(l1["scores"])[1:]
    assert (scales["status"], scales["detail"]) == (
        "constant",
        f"equal in every group; no gamma in {heads}, {places}, {out}",
    )
    assert scales["scores"]["stem.kernel"] == [1.0] * 6 and scales["scores"][heads] == [None] * 2


def test_formulas_come_from_a_file_too(score_own, tmp_path, capsys):
    path = tmp_path / "formulas.txt"
    path.write_text("# mine\n\nmean(X) * 2   # twice the mean\nl2\n")
    assert score_own("l1", "--formulas", str(path), "--format", "csv") == 0
    assert capsys.readouterr().out.startswith("group,channel,l1,mean(X)*2,l2\n")
    path.write_text("l1\nsum(abs(WJ))\n")
    with pytest.raises(ValueError, match=r"formulas\.txt, line 2: .*'WJ'"):
        read_formulas([], path)


def test_metrics_of_the_zoo_score_by_their_names(score_own, capsys):
    assert score_own("fpgm", "l1", "flap", "--format", "json") == 0
    found = json.loads(capsys.readouterr().out)["functions"]
    assert [each["name"] for each in found] == ["fpgm", "l1", "flap"]
    assert len(set(found[0]["scores"]["first.kernel"])) == 8


def test_a_csv_file_holds_all_digits(score_own, tmp_path, capsys):
    assert score_own("l1", "N/(NX - NX)", "--output", str(tmp_path / "scores.csv")) == 0
    rows = read_csv((tmp_path / "scores.csv").read_text())
    assert len(rows) == 8 and rows[0]["N/(NX - NX)"] == "nan"
    kernel = np.asarray(find_network("own_networks:seeded").first.kernel[...])
    norms = np.abs(kernel).sum(0)
    np.testing.assert_allclose([float(row["l1"]) for row in rows], norms / norms.mean(), rtol=1e-6)
    capsys.readouterr()
    assert score_own("l1", "--aggregation", "mean", "--format", "csv") == 0
    plain = [float(row["l1"]) for row in read_csv(capsys.readouterr().out)]
    np.testing.assert_allclose(plain, norms, rtol=1e-6)


def test_status_is_1_if_no_function_has_scores(score_own, capsys):
    assert score_own("abs(gamma)", "N") == 1
    assert "missing operand" in capsys.readouterr().out


@pytest.mark.parametrize(
    "name", ["seeded", "positional", "by_keyword", "alone", "with_default", "made", "SmallNet"]
)
def test_factories_take_random_streams_or_nothing(name):
    made = find_network(f"own_networks:{name}", seed=1)
    assert isinstance(made, SmallNet)
    if name not in ("alone", "made"):
        same, other = (find_network(f"own_networks:{name}", seed=seed) for seed in (1, 2))
        np.testing.assert_array_equal(made.first.kernel[...], same.first.kernel[...])
        assert (np.asarray(made.first.kernel[...]) != np.asarray(other.first.kernel[...])).any()


def test_named_networks_fit_the_data():
    made = find_network("SmallConvNet", image_shape=(12, 12, 3), num_classes=4)
    assert made(np.zeros((2, 12, 12, 3), np.float32)).shape == (2, 4)
    assert find_network("lenet-5").image_shape == (28, 28, 1)


@pytest.mark.parametrize("form", ["state", "pure", "ours", "manager"])
def test_weights_come_from_a_checkpoint(form, score_own, tmp_path, capsys):
    from jaxprune.structure.model_state import split_model
    from jaxprune.training.checkpoint import save_network

    model, folder = SmallNet(nnx.Rngs(11)), tmp_path / "weights"
    if form == "ours":
        save_network(folder, split_model(model)[1], {"accuracy": 50.0})
    elif form == "manager":
        with ocp.CheckpointManager(folder) as manager:
            manager.save(3, args=ocp.args.StandardSave(nnx.state(model)))
        folder = folder / "3"
    else:
        state = nnx.state(model)
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(folder, state if form == "state" else nnx.to_pure_dict(state))
    assert score_own("l1", "--weights", str(folder), "--aggregation", "mean", "--format", "csv") == 0
    shown = capsys.readouterr()
    found = [float(row["l1"]) for row in read_csv(shown.out)]
    np.testing.assert_allclose(found, np.abs(np.asarray(model.first.kernel[...])).sum(0), rtol=1e-6)
    assert "no --weights" not in shown.err
    assert folder.is_dir(), "a user's checkpoint is never touched"


def test_a_checkpoint_of_another_network_is_refused_and_kept(score_own, tmp_path, capsys):
    folder = tmp_path / "weights"
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder, {"first": {"kernel": np.zeros((5, 9)), "bias": np.zeros(8)}})
    assert score_own("l1", "--weights", str(folder)) == 2
    told = capsys.readouterr().err
    assert "second.kernel is missing" in told and "first.kernel is (5, 9) and not (5, 8)" in told
    assert folder.is_dir()


def test_the_number_of_images_is_balanced(data):
    from jaxprune.datasets.example_files import balanced

    with np.load(data) as arrays:
        found = balanced(arrays["images"], arrays["labels"], 6)
    assert np.bincount(found.labels).tolist() == [3, 3]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "score needs at least one formula, got none. Give some, or --formulas FILE"),
        (["mmmd"], "Did you mean 'mmd'"),
        (["mX"], "a pruning function needs one number per channel, got mX of type (D)"),
        (["l1", "--base", "-1"], "--base needs a number from 0, got -1."),
        (["l1", "--data", "digits"], "--data needs --network, got none. A task has its own network and images."),
        (["l1", "--output", "scores.txt"], "--output needs a name that ends in .csv or .json, got scores.txt."),
        (["--formulas", "nowhere.txt"], "--formulas needs a text file with a formula a line, got nowhere.txt: No"),
        (["l1", "--network", "vgg116"], "Did you mean 'vgg16'?"),
    ],
)  # fmt: skip
def test_what_cannot_be_scored_is_explained(arguments, message, score_base, capsys):
    without_task = "--network" in arguments
    run = (lambda *given: main(["score", *given])) if without_task else score_base
    assert run(*arguments, *(["--data", "digits"] if without_task else [])) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("network", "message"),
    [
        ("own_networks:nothing", "needs a module on the Python path with a function 'nothing'"),
        ("no_such_module:make", "needs a module on the Python path with a function 'make': No module named"),
        ("own_networks:", "a network needs to be one of plain_conv_net, small_conv_net, depthwise_net, lenet5, "),
        ("own_networks:no_network", "(flax.nnx.Module), got one that gives dict. Let it return the network itself."),
        ("own_networks:not_callable", "got one that gives int"),
        ("own_networks:needs_more", "takes flax.nnx.Rngs or nothing, got one that needs rngs, width. Write a function"),
    ],
)  # fmt: skip
def test_factories_that_cannot_work_are_explained(network, message, score_own, capsys):
    assert score_own("l1", network=network) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": np.zeros((4, 5))}, "data needs an array labels or y, got"),
        ({"labels": np.arange(4) % 2}, "data needs an array images or x, got"),
        ({}, "with no arrays. Write numpy.savez(file, images=images, labels=labels)."),
        ({"x": np.zeros((4, 5)), "y": np.zeros((4, 2))}, "for each of 4 examples, got labels of shape (4, 2)"),
        ({"x": np.zeros((4, 5)), "y": np.zeros(3, int)}, "for each of 4 examples, got labels of shape (3,)"),
        ({"x": np.zeros((4, 6)), "y": np.arange(4) % 2}, "needs a network that runs on images of shape (2, 6)"),
        ({"x": np.zeros((4, 5)), "y": np.ones(4, int)}, "needs at least two classes, got only class 1 in 4 labels"),
        ({"x": np.full((4, 5), np.nan), "y": np.arange(4) % 2}, "needs finite images, got 20 NaN"),
        ({"x": np.zeros((4, 5)), "y": np.linspace(0, 1, 4)}, "labels must be whole numbers or strings"),
        ({"x": np.array([None, 1]), "y": np.arange(2)}, "data needs a NumPy archive of plain arrays, got"),
    ],
)  # fmt: skip
def test_data_that_cannot_be_used_is_explained(arrays, message, tmp_path, capsys):
    path = tmp_path / "data.npz"
    np.savez(path, **arrays)
    assert main(["score", "l1", "--network", "own_networks:seeded", "--data", str(path)]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "mnist"], "got mnist: none of these. Did you mean 'tfds:mnist'? Write a file with numpy.savez("),
        (["--data", "."], "needs a folder train with a folder for each class, got none."),
        (["--data", "numbers"], "data needs to be one of digits, fashion, tfds:NAME, a folder of images or a file"),
        (["--data", "numbers.npz"], "got numbers.npz: no such file. Write a file with numpy.savez"),
        ([], "--network needs images to observe it on, got none. Name them with --data."),
        (["--data", "digits", "--task", "digits"], "got --network and --task, which is about a task. Leave one out."),
        (["--data", "digits", "--base-epochs", "3"], "got --network and --base-epochs, which is about a task."),
        (["--data", "digits", "--num-images", "9"], "must be at least 10, one of each class, got 9."),
        (["--data", "digits", "--weights", "nowhere"], "needs an Orbax checkpoint of a network's state, got"),
    ],
)  # fmt: skip
def test_options_of_a_network_that_do_not_fit_are_explained(
    arguments, message, capsys, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    assert main(["score", "l1", "--network", "plain_conv_net", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_a_network_is_observed_on_a_prepared_set(tmp_path, capsys):
    write_prepared("mnist", tmp_path)
    options = ["--network", "small_conv_net", "--data", "tfds:mnist", "--data-dir", str(tmp_path)]
    assert main(["score", "l1", *options, "--num-images", "20"]) == 0
    assert "ok" in capsys.readouterr().out

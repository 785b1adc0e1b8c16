"""`jaxprune transfer` runs at toy size, says what is wrong before anything is trained, and survives being killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from flax import nnx
from prepared_data import write_prepared
from toy_transfer import write_archive

from jaxprune.cli import main
from jaxprune.comparison.transfer_results import load_transfer
from jaxprune.nets.factories import find_network
from jaxprune.structure.model_state import FlatState, split_model
from jaxprune.training.checkpoint import save_network

NETWORK = ["--network", "cli_tasks:SmallNet"]
DIGITS = "--network plain_conv_net --data digits --recipe adam_short --kept-fraction 0.5".split()


def toy(path: Path) -> list[str]:
    """A command line without `--out` on vectors in a file."""
    data = write_archive(path / "vectors.npz")
    more = "--recipe adam_short --base-recipe adam_short --batch-size 20 --kept-fraction 0.5 --bases 1 --no-scratch"
    return ["transfer", "--function", "l1", *NETWORK, "--data", str(data), *more.split()]


def test_a_transfer_writes_rows_networks_and_a_report(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    more = ["--against", "l1", "--epochs", "1", "--base-epochs", "1", "--out", str(tmp_path / "out")]
    assert main([*toy(tmp_path), *more]) == 0
    shown = capsys.readouterr()
    assert "| dense |" in shown.out and "points of top-1 on test images" in shown.out
    assert "FLOP of training" in shown.err and "on 40 test images" in shown.err
    report = (tmp_path / "out" / "report.md").read_text()
    assert report.startswith("# Transfer to cli_tasks:SmallNet on ") and "Published results" not in report
    for name in ("curves", "kept"):
        assert (tmp_path / "out" / "figures" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert load_transfer(tmp_path / "out").names == ("l1",)


LINES = {
    "Did you mean 'resnet20'?": ["--network", "resnet2"],
    "Did you mean 'digits'?": ["--data", "digit"],
    "Did you mean 'adam_short'?": ["--recipe", "adam_shor"],
    "Did you mean 'adam_base_digits'?": ["--base-recipe", "adam_base_digit"],
    "Did you mean 'l1'": ["--function", "l1o"],
    "Did you mean 'l2'": ["--against", "l22"],
    "--against needs names or formulas separated by commas": ["--against", " , "],
    "There is no run folder of that name either.": ["--function", "runs/nowhere"],
    "needs operand gamma, which producers conv1.kernel, conv2.kernel, dense.kernel do": [
        "--function",
        "gamma",
    ],
    "is the name of a row of its own": ["--function", "random"],
    "VGG19 needs images of at least 32x32, got 8x8": ["--network", "vgg19"],
    "bases >= 1 (got 0)": ["--bases", "0"],
    "seed >= 0 (got -1)": ["--seed", "-1"],
    "calibration_images >= 2 (got 1)": ["--calibration-images", "1"],
    "calibration_images must be at least the number of classes, 10, got 9": ["--calibration-images", "9"],
    "coarse_classes >= 2 (got 1)": ["--classes", "1"],
    "coarse_classes must be at most the number of classes, 10, got 11": ["--classes", "11"],
    "kept_fraction must be in (0, 1], got 2.0": ["--kept-fraction", "2"],
    "multiple_of must be a whole number >= 1": ["--multiple-of", "0"],
    "needs at least one batch of 5000 examples, got 1097": ["--batch-size", "5000"],
    "epochs a whole number >= 1": ["--epochs", "0"],
    "an image size is for images of many sizes": ["--image-size", "32"],
    "--base-epochs needs base networks that are trained": ["--weights", "w", "--base-epochs", "3"],
    "got both weights and a base recipe": ["--weights", "w", "--base-recipe", "adam_short"],
    "needs an Orbax checkpoint of a network's state": ["--weights", "nowhere"],
    "there is no usual one beside 'paper_vgg'": ["--recipe", "paper_vgg"],
    "scoring='sequential' needs scope='group'": ["--scope", "global", "--scoring", "sequential"],
    "SmallNet needs images that it can take, got digits of shape (8, 8, 1)": NETWORK,
}


@pytest.mark.parametrize("message", LINES)
def test_what_cannot_work_is_said_before_anything_is_trained(message, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("jaxprune.comparison.transfer_protocol.TransferRun", None)
    line = ["transfer", "--function", "l1", *DIGITS, "--out", "out"]
    for option, value in zip(LINES[message][::2], LINES[message][1::2], strict=True):
        line = [*line, option, value] if option not in line else replaced(line, option, value)
    monkeypatch.chdir(tmp_path)
    assert main(line) == 2
    shown = capsys.readouterr().err
    assert message in shown and "Traceback" not in shown
    assert not (tmp_path / "out").exists()


def replaced(line: list[str], option: str, value: str) -> list[str]:
    """The command line with another value of an option that it has."""
    place = line.index(option) + 1
    return [*line[:place], value, *line[place + 1 :]]


def test_a_budget_that_cannot_be_met_says_what_can(tmp_path, capsys):
    line = [
        "transfer",
        "--function",
        "l1",
        *DIGITS[:-2],
        "--macs-fraction",
        "0.0001",
        "--out",
        str(tmp_path / "o"),
    ]
    assert main(line) == 2
    assert "the smallest network that keeps a channel of every group has 0.00" in capsys.readouterr().err


def test_two_budgets_or_none_are_refused(capsys):
    for budget, message in (([], "is required"), (["--macs-fraction", "0.5"], "not allowed with argument")):
        line = ["transfer", "--function", "l1", *(DIGITS if budget else DIGITS[:-2]), *budget, "--out", "o"]
        with pytest.raises(SystemExit):
            main(line)
        assert message in capsys.readouterr().err


def zeros_like(model: nnx.Module) -> FlatState:
    """Weights of zeros for a network without weights."""
    shapes = split_model(model)[1]
    return {path: np.zeros(array.shape, array.dtype) for path, array in shapes.items()}


def test_weights_for_another_number_of_classes_are_named(tmp_path, capsys):
    model = find_network("plain_conv_net", image_shape=(8, 8, 1), num_classes=7, has_weights=False)
    save_network(tmp_path / "seven", zeros_like(model), {})
    line = ["transfer", "--function", "l1", *DIGITS, "--weights", str(tmp_path / "seven"), "--out", "o"]
    assert main(line) == 2
    message = "weights need to be of a network for the 10 classes of digits, got"
    shown = capsys.readouterr().err
    assert message in shown and "for 7 classes" in shown


def test_weights_of_another_network_are_named(tmp_path, capsys):
    save_network(tmp_path / "other", zeros_like(find_network("cli_tasks:SmallNet", has_weights=False)), {})
    line = ["transfer", "--function", "l1", *DIGITS, "--weights", str(tmp_path / "other"), "--out", "o"]
    assert main(line) == 2
    assert "a checkpoint needs all arrays of the network" in capsys.readouterr().err


def test_too_little_disk_is_said_before(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("shutil.disk_usage", lambda path: os.statvfs_result(range(10)) and Usage())
    line = ["transfer", "--function", "l1", *DIGITS, "--out", str(tmp_path / "o")]
    assert main(line) == 2
    assert "GiB on the disk of" in capsys.readouterr().err and not (tmp_path / "o").exists()


class Usage:
    """A full disk."""

    free = 1000


def test_too_little_memory_is_said_before(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("jaxprune.comparison.transfer_cost.device_memory", lambda: 1000)
    line = ["transfer", "--function", "l1", *DIGITS, "--out", str(tmp_path / "o")]
    assert main(line) == 2
    assert "a training step needs about" in capsys.readouterr().err and not (tmp_path / "o").exists()


def test_a_batch_has_to_divide_by_the_devices(tmp_path, monkeypatch, capsys):
    class Mesh:
        size = 8

    monkeypatch.setattr("jaxprune.comparison.training_checks.local_mesh", Mesh)
    assert main(["transfer", "--function", "l1", *DIGITS, "--out", str(tmp_path / "o")]) == 2
    shown = capsys.readouterr().err
    assert (
        "needs a batch that divides among the 8 devices, got 50. Say batch_size 48 (--batch-size 48)" in shown
    )


def test_data_that_are_not_prepared_name_the_command(tmp_path, capsys):
    pytest.importorskip("tensorflow_datasets")
    line = replaced(["transfer", "--function", "l1", *DIGITS, "--out", "o"], "--data", "tfds:cifar100")
    assert main([*line, "--data-dir", str(tmp_path)]) == 2
    assert f"jaxprune prepare cifar100 --data-dir {tmp_path}" in capsys.readouterr().err


ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1] / "support"), ""])}


def started(line: list[str], log: Path) -> subprocess.Popen[bytes]:
    """Starts the command in a process of its own."""
    with log.open("ab") as file:
        return subprocess.Popen(
            [sys.executable, "-m", "jaxprune.cli", *line], stderr=file, stdout=file, env=ENVIRONMENT
        )


def facts(out: Path) -> list[dict[str, object]]:
    """The rows without times."""
    rows = json.loads((out / "transfer.json").read_text())["rows"]
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_transfer_ends_with_the_same_weights_and_rows(number, tmp_path):
    """The second signal falls into a fine-tuning, which goes on from its checkpoint."""
    line = [*toy(tmp_path), "--against", "mean(X)", "--epochs", "900", "--base-epochs", "2"]
    log = tmp_path / "log"
    assert started([*line, "--out", str(tmp_path / "whole")], log).wait(300) == 0
    out = tmp_path / "killed"
    for row in ("0-l1", "0-mean*"):
        process = started([*line, "--out", str(out)], log)
        while not any(path.name.isdigit() for path in (out / "training").glob(f"{row}/*")):
            assert process.poll() is None, log.read_text()
            time.sleep(0.01)
        process.send_signal(number)
        assert process.wait(60) == (143 if number == signal.SIGTERM else -9), log.read_text()
    assert not (out / "transfer.json").exists()
    assert started([*line, "--out", str(out)], log).wait(300) == 0, log.read_text()
    assert log.read_text().count("goes on after") == 2
    assert facts(out) == facts(tmp_path / "whole")


@pytest.mark.slow
def test_sets_of_the_real_format_are_read_in_memory_and_from_the_disk(tmp_path, capsys):
    pytest.importorskip("tensorflow_datasets")
    write_prepared("cifar100", tmp_path, num_train=500, num_test=100)
    more = "--kept-fraction 0.5 --recipe cifar_finetune --base-epochs 1 --epochs 1 --batch-size 100 --bases 1"
    line = [
        "transfer",
        "--function",
        "l1",
        "--network",
        "small_conv_net",
        *more.split(),
        "--data-dir",
        str(tmp_path),
    ]
    line += ["--against", "l1", "--no-scratch", "--classes", "10", "--calibration-images", "200"]
    assert main([*line, "--data", "tfds:cifar100", "--out", str(tmp_path / "memory")]) == 0
    assert load_transfer(tmp_path / "memory").facts.num_train == 400
    line = [*line, "--image-size", "32"]
    assert main([*line, "--data", "tfds:cifar100", "--out", str(tmp_path / "disk")]) == 0
    result = load_transfer(tmp_path / "disk")
    assert result.facts.num_validation == 100 and result.row(0, "l1").after.top5 is not None

"""`jaxprune prune --network` on one's own network: what it prints, writes, and refuses before training."""

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
from toy_transfer import write_archive

from jaxprune.cli import main

DIGITS = "prune --network plain_conv_net --data digits --recipe adam_short --kept-fraction 0.5".split()


def toy(path: Path) -> list[str]:
    """A command line without `--out` on vectors in a file."""
    data = write_archive(path / "vectors.npz")
    more = "--recipe adam_short --base-recipe adam_short --batch-size 20 --metric l1 --macs-fraction 0.5"
    return ["prune", "--network", "cli_tasks:SmallNet", "--data", str(data), *more.split()]


def test_a_table_and_all_files(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    line = [
        *toy(tmp_path),
        "--epochs",
        "1",
        "--base-epochs",
        "2",
        "--seeds",
        "2",
        "--out",
        str(tmp_path / "out"),
    ]
    assert main(line) == 0
    shown = capsys.readouterr()
    assert "trained first: 2 epochs of adam_short" in shown.err
    for text in (
        "l1  on cli_tasks:SmallNet",
        "first.kernel       8      4",
        "asked 0.5, met 0.5",
        "±",
        "16 images, ms",
    ):
        assert text in shown.out
    for name in ("plan.json", "result.json", "speed.json", "network/manifest.json"):
        assert (tmp_path / "out" / name).is_file()
    assert (tmp_path / "out" / "kept.png").read_bytes().startswith(b"\x89PNG")
    assert main(line) == 0  # goes on, and shows the same
    assert capsys.readouterr().out == shown.out


LINES = {
    "--data needs --network, got none": ["prune", "--data", "digits"],
    "--scratch needs --network, got none": ["prune", "--scratch"],
    "got --network and --task, which is about a task": [*DIGITS, "--task", "digits"],
    "got --network and --base, which is about a task": [*DIGITS, "--base", "1"],
    "got --network and --scale, which is about a task": [*DIGITS, "--scale", "0.5"],
    "--overwrite is for a task, got --network": [*DIGITS, "--overwrite"],
    "--network needs --data, --recipe, a budget (--macs-fraction": ["prune", "--network", "lenet5"],
    "--base-epochs needs a network that is trained, got --weights": [
        *DIGITS,
        "--weights",
        "w",
        "--base-epochs",
        "2",
    ],
    "got both weights and a base recipe": [*DIGITS, "--weights", "w", "--base-recipe", "adam_short"],
    "needs an Orbax checkpoint of a network's state": [*DIGITS, "--weights", "nowhere"],
    "No such file or directory": [*DIGITS[:2], "resnet20", *DIGITS[3:], "--weights", "nowhere.safetensors"],
    "Did you mean 'adam_short'?": [*DIGITS[:6], "adam_shor", *DIGITS[7:]],
    "Did you mean 'l1'": [*DIGITS, "--metric", "l1o"],
    "needs operand gamma": [*DIGITS, "--metric", "gamma"],
    "Did you mean 'plain_conv_net'?": ["prune", "--network", "plain_conv", *DIGITS[3:]],
    "Did you mean 'digits'?": [*DIGITS[:4], "digit", *DIGITS[5:]],
    "Give only one budget option, got --kept-fraction and --macs-fraction": [
        *DIGITS,
        "--macs-fraction",
        "0.5",
    ],
    "kept_fraction must be in (0, 1], got 1.5": [*DIGITS[:-1], "1.5"],
    "the smallest network": [*DIGITS[:-2], "--macs-fraction", "0.0001"],
    "kept_counts needs 3 numbers": [*DIGITS[:-2], "--kept-counts", "3,4"],
    "--kept-counts needs whole numbers as in 6,12,24 or GROUP=6": [*DIGITS[:-2], "--kept-counts", "few"],
    "--scope needs a share to keep": [*DIGITS[:-2], "--kept-counts", "3", "--scope", "global"],
    "--epochs needs a whole number": [*DIGITS, "--epochs", "digits=3"],
    "needs at least one batch of 5000 examples, got 1097": [*DIGITS, "--batch-size", "5000"],
    "SmallNet needs images that it can take": ["prune", "--network", "cli_tasks:SmallNet", *DIGITS[3:]],
    "there is no usual one beside 'paper_vgg'": [*DIGITS[:6], "paper_vgg", *DIGITS[7:]],
}


@pytest.mark.parametrize("message", LINES)
def test_what_cannot_work_is_said_before_anything_is_trained(message, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("jaxprune.comparison.pruning_run.PruningFolder", None)
    monkeypatch.chdir(tmp_path)
    assert main([*LINES[message], "--out", "out"]) == 2
    shown = capsys.readouterr().err
    assert message in shown and "Traceback" not in shown
    assert not (tmp_path / "out").exists()


def test_images_without_a_class_for_each_logit_are_refused(tmp_path, capsys):
    x = np.zeros((30, 5), np.float32)
    np.savez(tmp_path / "three.npz", x_train=x, y_train=np.arange(30) % 3)
    line = toy(tmp_path)
    line[line.index("--data") + 1] = str(tmp_path / "three.npz")
    assert main([*line, "--out", str(tmp_path / "out")]) == 2
    assert "needs to give 3 logits, one for each class" in capsys.readouterr().err


ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1] / "support"), ""])}


def started(line: list[str], log: Path) -> subprocess.Popen[bytes]:
    """Starts the command in a process of its own."""
    with log.open("ab") as file:
        return subprocess.Popen(
            [sys.executable, "-m", "jaxprune.cli", *line], stderr=file, stdout=file, env=ENVIRONMENT
        )


def digests(out: Path) -> list[str]:
    """Hashes of all weights."""
    return [row["digest"] for row in json.loads((out / "result.json").read_text())["rows"]]


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_run_ends_with_the_same_weights(number, tmp_path):
    line = [*toy(tmp_path), "--epochs", "900", "--base-epochs", "900"]
    log = tmp_path / "log"
    assert started([*line, "--out", str(tmp_path / "whole")], log).wait(300) == 0
    out = tmp_path / "killed"
    for name in ("dense-0", "finetuned-0"):
        process = started([*line, "--out", str(out)], log)
        while not any(path.name.isdigit() for path in (out / "training").glob(f"{name}/*")):
            assert process.poll() is None, log.read_text()
            time.sleep(0.01)
        process.send_signal(number)
        assert process.wait(60) == (143 if number == signal.SIGTERM else -9), log.read_text()
    assert started([*line, "--out", str(out)], log).wait(300) == 0, log.read_text()
    assert log.read_text().count("goes on after") == 2
    assert digests(out) == digests(tmp_path / "whole")

"""`jaxprune sensitivity`: a table, numbers, floors and a picture, of a task or of one's own network."""

from __future__ import annotations

import json

import numpy as np
import pytest

from jaxprune.cli import main
from jaxprune.comparison.group_sensitivity import Sensitivity


def test_a_base_of_a_task_is_measured_on_validation_images(bases_dir, tmp_path, capsys):
    out = tmp_path / "out"
    words = ["sensitivity", "--task", "cli_tasks:small", "--bases-dir", str(bases_dir), "--out", str(out)]
    assert main([*words, "--fractions", "0.25,0.5", "--metric", "l1", "--max-drop", "100"]) == 0
    shown = capsys.readouterr()
    found = Sensitivity.from_json((out / "sensitivity.json").read_text())
    assert found.counts == {"first.kernel": (2, 4)} and found.metric == "sum(abs(WI))"
    assert json.loads((out / "floors.json").read_text()) == {"first.kernel": 2}
    assert (out / "sensitivity.png").read_bytes().startswith(b"\x89PNG")
    assert "2 of 8" in shown.out and f"{found.dense_accuracy:.2f} %" in shown.out
    assert "group 1 of 1, first.kernel" in shown.err
    assert main(words) == 2
    assert "nothing is replaced unasked" in capsys.readouterr().err


def test_a_network_of_ones_own_is_measured_on_the_images_of_a_file(tmp_path, capsys):
    images = np.random.default_rng(0).normal(size=(24, 5)).astype(np.float32)
    np.savez(tmp_path / "mine.npz", images=images, labels=np.arange(24) % 2)
    words = ["sensitivity", "--network", "own_networks:seeded", "--data", str(tmp_path / "mine.npz")]
    assert main([*words, "--out", str(tmp_path / "out"), "--fractions", "0.5"]) == 0
    assert "accuracy is measured on the images of --data" in capsys.readouterr().err
    assert Sensitivity.from_json((tmp_path / "out" / "sensitivity.json").read_text()).num_labels == 24


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--fractions", "half"], "--fractions needs numbers in (0, 1], as in 0.25,0.5, got 'half'"),
        (["--max-drop", "-1"], "--max-drop needs points of accuracy >= 0, got -1.0"),
        (["--data", "digits"], "--data needs --network, got none"),
        (["--metric", "nonsense("], "nonsense"),
    ],
)
def test_options_that_make_no_sense_are_refused(words, message, tmp_path, capsys):
    assert main(["sensitivity", "--out", str(tmp_path / "out"), *words]) == 2
    assert message in capsys.readouterr().err

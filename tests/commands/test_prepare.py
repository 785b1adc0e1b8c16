"""`jaxprune prepare` prints what is prepared, and refuses with one clear line."""

from __future__ import annotations

import sys

import pytest
from prepared_data import write_prepared

from jaxprune.cli import main


def test_prepared_sets_stay_and_the_command_succeeds(tmp_path, capsys):
    for name in ("mnist", "cifar10"):
        write_prepared(name, tmp_path)
    assert main(["prepare", "mnist", "tfds:cifar10", "--data-dir", str(tmp_path)]) == 0
    output = capsys.readouterr()
    assert [line.split(": ")[0] for line in output.out.splitlines()] == ["tfds:mnist", "tfds:cifar10"]
    assert "100 train, 20 test images, 10 classes" in output.out
    assert output.err.count("is prepared already") == 2


def test_shrink_writes_a_set_of_its_own(tmp_path, capsys):
    write_prepared("imagenet2012", tmp_path, num_train=4, num_test=2)
    assert main(["prepare", "imagenet2012", "--shrink", "48", "--data-dir", str(tmp_path)]) == 0
    assert capsys.readouterr().out.startswith("tfds:imagenet2012/shrunk48: 4 train, 2 validation images")


def test_the_data_directory_is_that_of_tensorflow_datasets_by_default(tmp_path, capsys, monkeypatch):
    write_prepared("mnist", tmp_path)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    assert main(["prepare", "mnist"]) == 0


def test_all_names_are_checked_before_the_first_set_is_prepared(tmp_path, capsys):
    write_prepared("mnist", tmp_path)
    assert main(["prepare", "mnist", "cifra10", "--data-dir", str(tmp_path)]) == 2
    output = capsys.readouterr()
    assert "tfds:cifra10 needs to be a set" in output.err and "mnist" not in output.out + output.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["mnits"], "tfds:mnits needs to be a set of TensorFlow Datasets, or a prepared one in"),
        (["mnist"], "pip install 'jaxprune[prepare]'"),
        (["no such"], "the name of a set needs to look like tfds:mnist"),
        (["mnist", "--shrink", "3"], "--shrink needs a side of at least 32 pixels, got 3."),
    ],
)
def test_what_cannot_be_prepared_is_explained(tmp_path, capsys, monkeypatch, arguments, message):
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    assert main(["prepare", *arguments, "--data-dir", str(tmp_path)]) == 2
    assert message in capsys.readouterr().err

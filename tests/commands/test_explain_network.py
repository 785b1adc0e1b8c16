"""`jaxprune explain --network` without a formula: groups, reasons, costs, one layer, a picture."""

from __future__ import annotations

import json

import numpy as np
import pytest

from jaxprune import count_parameters, find_network, trace_structure
from jaxprune.cli import main
from jaxprune.commands.explain_network import parse_input


@pytest.fixture
def explain(capsys):
    def run(network: str, *arguments: str, status: int = 0) -> str:
        assert main(["explain", "--network", f"own_networks:{network}", *arguments]) == status
        return capsys.readouterr().out

    return run


def test_groups_reasons_and_costs_are_printed(explain):
    shown = explain("Stack", "--input", "1x4:int32")
    assert shown.startswith("own_networks:Stack on 1x4:int32: 743 parameters, ")
    rows = [line for line in shown.splitlines() if line.startswith(" blocks.0-4.up.kernel")]
    assert len(rows) == 1 and "5 × 10" in rows[0] and "blocks.0-4.down" in rows[0]
    assert "6 groups with 56 channels. At most 50 can be cut" in shown
    assert "looked up by number in gather at " in shown and "tokens.embedding[0]" in shown


def test_source_lines_are_told_from_the_working_directory(explain, monkeypatch, root):
    monkeypatch.chdir(root)
    shown = explain("Stack", "--input", "1x4:int32")
    assert "gather at tests/support/own_networks.py:" in shown and str(root) not in shown


def test_weight_norms_and_arrays_outside_of_variables_are_followed_as_with_weights(explain):
    facts = json.loads(explain("BareArrays", "--input", "1x5", "--json"))
    structure = trace_structure(find_network("own_networks:BareArrays"), np.zeros((1, 5), np.float32))
    assert list(facts["groups"]) == list(structure.groups) == ["norm.layer_instance.kernel"]
    assert facts["frozen"] == structure.frozen and "table[1]" in facts["frozen"]


def test_every_shows_each_group(explain):
    shown = explain("Stack", "--input", "1x4:int32", "--every")
    assert all(f"blocks.{number}.up.kernel" in shown for number in range(5))


def test_numbers_of_own_classes_are_named(explain):
    assert "hidden: changes with the channels kept of up.kernel" in explain("Gated", "--input", "1x5")


def test_json_has_everything(explain):
    facts = json.loads(explain("Heads", "--input", "1x5x6", "--json"))
    assert facts["input"] == [1, 5, 6] and facts["frozen"]["head.kernel[1]"] == "output of the network"
    (inner,) = (group["inner"] for group in facts["groups"].values() if group["channels"] == 2)
    assert inner == [name for name, group in facts["groups"].items() if group["channels"] == 4]
    assert facts["parameters"] == 3 * (6 * 8 + 8) + 8 * 6 + 6 + 6 * 3 + 3


def test_why_tells_of_one_array_or_layer(explain):
    assert explain("Stack", "--input", "1x4:int32", "--why", "head.kernel") == (
        "head.kernel[0] (6): group tokens.embedding\nhead.kernel[1] (3): frozen, output of the network\n"
    )
    assert len(explain("Stack", "--input", "1x4:int32", "--why", "blocks").splitlines()) == 30


def test_a_network_without_groups_is_an_answer_of_no(explain, capsys):
    shown = explain("one_layer", "--input", "1x5", status=1)
    assert "Never cut:" in shown and "kernel[1]" in shown


def test_networks_of_ours_know_their_input(capsys):
    assert main(["explain", "--network", "plain_conv_net"]) == 0
    assert capsys.readouterr().out.startswith("plain_conv_net on 1x8x8x1: ")


def test_data_give_input_and_classes(tmp_path, capsys):
    np.savez(tmp_path / "mine.npz", images=np.zeros((6, 12, 12, 3), np.float32), labels=np.arange(6) % 3)
    assert (
        main(["explain", "--network", "plain_conv_net", "--data", str(tmp_path / "mine.npz"), "--json"]) == 0
    )
    facts = json.loads(capsys.readouterr().out)
    assert facts["input"] == [1, 12, 12, 3]
    assert facts["parameters"] == count_parameters(
        find_network("plain_conv_net", image_shape=(12, 12, 3), num_classes=3)
    )


def test_the_picture_is_written(explain, tmp_path):
    pytest.importorskip("matplotlib")
    path = tmp_path / "new" / "groups.png"
    explain("Stack", "--input", "1x4:int32", "--figure", str(path))
    assert path.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "explain needs a formula, or a network to take apart, got neither."),
        (["--network", "lenet5", "--input", "28xa"], "--input needs sizes joined by x, batch first, as in 1x32x32x3"),
        (["--network", "lenet5", "--input", "1x0"], "as in 1x32x32x3 or 1x128:int32, got '1x0'"),
        (["--network", "lenet5", "--input", "1x28:int31"], "got 'int31'. Did you mean 'int32'?"),
        (["--network", "lenet5", "--input", "1x28", "--data", "digits"], "got --input and --data. Leave one out."),
        (["--network", "own_networks:Stack"], "needs to be told what it takes, got neither --input nor --data."),
        (["--network", "own_networks:Gated", "--input", "1x7"], "needs a network that runs on images of shape"),
        (["--network", "plain_conv_net", "--why", "conv1.kernal"], "got 'conv1.kernal'. Did you mean 'conv1.kernel'?"),
        (["--network", "lenet5", "--code", "numpy"], "--code needs a formula, got none."),
        (["--network", "lenet5", "--task", "digits"], "--task needs a formula, got none."),
        (["l1", "--why", "conv1"], "--why shows the groups of a network, got a formula as well. Leave it out."),
    ],
)  # fmt: skip
def test_what_cannot_be_explained_says_why(arguments, message, capsys):
    assert main(["explain", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_inputs_by_hand():
    example = parse_input("2x128:int32")
    assert example.shape == (2, 128) and example.dtype == np.int32

from __future__ import annotations

import json
import time
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from flax import nnx
from pruned_nets import Net, linear

import jaxprune as jp
from jaxprune.deploy import speed
from jaxprune.deploy.speed import Speed, SpeedReport, SpeedRow, alternating_seconds

REPORT = SpeedReport(
    rows=(
        SpeedRow(1, Speed(0.004, (0.0035, 0.005), 3 * 2**20), Speed(0.002, (0.0019, 0.0021), 2**20)),
        SpeedRow(16, Speed(0.03, (0.03, 0.03), None), Speed(0.01, (0.01, 0.0125), None)),
    ),
    macs=(4000, 1000),
    parameters=(300, 100),
    device="cpu (x)",
    versions="jax 1",
    rounds=20,
)


def test_the_table_by_hand():
    assert REPORT.to_markdown().splitlines() == [
        "From 4,000 to 1,000 MACs for one example and 300 to 100 parameters. Measured on cpu (x) with jax 1: medians "
        "of 20 rounds, quartiles in brackets, compilation left out.",
        "",
        "| batch | dense, ms | slim, ms | faster | fewer MACs | examples/s | peak MiB |",
        "|---|--:|--:|--:|--:|--:|--:|",
        "| 1 | 4 (3.5 to 5) | 2 (1.9 to 2.1) | 2.00x | 4.00x | 250 to 500 | 3.0 to 1.0 |",
        "| 16 | 30 (30 to 30) | 10 (10 to 12.5) | 3.00x | 4.00x | 533 to 1,600 | ? to ? |",
    ]


def test_json_comes_back_equal():
    assert SpeedReport.from_json(REPORT.to_json()) == REPORT
    assert json.loads(REPORT.to_json())["rows"][0]["dense"]["seconds"] == 0.004


def test_a_larger_network_takes_more_of_everything():
    def net(width: int) -> Net:
        layers = {"first": linear(64, width), "second": linear(width, width), "head": linear(width, 3)}
        return Net(layers, lambda net, x: net.head(nnx.relu(net.second(nnx.relu(net.first(x))))))

    report = jp.compare_speed(net(1024), net(16), np.ones((4, 64), np.float32), batch_sizes=(64,), rounds=5)
    row = report.rows[0]
    assert report.macs == (64 * 1024 + 1024**2 + 3 * 1024, 64 * 16 + 16**2 + 3 * 16)
    assert report.parameters[0] > report.parameters[1] > 0
    assert row.speed_up > 3 and row.dense.peak_bytes > row.slim.peak_bytes
    assert row.dense.peak_bytes >= 4 * report.parameters[0]
    assert row.dense.quartiles[0] <= row.dense.seconds <= row.dense.quartiles[1]
    assert "jax" in report.versions and "cpu" in report.device


def test_tokens_are_measured_too():
    layers = {"embed": nnx.Embed(5, 4, rngs=nnx.Rngs(0)), "head": linear(4, 3)}
    net = Net(layers, lambda net, x: net.head(net.embed(x)))
    report = jp.compare_speed(net, net, jax.ShapeDtypeStruct((1, 6), "int32"), batch_sizes=[2], rounds=3)
    assert report.macs_ratio == 1 and report.rows[0].speed_up > 0


def test_functions_are_measured_in_turns():
    calls: list[str] = []

    def run(name: str) -> None:
        calls.append(name)
        time.sleep(0.006)

    times = alternating_seconds([lambda: run("a"), lambda: run("b")], 3)
    assert "".join(calls) == "aabb" + "ab" + "ba" + "ab"
    assert all(0.005 < seconds < 0.5 for each in times for seconds in each)


@pytest.mark.parametrize(
    ("analysis", "peak"),
    [
        (None, None),
        (SimpleNamespace(peak_memory_in_bytes=7, temp_size_in_bytes=3), 7),
        (
            SimpleNamespace(
                argument_size_in_bytes=5, output_size_in_bytes=2, temp_size_in_bytes=3, alias_size_in_bytes=1
            ),
            9,
        ),
    ],
)
def test_peak_memory_by_hand(analysis, peak):
    assert speed._peak_bytes(analysis) == peak


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_sizes": ()}, r"batch_sizes needs whole numbers >= 1, got \(\)"),
        ({"batch_sizes": (1, 0)}, "batch_sizes needs whole numbers >= 1"),
        ({"rounds": 2}, "rounds needs a whole number >= 3, .*got 2"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    net = Net({"head": linear(4, 3)}, lambda net, x: net.head(x))
    with pytest.raises(ValueError, match=message):
        jp.compare_speed(net, net, np.ones((1, 4)), **arguments)

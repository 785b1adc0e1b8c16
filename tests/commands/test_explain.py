"""`jaxprune list` and `jaxprune explain` show what there is, and point at what is wrong with a formula."""

from __future__ import annotations

import json

import numpy as np
import pytest

from jaxprune.cli import main
from jaxprune.language.library import library, own_seeds
from jaxprune.language.operators import OPERATORS
from jaxprune.language.vocabulary import OPERANDS
from jaxprune.scoring.metrics import metrics


def test_list_shows_everything_there_is(capsys):
    assert main(["list"]) == 0
    shown = capsys.readouterr().out
    for name in (*metrics, *own_seeds, *OPERANDS, *OPERATORS, "digits-deep", "quick", "adam_short"):
        assert name in shown
    assert all(str(f) in shown for f in library.values())
    lines = " ".join(shown.split())
    assert all(" ".join(metric.source.split()) in lines for metric in metrics.values())


def test_list_of_some_as_json(capsys):
    assert main(["list", "operands", "metrics", "--json"]) == 0
    lists = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in lists["operands"]] == list(OPERANDS)
    assert [row["name"] for row in lists["metrics"]] == list({**metrics, **own_seeds})
    formulas = {row["name"]: row["formula"] for row in lists["metrics"]}
    assert all(formulas[name] == str(f) for name, f in {**library, **own_seeds}.items())
    assert all(row["source"] for row in lists["metrics"])


def test_list_of_the_unknown_suggests(capsys):
    assert main(["list", "metrisc"]) == 2
    assert "got 'metrisc'. Did you mean 'metrics'?" in capsys.readouterr().err


def test_explain_tells_name_source_type_and_latex(capsys):
    assert main(["explain", "sqrt(sum(square(WI)))"]) == 0
    shown = capsys.readouterr().out
    assert all(part in shown for part in ("l2", "Soft Filter Pruning", "()", r"\sqrt{", "complexity  4"))


def test_explain_as_json_and_one_fact(capsys):
    assert main(["explain", "l1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["size"] == 3
    assert main(["explain", "l1", "--only", "formula"]) == 0
    assert capsys.readouterr().out == "sum(abs(WI))\n"


def test_explain_of_an_array_says_it_is_no_pruning_function(capsys):
    assert main(["explain", "mP - mX"]) == 0
    shown = capsys.readouterr()
    assert "(D)" in shown.out and "no pruning function yet: its value has the axes (D)" in shown.err


def test_code_from_the_shell_runs(capsys):
    assert main(["explain", "l1", "--code", "numpy"]) == 0
    scope: dict = {}
    exec(capsys.readouterr().out, scope)
    kernel = np.array([[1.0, -2.0], [3.0, 4.0]], np.float32)
    scores = scope["pruning_function"](np.eye(2, dtype=np.float32), np.array([0, 1]), kernel)
    assert scores.tolist() == [4.0, 6.0]


def test_tree_is_drawn(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    path = tmp_path / "new" / "tree.png"
    assert main(["explain", "sym_div", "--tree", str(path), "--only", "name"]) == 0
    assert path.read_bytes().startswith(b"\x89PNG") and f"wrote {path}" in capsys.readouterr().err


def test_tree_in_a_place_that_cannot_be_written(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    (tmp_path / "file").write_text("")
    assert main(["explain", "l1", "--tree", str(tmp_path / "file" / "tree.png")]) == 2
    assert "Cannot write to" in capsys.readouterr().err


@pytest.fixture
def data(tmp_path):
    """24 examples of 2 classes for `own_networks.SmallNet`."""
    images = np.random.default_rng(0).normal(size=(24, 5)).astype(np.float32)
    np.savez(tmp_path / "mine.npz", images=images, labels=np.arange(24) % 2)
    return str(tmp_path / "mine.npz")


@pytest.fixture
def explain_own(data):
    return lambda *given: main(["explain", *given, "--network", "own_networks:seeded", "--data", data])


def test_explain_on_a_network_tells_cost_and_likeness(explain_own, capsys):
    assert explain_own("2 * sum(abs(WI)) + 1") == 0
    shown = capsys.readouterr().out
    assert (
        "estimated cost on own_networks:seeded on" in shown
        and "rank correlations on own_networks:seeded" in shown
    )
    rows = {line.split()[0]: line.split()[1:] for line in shown.splitlines() if line.startswith("  ")}
    assert rows["first.kernel"][0] == "8"
    assert rows["l1"] == ["+1.00", "+1.00", "+1.00"], "an increasing function of l1 keeps its order"
    assert "bn_scale: missing operand: gamma in first.kernel" in shown
    assert {"fpgm", "mean_shift_outgoing", "random"} <= rows.keys()


def test_explain_on_a_network_as_json_and_figure(explain_own, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    path = tmp_path / "new" / "likeness.png"
    assert explain_own("l2", "--json", "--figure", str(path)) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["formula"] == "sqrt(sum(square(WI)))" and facts["status"] == "ok"
    assert facts["cost"][0] | {"flops": 0} == {
        "producer": "first.kernel", "channels": 8, "bytes_per_channel": 20, "flops": 0, "refusal": "",
    }  # fmt: skip
    correlations = facts["rank_correlations"]
    assert correlations["l2"] == pytest.approx({"first.kernel": 1.0, "mean": 1.0, "together": 1.0})
    assert abs(correlations["random"]["mean"]) < 1 and "random" in [*correlations][5:], (
        "the most alike come first"
    )
    assert "bn_scale" in facts["not_compared"]
    assert path.read_bytes().startswith(b"\x89PNG")


def test_explain_on_a_base_of_a_task(bases_dir, capsys):
    assert main(["explain", "l1", "--task", "cli_tasks:small", "--bases-dir", str(bases_dir)]) == 0
    assert "rank correlations on small, base 0" in capsys.readouterr().out


def test_a_formula_without_scores_still_has_a_cost(explain_own, tmp_path, capsys):
    assert explain_own("abs(gamma)") == 0
    shown = capsys.readouterr().out
    assert "first.kernel: operand gamma is missing" in shown
    assert "no rank correlations: missing operand, gamma in first.kernel" in shown
    assert explain_own("N + 1", "--figure", str(tmp_path / "none.png")) == 2
    assert "--figure needs a formula with scores on" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["l1", "--figure", "x.png"], "--figure needs a network to score, got none. Name one with --task or --network"),
        (["mX", "--network", "lenet5", "--data", "digits"], "a pruning function must be a scalar per channel, got mX"),
        (["l1", "--network", "lenet5"], "--network needs images to observe it on, got none. Name them with --data."),
        (["l1", "--data", "digits"], "--data needs --network, got none."),
    ],
)  # fmt: skip
def test_networks_that_explain_cannot_use_are_explained(arguments, message, capsys):
    assert main(["explain", *arguments]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("formula", "message"),
    [
        (
            "sum(abs(WI)",
            "(syntax error: '(' was never closed). Write it like var(P)/(var(Q) + 0.05).\n  sum(abs(WI)\n     ^",
        ),
        ("matmul(WI, mX) + 1", "matmul"),
        ("sum(abs(WJ))", "'WJ'"),
        ("sum(absolute(WI))", "'absolute'"),
        ("mean_activatoin", "Did you mean 'mean_activation'?"),
        ("hrank", "got 'hrank', a metric that is a function: Mean rank of the channel's feature maps"),
        ("+".join(["mean(X)"] * 600), "A formula has at most 4000 characters, got 4799."),
        ("+".join(["N"] * 1001), "1000 nodes"),
        ("abs(" * 70 + "N" + ")" * 70, "64"),
        ("__import__('os').system('true')", "^"),
        ("", "formula"),
    ],
)
def test_bad_formulas_are_explained(formula, message, capsys):
    assert main(["explain", formula]) == 2
    assert message in capsys.readouterr().err


def test_code_of_an_array_says_what_is_needed(capsys):
    assert main(["explain", "mX", "--code", "jax"]) == 2
    assert "code needs a pruning function of type (), got type (D)" in capsys.readouterr().err

"""`jaxprune list` and `jaxprune explain` show what there is, and point at what is wrong with a formula."""

from __future__ import annotations

import json

import numpy as np
import pytest

from jaxprune.cli import main
from jaxprune.language.operands import OPERANDS
from jaxprune.language.operators import OPERATORS
from jaxprune.language.published import library, own_seeds
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
    found = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in found["operands"]] == list(OPERANDS)
    assert [row["name"] for row in found["metrics"]] == list({**metrics, **own_seeds})
    formulas = {row["name"]: row["formula"] for row in found["metrics"]}
    assert all(formulas[name] == str(f) for name, f in {**library, **own_seeds}.items())
    assert all(row["source"] for row in found["metrics"])


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
    assert "needs to be a place that can be written to" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("formula", "message"),
    [
        ("sum(abs(WI)", "got a syntax error: '(' was never closed.\n  sum(abs(WI)\n     ^"),
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

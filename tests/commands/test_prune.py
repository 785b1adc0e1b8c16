"""`jaxprune prune` on a trained network: plans, costs and accuracies, and what cannot be."""

from __future__ import annotations

import json

import numpy as np
import pytest
from tiny_task import tiny_programs

from jaxprune.cli import main
from jaxprune.commands.budget_options import read_limits
from jaxprune.commands.prune import prune_base
from jaxprune.language.library import library
from jaxprune.pruning.budgets import budget_counts
from jaxprune.pruning.planning import Plan
from jaxprune.tasks.base_networks import BasePool
from jaxprune.tasks.task_programs import TaskPrograms


@pytest.fixture
def prune(bases_dir, tmp_path):
    """Runs `jaxprune prune` on a small task; it writes to the folder `out`."""

    def run(*arguments: str) -> int:
        shared = ["--task", "cli_tasks:small", "--bases-dir", str(bases_dir), "--out", str(tmp_path / "out")]
        return main(["prune", *shared, *arguments])

    return run


def test_pruning_by_a_metric_that_is_no_formula(prune, tmp_path, capsys):
    assert prune("--metric", "lamp", "--kept-fraction", "0.5") == 0
    assert capsys.readouterr().out.startswith("lamp  on ")
    assert json.loads((tmp_path / "out" / "result.json").read_text())["formula"] == "lamp"


def test_pruning_saves_plan_numbers_and_network(prune, tmp_path, capsys):
    assert prune("--metric", "l1", "--kept-fraction", "0.25") == 0
    shown = capsys.readouterr().out
    assert "2 of 8" in shown and "fine-tuned" in shown
    plan = Plan.load(tmp_path / "out" / "plan.json")
    facts = json.loads((tmp_path / "out" / "result.json").read_text())
    assert plan.kept_counts == facts["kept_counts"] == {"first.kernel": 2}
    assert (facts["macs"], facts["slim_macs"]) == (5 * 8 + 8 * 2, 5 * 2 + 2 * 2)
    assert (facts["parameters"], facts["slim_parameters"]) == (48 + 18, 12 + 6)
    assert facts["formula"] == "sum(abs(WI))" and 0 <= facts["finetuned_accuracy"] <= 100
    assert (tmp_path / "out" / "slim").is_dir()


@pytest.mark.parametrize(
    ("arguments", "count"),
    [
        ([], 4),
        (["--kept-counts", "3"], 3),
        (["--kept-counts", "first.kernel=5"], 5),
        (["--kept-fraction", "0.6", "--multiple-of", "2"], 6),
        (["--kept-fraction", "0.5", "--factor", "both"], 4),
    ],
)
def test_how_much_is_kept_can_be_said_in_several_ways(arguments, count, prune, tmp_path):
    assert prune(*arguments) == 0
    assert Plan.load(tmp_path / "out" / "plan.json").kept_counts == {"first.kernel": count}


def test_limits_of_groups_are_numbers_patterns_or_a_file(prune, tmp_path, capsys):
    (tmp_path / "floors.json").write_text('{"first.kernel": 7}')
    for limits, count in (("7", 7), ("first*=0.75", 6), (str(tmp_path / "floors.json"), 7)):
        assert prune("--kept-fraction", "0.9", "--max-kept", limits, "--overwrite") == 0
        err = capsys.readouterr().err
        assert "\nkept_fraction=0.9 is met with" in f"\n{err}" and "UserWarning" not in err
        assert Plan.load(tmp_path / "out" / "plan.json").kept_counts == {"first.kernel": count}


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ("many", "--min-kept needs a number of channels, a fraction, GROUP=N,... or FILE.json, got 'many'"),
        ("a=1,a=2", "--min-kept needs each group once, as in conv*=4,dense.kernel=0.5, got 'a=1,a=2'"),
        (
            "nowhere.json",
            "--min-kept needs a JSON file with a limit for each group, got nowhere.json: No such file",
        ),
        ("nope=3", "min_kept needs names or patterns of groups, first.kernel, got ['nope']"),
        ("0.9", "cannot be met: the smallest network that keeps what min_kept says has"),
    ],
)
def test_limits_that_make_no_sense_are_refused_before_training(limits, message, prune, capsys):
    assert prune("--kept-fraction", "0.5", "--min-kept", limits) == 2
    assert message in capsys.readouterr().err


def test_a_json_file_without_limits_is_refused(tmp_path):
    for text, reason in (("[]", "no object"), ("{", "not JSON")):
        (tmp_path / "list.json").write_text(text)
        with pytest.raises(ValueError, match=rf"needs a JSON file with a limit for each group, .*: {reason}"):
            read_limits("--max-kept", str(tmp_path / "list.json"))


def test_compensation_is_recorded(prune, tmp_path):
    facts = []
    for more in ([], ["--compensate", "--overwrite"]):
        assert prune("--kept-fraction", "0.25", *more) == 0
        facts.append(json.loads((tmp_path / "out" / "result.json").read_text()))
    assert [one["is_compensated"] for one in facts] == [False, True]
    assert facts[0]["kept_counts"] == facts[1]["kept_counts"]
    assert facts[0]["accuracy"] == facts[1]["accuracy"]


def test_a_recipe_that_compensates_does_so_in_prune_too(bases_dir, prune, monkeypatch, tmp_path):
    import cli_tasks

    small = cli_tasks.small()
    task = small.replace(recipe=small.recipes[0].replace(compensate=True))
    monkeypatch.setattr(cli_tasks, "small", lambda: task)
    assert prune() == 0
    assert json.loads((tmp_path / "out" / "result.json").read_text())["is_compensated"] is True


def test_the_same_prune_twice_is_the_same(bases_dir):
    import cli_tasks

    pool = BasePool(TaskPrograms(cli_tasks.small()), 0, "search", 1, folder=bases_dir)
    first, second = (prune_base(pool, 0, library["l2"], kept_fraction=0.5) for _ in range(2))
    assert first.facts == second.facts


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--base", "-1"], "--base needs a number from 0, got -1."),
        (
            ["--metric", "bn_scale"],
            "abs(gamma) needs operand gamma, which producer first.kernel does not have",
        ),
        (["--metric", "N/(NX - NX)"], "not finite in group first.kernel, channel 0"),
        (["--metric", "N + 1"], "constant in every group"),
        (["--kept-fraction", "0"], "kept_fraction must be in (0, 1], got 0.0"),
        (["--kept-counts", "0"], "first.kernel"),
        (["--kept-counts", "9"], "first.kernel"),
        (["--kept-counts", "3,4"], "--kept-counts needs 1 numbers, one each for first.kernel, got 2."),
        (["--kept-counts", "few"], "--kept-counts needs whole numbers as in 6,12,24 or first.kernel=6"),
        (
            ["--kept-counts", "3", "--kept-fraction", ".5"],
            "Give only one budget option, got --kept-fraction and --kept-counts.",
        ),
        (["--groups", "conv9*"], "groups needs names or patterns of groups, first.kernel, got"),
        (["--ignore", "conv9*"], "ignore needs names or patterns of groups, first.kernel, got"),
    ],
)
def test_what_cannot_be_pruned_is_explained(arguments, message, prune, tmp_path, capsys):
    assert prune(*arguments) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ["--metric", "bn_scale"],
        ["--kept-counts", "0"],
        ["--kept-counts", "9"],
        ["--kept-counts", "third.kernel=2"],
        ["--kept-counts", "few"],
        ["--kept-counts", "2", "--ignore", "first.kernel"],
        ["--ignore", "conv9*"],
        ["--ignore", "*", "--kept-fraction", "0.5"],
        ["--macs-fraction", "0.0001"],
        ["--params-fraction", "0.0001", "--scope", "global"],
    ],
)
def test_what_the_structure_shows_is_said_before_training(arguments, prune, monkeypatch, capsys):
    monkeypatch.setattr(BasePool, "bases", property(lambda pool: pytest.fail("trained")))
    assert prune(*arguments) == 2
    assert "jaxprune prune: error: " in capsys.readouterr().err


def test_what_cannot_be_compensated_is_said_before_training(prune, monkeypatch, capsys):
    import cli_tasks
    from flax import nnx

    class Normalised(cli_tasks.SmallNet):
        def __call__(self, x):
            x = nnx.relu(self.first(x))
            return self.second(x / x.sum(-1, keepdims=True))

    task = cli_tasks.small().replace(model=Normalised)
    monkeypatch.setattr(cli_tasks, "small", lambda: task)
    monkeypatch.setattr(BasePool, "bases", property(lambda pool: pytest.fail("trained")))
    assert prune("--compensate") == 2
    assert "group first.kernel is read by a value of all channels together" in capsys.readouterr().err


@pytest.mark.parametrize("scope", ["group", "global"])
@pytest.mark.parametrize("multiple_of", [1, 3, 4])
def test_both_scopes_end_at_the_same_smallest_network(scope, multiple_of):
    structure = tiny_programs().structure
    scores = {name: np.arange(width, dtype=float) for name, width in structure.widths.items()}
    smallest = {name: min(width, multiple_of) for name, width in structure.widths.items()}
    share = structure.count_macs(smallest) / structure.count_macs()
    options = {"scores": scores, "scope": scope, "multiple_of": multiple_of}
    assert budget_counts(structure, macs_fraction=share * (1 + 1e-9), **options) == smallest
    with pytest.raises(ValueError, match="cannot be met"):
        budget_counts(structure, macs_fraction=share * 0.999, **options)


def test_an_out_that_cannot_be_written_is_named(prune, tmp_path, capsys):
    (tmp_path / "out").write_text("")
    assert prune() == 2
    assert "Cannot write to" in capsys.readouterr().err

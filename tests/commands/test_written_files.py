"""Commands replace nothing unasked, check before the work what they will write, and write before they print."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import numpy as np
import pytest
from cli_tasks import small
from toy_problem import ToyProblem

from jaxprune.cli import main
from jaxprune.commands.output import claim
from jaxprune.report.writing import render_report, write_report
from jaxprune.search.search import evolve_problem
from jaxprune.search.settings import EvolveConfig
from jaxprune.tasks.tasks import Task
from jaxprune.training.checkpoint import save_network

TASK = ["--task", "cli_tasks:small"]
FEW = "--bases 1 --draws 0".split()
WRITERS = {
    "prune": (["prune", *TASK], ["plan.json", "result.json", "slim"]),
    "compare": (
        ["compare", *TASK, "--metrics", "l1", *FEW, "--no-scratch"],
        ["comparison.csv", "comparison.md", "ranks.png"],
    ),
    "calibrate": (
        ["calibrate", *TASK, *FEW, *"--repeats 1 --oracle 0 --plans 0".split()],
        ["calibration-small.json", "calibration-small.md", "calibration-small.png"],
    ),
}
"""Command -> a cheap command line, and what it writes."""
CASES = [(command, name) for command, (_, names) in WRITERS.items() for name in names]


@pytest.fixture
def run(bases_dir, tmp_path):
    """Runs a command of `WRITERS` with `--out` the folder `out`."""

    def run(command: str, *more: str) -> int:
        return main(
            [*WRITERS[command][0], "--bases-dir", str(bases_dir), "--out", str(tmp_path / "out"), *more]
        )

    return run


@pytest.mark.parametrize(("command", "name"), CASES)
@pytest.mark.parametrize("kind", ["file", "folder", "link"])
def test_what_is_there_is_never_replaced_unasked(command, name, kind, run, tmp_path, monkeypatch, capsys):
    path = tmp_path / "out" / name
    path.parent.mkdir()
    if kind == "file":
        path.write_text("thesis")
    elif kind == "folder":
        path.mkdir()
        (path / "thesis.tex").write_text("thesis")
    else:
        path.symlink_to(tmp_path / "elsewhere")
    monkeypatch.setattr(
        "jaxprune.tasks.base_networks.BasePool.bases", property(lambda pool: pytest.fail("trained"))
    )
    assert run(command) == 2
    told = capsys.readouterr()
    assert str(path) in told.err and "Choose another path" in told.err and not told.out
    assert [child.name for child in path.parent.iterdir()] == [name]
    assert {"file": path.is_file, "folder": (path / "thesis.tex").is_file, "link": path.is_symlink}[kind]()


@pytest.mark.parametrize("command", ["prune", "compare"])
def test_results_of_an_earlier_call_are_replaced_if_asked(command, run, tmp_path, capsys):
    assert run(command) == 0
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    assert run(command) == 2
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()} == before
    assert run(command, "--overwrite") == 0
    after = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    assert after.keys() == before.keys() and not [name for name in after if after[name] == before[name]]


def spoil_by_a_thesis(slim):
    (slim / "thesis.tex").write_text("thesis")


def spoil_by_other_content(slim):
    import orbax.checkpoint as ocp

    with ocp.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(slim, {"my": {"network": np.ones(3)}}, force=True)


def spoil_by_damage(slim):
    (slim / "_METADATA").write_text("[]")


@pytest.mark.parametrize("spoil", [spoil_by_a_thesis, spoil_by_other_content, spoil_by_damage])
def test_a_folder_that_prune_did_not_write_is_kept_even_if_asked(spoil, run, tmp_path, capsys):
    slim = tmp_path / "out" / "slim"
    save_network(slim, {("dense", "kernel"): np.ones((2, 3), np.float32)}, {"accuracy": 1.0})
    spoil(slim)
    content = {path: path.read_bytes() for path in slim.rglob("*") if path.is_file()}
    assert run("prune", "--overwrite") == 2
    assert (
        f"--overwrite replaces only what prune has written, and {slim} is no network"
        in capsys.readouterr().err
    )
    assert content == {path: path.read_bytes() for path in slim.rglob("*") if path.is_file()}


@pytest.mark.parametrize("command", WRITERS)
def test_results_are_written_before_they_are_printed(command, run, tmp_path, monkeypatch, capsys):
    def refused(text: str = "") -> None:
        raise BrokenPipeError

    module = "comparison_options" if command == "compare" else command
    monkeypatch.setattr(f"jaxprune.commands.{module}.say", refused)
    monkeypatch.setattr("os.dup2", lambda *descriptors: None)
    monkeypatch.setattr(sys.stdout, "fileno", lambda: 1)
    run(command)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(WRITERS[command][1])


@pytest.mark.parametrize("command", WRITERS)
def test_what_was_measured_is_printed_if_it_cannot_be_written(command, run, monkeypatch, capsys):
    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("jaxprune.files.os.replace", full)
    assert run(command) == 2
    shown = capsys.readouterr()
    assert "validation accuracy" in shown.out
    assert "No space left on device. Free some space, or choose a path on another disk." in shown.err


def test_tasks_whose_names_have_dots_get_files_of_their_own(tmp_path, monkeypatch):
    module = type(sys)("dotted_tasks")
    module.first, module.second = small().replace(name="net.v1"), small().replace(name="net.v2")
    monkeypatch.setitem(sys.modules, "dotted_tasks", module)

    def calibrate(task: Task, **settings: object) -> SimpleNamespace:
        return SimpleNamespace(to_markdown=lambda: task.name, to_json=lambda: task.name)

    monkeypatch.setattr("jaxprune.comparison.calibration.calibrate", calibrate)
    monkeypatch.setattr("jaxprune.comparison.calibration.task_rank_correlations", lambda calibrations: {})
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    names = ["--task", "dotted_tasks:first", "--task", "dotted_tasks:second"]
    assert main(["calibrate", *names, "--out", str(tmp_path)]) == 0
    assert {path.name: path.read_text() for path in tmp_path.glob("*.md")} == {
        "calibration-net.v1.md": "net.v1\n",
        "calibration-net.v2.md": "net.v2\n",
    }


def test_results_that_differ_in_capitals_only_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"each result needs a file of its own, got .*a\.json and .*A\.json"):
        claim([tmp_path / "a.json", tmp_path / "A.json"], overwrite=True)
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(ValueError, match="each result needs a file of its own"):
        claim([tmp_path / "a.json", tmp_path / "link" / "a.json"], overwrite=True)


@pytest.mark.parametrize("name", ["report.md", "figures", "final.json", "archive.json", "hall_of_fame.csv"])
def test_a_run_does_not_start_over_files_of_others(name, tmp_path, capsys):
    (tmp_path / name).write_text("thesis")
    assert main(["evolve", "--run-dir", str(tmp_path)]) == 2
    assert f"a run replaces {tmp_path / name}, and {tmp_path} holds no run" in capsys.readouterr().err
    with pytest.raises(ValueError, match=f"a run replaces {tmp_path / name}"):
        evolve_problem(ToyProblem(), EvolveConfig(generations=0, fitness="finetune"), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [name] and (tmp_path / name).read_text() == "thesis"


def test_a_report_replaces_only_a_report(tmp_path, capsys):
    (tmp_path / "report.md").write_text("thesis")
    assert main(["report", str(tmp_path)]) == 2
    assert "a report replaces only what jaxprune wrote" in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"report\.md is no report\. Rename it"):
        write_report(tmp_path, None, None)
    (tmp_path / "report.md").unlink()
    (tmp_path / "report.md").mkdir()
    with pytest.raises(ValueError, match="is no report"):
        render_report(tmp_path)


def test_scores_are_not_replaced_unasked(tmp_path, capsys):
    path = tmp_path / "scores.csv"
    path.write_text("thesis")
    line = [
        "score",
        "l1",
        "--network",
        "plain_conv_net",
        "--data",
        "digits",
        "--num-images",
        "40",
        "--output",
        str(path),
    ]
    assert main(line) == 2 and path.read_text() == "thesis"
    assert main([*line, "--overwrite"]) == 0 and path.read_text().startswith("group,channel,l1\n")


@pytest.mark.parametrize("option", ["--overwrite"])
@pytest.mark.parametrize("command", ["prune", "compare", "calibrate", "score", "explain"])
def test_every_command_that_writes_explains_overwrite(command, option, capsys):
    with pytest.raises(SystemExit):
        main([command, "--help"])
    assert option in capsys.readouterr().out


def test_a_byte_order_mark_is_no_setting(tmp_path):
    from jaxprune.commands.score import read_formulas
    from jaxprune.config import read_config

    for name, text in (("run.toml", "population = 8\n"), ("run.json", '{"population": 8}')):
        (tmp_path / name).write_text(text, encoding="utf-8-sig")
        assert read_config(tmp_path / name) == {"population": 8}
    (tmp_path / "formulas.txt").write_text("l1\n", encoding="utf-8-sig")
    assert len(read_formulas([], tmp_path / "formulas.txt")) == 1

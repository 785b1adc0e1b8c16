"""The command line: every command explains itself, errors are one clear line, and the exit status tells."""

from __future__ import annotations

import io
import os
import subprocess
import sys

import pytest

from jaxprune import cli
from jaxprune._version import __version__
from jaxprune.datasets.guarded_split import AlreadyOpenedError
from jaxprune.files import RunDirectoryError
from jaxprune.search.problem import InfrastructureError


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_every_command_has_help(command, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main([command, "--help"])
    shown = capsys.readouterr().out
    assert stop.value.code == 0 and f"jaxprune {command}" in shown and "--debug" in shown


def test_every_setting_of_a_search_is_a_flag_with_its_default(capsys):
    from jaxprune.config import TASK_OPTIONS
    from jaxprune.search.settings import setting_help

    with pytest.raises(SystemExit):
        cli.main(["evolve", "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    flags = [f"--{name.replace('_', '-')}" for name in (*setting_help(), *TASK_OPTIONS)]
    assert not [flag for flag in flags if flag not in shown]
    assert "(default: 80)" in shown and "(default: landscape)" in shown and "--time TIME" in shown


def test_without_a_command_there_is_help(capsys):
    assert cli.main([]) == 0
    assert "evolve pruning functions" in capsys.readouterr().out


def test_the_version_is_told(capsys):
    with pytest.raises(SystemExit):
        cli.main(["--version"])
    assert capsys.readouterr().out == f"jaxprune {__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["evlove"], "invalid choice: 'evlove'.* Did you mean 'evolve'?"),
        (
            ["evolve", "--generatoins", "3"],
            "unrecognized arguments: --generatoins 3. Did you mean '--generations'?",
        ),
        (["compare", "--metric", "l1"], "Did you mean '--metrics'?"),
        (["evolve", "--population", "many"], "argument --population: invalid int value: 'many'"),
        (["evolve", "--time", "soon"], 'a time needs to look like "90s", "20m" or "1h30m"'),
        (["evolve", "--evaluations", "few"], "needs a whole number, or \"none\", got 'few'"),
        (["evolve", "--fitness", "best"], "argument --fitness: invalid choice: 'best'"),
    ],
)
def test_wrong_options_are_named_with_the_nearest(arguments, message, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    shown = capsys.readouterr().err
    assert stop.value.code == 2
    assert all(part in shown for part in message.split(".* ")), shown
    assert "--help" in shown


def test_an_error_is_one_line_and_status_2(capsys):
    assert cli.main(["explain", "nosuch"]) == 2
    shown = capsys.readouterr()
    assert (
        shown.err.startswith("jaxprune explain: error: a function needs to be a formula such as")
        and not shown.out
    )
    assert "Traceback" not in shown.err


def test_debug_shows_the_traceback():
    with pytest.raises(ValueError, match="a function needs to be a formula such as"):
        cli.main(["explain", "nosuch", "--debug"])


@pytest.mark.parametrize("kind", [RunDirectoryError, InfrastructureError, AlreadyOpenedError, ImportError])
def test_errors_that_explain_themselves_need_no_traceback(kind, monkeypatch, capsys):
    def refused(f: object) -> None:
        raise kind("needs this, got that. Do so.")

    monkeypatch.setattr("jaxprune.commands.explain.explain", refused)
    assert cli.main(["explain", "l1"]) == 2
    assert capsys.readouterr().err == "jaxprune explain: error: needs this, got that. Do so.\n"


def test_a_mistake_of_ours_is_not_hidden(monkeypatch):
    monkeypatch.setattr("jaxprune.commands.explain.explain", lambda f: {}["missing"])
    with pytest.raises(KeyError):
        cli.main(["explain", "l1"])


def test_ctrl_c_is_status_130(monkeypatch, capsys):
    def interrupted(f: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("jaxprune.commands.explain.explain", interrupted)
    assert cli.main(["explain", "l1"]) == 130
    assert capsys.readouterr().err == "stopped.\n"


def test_ctrl_c_is_status_130_also_where_nobody_reads_errors(monkeypatch):
    def interrupted(f: object) -> None:
        raise KeyboardInterrupt

    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr("jaxprune.commands.explain.explain", interrupted)
    monkeypatch.setattr("sys.stderr", Gone())
    assert cli.main(["explain", "l1"]) == 130


def test_a_file_that_cannot_be_opened_is_named(monkeypatch, capsys):
    def refused(f: object) -> None:
        raise PermissionError(13, "Permission denied", "somewhere")

    monkeypatch.setattr("jaxprune.commands.explain.explain", refused)
    assert cli.main(["explain", "l1"]) == 2
    assert "Cannot read or write somewhere: Permission denied." in capsys.readouterr().err


def test_help_loads_neither_jax_nor_the_commands(root):
    probe = "import sys; from jaxprune import cli; cli.make_parser(['--help']); print('jax' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, cwd=root, check=True)
    assert done.stdout == "False\n"


def test_a_reader_that_has_seen_enough_is_no_error(root):
    shell = f"{sys.executable} -m jaxprune.cli list | head -n 1; exit ${{PIPESTATUS[0]}}"
    environment = {**os.environ, "PYTHONPATH": str(root)}
    done = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout == "tasks:\n" and "Traceback" not in done.stderr

"""The README keeps its word: its snippets run, its commands exist, its table names what is public."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from jaxprune.language.operators import OPERATORS

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
DOCS = sorted((ROOT / "docs").glob("*.md"))
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SNIPPETS = [
    (README[: match.start()].count("\n") + 1, match[2])
    for match in BLOCK.finditer(README)
    if match[1] == "python"
]
COMMANDS = "\n".join(match[2] for match in BLOCK.finditer(README) if match[1] == "sh")


@pytest.mark.parametrize(("line", "code"), SNIPPETS, ids=[f"line_{line}" for line, _ in SNIPPETS])
def test_snippet_runs_as_printed(line, code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # Blank lines in front make a traceback name the README's own lines.
    program = compile("\n" * line + code, str(ROOT / "README.md"), "exec")
    exec(program, {"__name__": "__main__"})


@pytest.mark.parametrize("page", DOCS, ids=[page.stem for page in DOCS])
def test_snippets_of_the_docs_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    known = set(OPERATORS)
    save_modules(page, tmp_path, monkeypatch)
    try:
        for match in BLOCK.finditer(page.read_text()):
            if match[1] == "python":
                exec(compile(match[2], str(page), "exec"), {"__name__": "__main__"})
    finally:
        for name in set(OPERATORS) - known:  # what a page registers is forgotten after it
            del OPERATORS[name]


def save_modules(page, folder, monkeypatch):
    """Writes the blocks of a page that are modules, which later ones import."""
    monkeypatch.syspath_prepend(str(folder))
    for match in BLOCK.finditer(page.read_text()):
        if match[1] == "python" and (named := re.match(r"# module (\w+)\n", match[2])):
            (folder / f"{named[1]}.py").write_text(match[2])
            monkeypatch.delitem(sys.modules, named[1], raising=False)


def test_the_command_of_the_tutorial_writes_what_it_says(tmp_path, monkeypatch, capsys):
    from jaxprune.cli import main

    page = ROOT / "docs" / "tutorial_convnet.md"
    monkeypatch.chdir(tmp_path)
    save_modules(page, tmp_path, monkeypatch)
    (line,) = (each for each in page.read_text().splitlines() if each.startswith("jaxprune prune "))
    options = (
        line.replace("--base-epochs 6", "--base-epochs 1").replace("--seeds 2", "--epochs 1").split()[1:]
    )
    assert main(options) == 0
    shown = capsys.readouterr()
    assert "trained first: 1 epochs of adam_base_digits" in shown.err and "stem.kernel" in shown.out
    told = re.findall(r"`([\w./]+)`", page.read_text().split("| file |")[1].split("\n\n")[0])
    out = tmp_path / options[options.index("--out") + 1]
    told = [name for name in told if name not in ("jaxprune.load", "training/")]
    assert len(told) == 10 and not [name for name in told if not (out / name).exists()]


def test_a_runnable_snippet_stands_by_line_40():
    assert SNIPPETS and SNIPPETS[0][0] + SNIPPETS[0][1].count("\n") <= 40


def test_every_make_target_of_the_readme_exists():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    used = set(re.findall(r"^make ([a-z-]+)", COMMANDS, re.MULTILINE))
    assert {"evolve", "test"} <= used <= targets


def test_every_subcommand_of_the_readme_exists(capsys):
    from jaxprune.cli import main

    for command in sorted(set(re.findall(r"^jaxprune ([a-z]+)", COMMANDS, re.MULTILINE))):
        with pytest.raises(SystemExit) as stop:
            main([command, "--help"])
        assert stop.value.code == 0, command
        assert command in capsys.readouterr().out


def test_every_option_of_the_readme_exists(capsys):
    from jaxprune.cli import main

    lines = [line.partition("#")[0] for line in COMMANDS.splitlines() if line.startswith("jaxprune ")]
    told = [(line.split()[1], flag) for line in lines for flag in re.findall(r"--[a-z-]+", line)]
    assert ("score", "--network") in told
    for command, flag in told:
        with pytest.raises(SystemExit):
            main([command, "--help"])
        assert re.search(rf"{flag}\b", capsys.readouterr().out), f"{command} {flag}"


def test_the_table_of_names_is_what_the_package_exports():
    import jaxprune

    table = README.split("## Public names")[1].split("\n## ")[0]
    first_cells = re.findall(r"^\| (`.*?) \|", table, re.MULTILINE)
    told = {name for cell in first_cells for name in re.findall(r"`(\w+)`", cell)}
    assert told == set(jaxprune.__all__) - {"__version__"}


def test_every_public_name_is_documented():
    import jaxprune

    values = {name: getattr(jaxprune, name) for name in jaxprune.__all__}
    missing = [
        name for name, value in values.items() if callable(value) and not (value.__doc__ or "").strip()
    ]
    assert not missing


def test_linked_files_exist():
    links = re.findall(r"\]\(([^)#:]+)\)", README)
    assert links and not [link for link in links if not (ROOT / link).exists()]

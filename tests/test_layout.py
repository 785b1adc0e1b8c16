"""The package keeps the layout of its design: imports go down only, modules stay small, names stay apart."""

from __future__ import annotations

import ast
import re
import tomllib
from collections import Counter
from pathlib import Path

import pytest

import jaxprune

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "jaxprune"
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}

# Lowest first; what is not named here (cli, config) lies on top.
FOLDERS = (
    "_version types keys files text patterns interrupts accelerators hosts language nets structure observation "
    "scoring pruning datasets training deploy tasks search comparison figures report config commands cli"
).split()
MAX_LINES = 450
MAX_FUNCTION_LINES = 60
LAZY = {
    "array_record",
    "cv2",
    "grain",
    "matplotlib",
    "pandas",
    "PIL",
    "safetensors",
    "simplejpeg",
    "sympy",
    "tensorflow",
    "tensorflow_datasets",
    "torch",
}


def level(module: str) -> int:
    """How high the module's folder lies; the package itself, whose names are loaded when used, lies on top."""
    return FOLDERS.index(module.split(".")[1]) if "." in module else len(FOLDERS)


def imported(node: ast.Import | ast.ImportFrom) -> list[str]:
    """The modules that an import statement names; `from jaxprune import types` names jaxprune.types."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    assert node.level == 0 and node.module, "imports inside the package are absolute"
    names = [f"{node.module}.{alias.name}" for alias in node.names]
    return [name if name in MODULES else node.module for name in names]


def imports(module: str) -> list[tuple[int, str]]:
    """(line, module) of every import, those inside functions and for type checking too."""
    tree = ast.parse(MODULES[module].read_text())
    nodes = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    return [(node.lineno, name) for node in nodes for name in imported(node)]


def imports_when_loaded(module: str) -> set[str]:
    """What is imported as soon as `module` is: nothing under a function or `if TYPE_CHECKING`."""

    def walk(body: list[ast.stmt]) -> set[str]:
        found: set[str] = set()
        for node in body:
            if isinstance(node, ast.Import | ast.ImportFrom):
                found.update(imported(node))
            elif isinstance(node, ast.If) and "TYPE_CHECKING" not in ast.unparse(node.test):
                found |= walk(node.body) | walk(node.orelse)
            elif isinstance(node, ast.Try | ast.With | ast.ClassDef):
                found |= walk(node.body)
        return found

    return walk(ast.parse(MODULES[module].read_text()).body)


def for_type_checking(module: str) -> set[str]:
    """What is imported under `if TYPE_CHECKING`."""
    return {
        name
        for node in ast.walk(ast.parse(MODULES[module].read_text()))
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
        if isinstance(inner, ast.Import | ast.ImportFrom)
        for name in imported(inner)
    }


@pytest.mark.parametrize("module", [name for name in MODULES if name != "jaxprune"])
def test_imports_go_down_only(module):
    wrong = [
        f"{MODULES[module].relative_to(ROOT)}:{line} imports {name}"
        for line, name in imports(module)
        if name.split(".")[0] == "jaxprune" and (level(name) > level(module))
    ]
    assert not wrong, "\n".join(wrong)


PRINTS_ITSELF = {
    "jaxprune.language.expression": {"jaxprune.language.printing", "jaxprune.language.codegen"},
}
"""An expression shows itself as text, LaTeX and code; what writes these reads expressions."""

STARTS_FAST = ("jaxprune.cli", "jaxprune.config", "jaxprune.commands.")
"""Modules that import what a command needs when it runs, so that `--help` and errors come at once."""


def test_no_modules_import_each_other_in_a_circle():
    """Imports inside functions count too."""
    graph = {
        name: {found for _, found in imports(name) if found in MODULES} - PRINTS_ITSELF.get(name, set())
        for name in MODULES
    }
    while free := [name for name, needs in graph.items() if not needs & graph.keys()]:
        for name in free:
            del graph[name]
    assert not graph, f"import circle among {sorted(graph)}"


@pytest.mark.parametrize("module", MODULES)
def test_modules_of_the_package_are_imported_at_the_top(module):
    """Anywhere else needs a reason: the time of starting, or an expression that prints itself."""
    if module.startswith(STARTS_FAST):
        return
    late = {found for _, found in imports(module) if found in MODULES} - imports_when_loaded(module)
    late -= PRINTS_ITSELF.get(module, set()) | for_type_checking(module)
    assert not late, f"{module} imports {sorted(late)} inside a function; import them at the top"


@pytest.mark.parametrize("module", MODULES)
def test_heavy_optional_libraries_are_imported_where_they_are_used(module):
    heavy = {name for name in imports_when_loaded(module) if name.split(".")[0] in LAZY}
    assert not heavy, f"{module} imports {sorted(heavy)} when it is loaded; import them inside the function"


@pytest.mark.parametrize("module", MODULES)
def test_modules_hold_one_idea(module):
    lines = len(MODULES[module].read_text().splitlines())
    assert lines <= MAX_LINES, f"{module} has {lines} lines: at {MAX_LINES} it has two ideas, split it"


@pytest.mark.parametrize("module", MODULES)
def test_functions_have_few_lines(module):
    """Their docstrings apart: the public functions with many arguments have long ones."""
    long = []
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.FunctionDef):
            docstring = node.body[0] if ast.get_docstring(node) else None
            num_documented = docstring.end_lineno - docstring.lineno + 1 if docstring else 0
            num_lines = node.end_lineno - node.lineno + 1 - num_documented
            long += [f"{node.name} has {num_lines} lines"] if num_lines > MAX_FUNCTION_LINES else []
    assert not long, f"{module}: {', '.join(long)}; name the steps"


def test_folders_are_two_levels_deep():
    deep = [str(path) for path in MODULES.values() if len(path.relative_to(PACKAGE).parts) > 2]
    assert not deep, f"folders inside folders: {deep}"


def test_no_public_name_shares_its_name_with_a_module_of_the_package():
    """`jaxprune.compare` cannot be the function and the module."""
    children = {name.split(".")[1] for name in MODULES if "." in name}
    assert not children & set(jaxprune.__all__)


def test_no_two_modules_have_the_same_name():
    names = Counter(path.name for path in MODULES.values() if path.name != "__init__.py")
    assert not [name for name, count in names.items() if count > 1]


def test_nothing_in_the_package_imports_experiments_benchmarks_or_tests():
    wrong = [
        f"{module}:{line} imports {name}"
        for module in MODULES
        for line, name in imports(module)
        if name.split(".")[0] in {"experiments", "benchmarks", "tests", "conftest"}
    ]
    assert not wrong, "\n".join(wrong)


def test_no_module_pickles_or_evaluates_text():
    wrong = []
    for module, path in MODULES.items():
        wrong += [
            f"{module} imports {name}" for _, name in imports(module) if name in {"pickle", "dill", "shelve"}
        ]
        for node in ast.walk(ast.parse(path.read_text())):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Name)
                and node.func.id in {"eval", "exec"}
            ):
                wrong.append(f"{module}:{node.lineno} calls {node.func.id}")
    assert not wrong, "\n".join(wrong)


def test_test_files_have_unique_names():
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert sorted(names) == sorted(set(names)), "pytest needs unique base names"


ARCHITECTURE = ROOT / "docs" / "architecture.md"
PAGES = [*sorted((ROOT / "docs").glob("*.md")), ROOT / "CONTRIBUTING.md"]


def test_the_architecture_page_names_every_folder_and_top_level_module():
    folders = {path.name for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"}
    names = [f"{name}/" for name in folders] + [path.name for path in PACKAGE.glob("*.py")]
    words = set(re.findall(r"[\w./]+", ARCHITECTURE.read_text()))
    missing = sorted(name for name in names if name not in words)
    assert not missing, f"{ARCHITECTURE.name} does not name {missing}"


def test_the_drawing_on_the_architecture_page_is_in_import_order():
    drawing = ARCHITECTURE.read_text().split("```")[1]
    drawn = re.findall(r"\b(\w+)(?:/|\.py)(?= )", drawing)
    present = [name for name in FOLDERS if (PACKAGE / name).is_dir() or (PACKAGE / f"{name}.py").is_file()]
    assert drawn == [*present, "__init__"]


@pytest.mark.parametrize("page", PAGES, ids=[page.stem for page in PAGES])
def test_every_file_of_code_that_a_page_names_exists(page):
    """`folder/file.py` counts from the root or from the package; a bare `file.py` may be anywhere in either."""
    folders = [ROOT / name for name in ("benchmarks", "experiments", "jaxprune", "tests")]
    bare = {path.name for folder in folders for path in folder.rglob("*.py")}
    missing = [
        name
        for name in re.findall(r"[\w./-]*\w\.py\b", page.read_text())
        if not ((PACKAGE / name).is_file() or (ROOT / name).is_file() if "/" in name else name in bare)
    ]
    assert not missing, f"{page.name} names files that do not exist: {missing}"


def test_version_is_stated_once_and_told_everywhere():
    from jaxprune._version import __version__

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert "version" in project["dynamic"]
    assert re.search(
        rf"^version: {re.escape(__version__)}$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE
    )
    assert re.search(rf"^## \[{re.escape(__version__)}\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)


def test_every_pin_lies_in_the_stated_range():
    from packaging.requirements import Requirement

    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = dict(line.split(" ;")[0].split("==") for line in lines if line and line[0] != "#")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    stated = project["dependencies"] + [
        text for name in ("report", "dev") for text in project["optional-dependencies"][name]
    ]
    for requirement in map(Requirement, stated):
        if requirement.name != "jaxprune":
            assert requirement.specifier.contains(pins[requirement.name]), str(requirement)

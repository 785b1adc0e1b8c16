"""`import jaxprune as jp` gives every public name when it is used, the same that type checkers see."""

from __future__ import annotations

import ast
import subprocess
import sys

import pytest

import jaxprune

NAMES = [name for name in jaxprune.__all__ if name != "__version__"]


@pytest.mark.parametrize("name", NAMES)
def test_every_public_name_is_there_under_its_own_name(name):
    value = getattr(jaxprune, name)
    assert getattr(value, "__name__", name) == name


def test_there_are_no_more_names_than_a_user_can_learn():
    assert 20 <= len(NAMES) <= 65


def test_every_public_name_is_exported_to_type_checkers(root):
    """In a stub, `import a as a` exports; without `as` a type checker would hide the name."""
    tree = ast.parse((root / "jaxprune" / "__init__.pyi").read_text())
    aliases = [alias for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names]
    assert all(alias.asname == alias.name for alias in aliases)
    assert sorted(alias.name for alias in aliases) == jaxprune.__all__


def test_dir_lists_names_that_are_not_loaded_yet():
    assert set(jaxprune.__all__) <= set(dir(jaxprune))


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(
        AttributeError, match=r"module 'jaxprune' has no attribute 'prunes'; see jaxprune.__all__"
    ):
        _ = jaxprune.prunes


def test_all_names_can_be_imported_at_once(root):
    probe = "from jaxprune import *; print(callable(parse), callable(write_report), len(library) > 10)"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, cwd=root, check=True)
    assert done.stdout == "True True True\n"

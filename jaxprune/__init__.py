"""Evolve pruning functions and use them to make Flax networks smaller.

Every public name is here, `import jaxprune as jp`; its module is loaded when the name is first used, so that
importing the package costs nothing and starts no device work.

    jp.parse("sum(abs(WI))")                       formulas
    jp.observe, jp.score, jp.plan, jp.slim         from a network to a smaller one
    jp.trace_structure                             what of a network can go, what cannot, and why
    jp.trace_params, jp.slim_params                networks of Linen, Equinox and raw JAX
    jp.Task, jp.evolve, jp.compare, jp.calibrate   from tasks to formulas, and how good they are
"""

from __future__ import annotations

import ast
import importlib
from pathlib import Path

_STUB = ast.parse(Path(__file__).with_suffix(".pyi").read_text())
_HOME = {
    alias.name: node.module or ""
    for node in _STUB.body
    if isinstance(node, ast.ImportFrom)
    for alias in node.names
}
"""Public name -> its module, from `__init__.pyi`, where type checkers and editors read the same."""

__all__ = sorted(_HOME)


def __getattr__(name: str) -> object:
    """Returns the public name from its module, which is loaded now.

    Raises:
      AttributeError: if there is no such name.
    """
    if name not in _HOME:
        raise AttributeError(f"module 'jaxprune' has no attribute {name!r}; see jaxprune.__all__.")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value  # from now on it is found without this function
    return value


def __dir__() -> list[str]:
    """Lists the public names, also those that are not loaded yet."""
    return sorted({*globals(), *__all__})

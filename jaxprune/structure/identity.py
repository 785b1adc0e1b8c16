"""Says when two networks are the same: by what they store and by the code that they run.

A network may store anything: a list, a plain dataclass, an object of a class of its own, a function. Such values have
no hash, or one that does not change when their content does. So they are taken apart into what they hold. Functions and
classes of the user count by their code and by the globals that it names, because a notebook may replace a function that
a class calls while the class stays. Code of installed libraries does not change, and counts by the object.
"""

from __future__ import annotations

import dataclasses
import dis
import functools
import os
import sys
import sysconfig
from collections.abc import Hashable, Iterator, Mapping, Sequence
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import jax
import numpy as np

from jaxprune.structure.model_state import array_content

_NUMBERS = frozenset({bool, int, float, complex})
_ATOMS = _NUMBERS | {type(None), str, bytes, type(Ellipsis), CodeType}
_LIBRARIES = (
    *{sysconfig.get_path(name) + os.sep for name in ("stdlib", "platstdlib", "purelib", "platlib")},
    os.path.dirname(os.path.dirname(__file__)) + os.sep,
    "<frozen",
)
"""Where code lies that stays as it is."""
_LARGEST_ARRAY = 1 << 20
"""Arrays of more bytes count by the object, not by their content."""
_HOLDS = ("__func__", "fget", "func")
"""Where a static method, a property and a cached property hold their function."""
_NOT_RUN = ("__init__", "_abc_impl")
"""What of a class has nothing to do with how its objects run."""


class _Same:
    """Equal for one object only, and keeps it, so that no other object gets its address."""

    def __init__(self, value: object) -> None:
        self._value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self._value is other._value

    def __hash__(self) -> int:
        return id(self._value)


def identity_of(value: object) -> Hashable:
    """Returns what has a hash and is equal for values that hold the same and run the same code.

    Args:
      value: anything, such as the graph of a network. What cannot be taken apart counts by its own hash, or as itself
        if it has none.

    Returns:
      A key for dictionaries.

    Example:
      >>> identity_of({"sizes": [1, 2]}) == identity_of({"sizes": [1, 2]})
      True
      >>> identity_of(lambda x: x + 1) == identity_of(lambda x: x + 2)
      False
    """
    return tuple(_Tokens().of(value))


class _Tokens:
    """Writes what a value holds into one flat list, which is several times faster than nested tuples."""

    def __init__(self) -> None:
        self._met: dict[int, int] = {}
        self._kept: list[object] = []  # or others would get their addresses
        self._trees: dict[jax.tree_util.PyTreeDef, int] = {}

    def of(self, value: object) -> list[Hashable]:
        """Takes a value apart, part by part; what is met again is a number, so that it may hold itself."""
        found: list[Hashable] = []
        stack: list[Any] = [value]
        while stack:
            part = stack.pop()
            kind: Any = type(part)
            if kind in _ATOMS:
                if kind in _NUMBERS:
                    found.append(kind)  # 1, 1.0 and True are equal
                found.append(part)
                continue
            number = self._met.setdefault(id(part), len(self._kept))
            if number < len(self._kept):
                found += ("met", number)
                continue
            self._kept.append(part)
            parts = self._parts(part)
            if parts is None:
                found.append(_whole(part))
            else:
                found += (kind, len(parts))
                stack += reversed(parts)
        return found

    def _parts(self, value: Any) -> Sequence[object] | None:  # noqa: ANN401
        """Returns what a value consists of; None if that is unknown or does not change."""
        kind: Any = type(value)
        if isinstance(value, tuple | list):
            return value
        names = _field_names(kind)
        if names is not None:
            fields = [getattr(value, name, None) for name in names]
            return fields if _is_of_library(kind) else [kind, *fields]
        if isinstance(value, Mapping):
            return [part for pair in value.items() for part in pair]
        if isinstance(value, jax.tree_util.PyTreeDef):
            return self._parts_of_tree(value)
        if isinstance(value, type):
            return None if _is_of_library(value) else list(_parts_of_class(value))
        if isinstance(value, FunctionType):
            return list(_parts_of_function(value))
        if isinstance(value, MethodType):
            return value.__func__, value.__self__
        if isinstance(value, functools.partial):
            return value.func, value.args, value.keywords
        if isinstance(value, np.ndarray):
            return array_content(value) if value.nbytes <= _LARGEST_ARRAY else None
        if isinstance(value, ModuleType | BuiltinFunctionType | jax.Array):
            return None
        if hasattr(value, "__dict__") and not (isinstance(value, Hashable) and _is_of_library(kind)):
            return [kind, vars(value)]
        if callable(value) and hasattr(value, "__wrapped__"):  # a compiled function, say
            return [value.__wrapped__]
        return None

    def _parts_of_tree(self, tree: jax.tree_util.PyTreeDef) -> Sequence[object]:
        """Returns the nodes of a pytree's form, or its number if an equal one was met: alike layers have equal ones."""
        try:
            if tree in self._trees:
                return [self._trees[tree]]
            self._trees[tree] = len(self._trees)
        except TypeError:  # a node stores a value without a hash
            pass
        return [tree.node_data(), *tree.children()]


def _whole(value: object) -> Hashable:
    """Returns what stands for a value that is not taken apart."""
    if isinstance(value, set | frozenset):
        return frozenset(map(identity_of, value))
    try:
        hash(value)
    except TypeError:
        return _Same(value)
    return value


def _parts_of_function(function: FunctionType) -> Iterator[object]:
    """Yields the code of a function, what it holds, and the globals that it names."""
    is_of_library = _is_library_file(function.__code__.co_filename)
    if is_of_library and not function.__closure__:
        yield _Same(function)
        return
    yield from (function.__code__, function.__defaults__, function.__kwdefaults__)
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:  # a function that is defined later
            yield None
    if is_of_library:
        return
    names = _globals_in(function.__code__)
    for name in names:
        value = function.__globals__.get(name)
        yield value
        if isinstance(value, ModuleType) and not _is_library_file(getattr(value, "__file__", None) or ""):
            attributes = vars(value)
            yield [attributes[each] for each in function.__code__.co_names if each in attributes]


def _parts_of_class(kind: type) -> Iterator[object]:
    """Yields a class, and what its methods and those of its bases consist of."""
    yield _Same(kind)
    for base in kind.__mro__:
        for name, value in () if _is_of_library(base) else tuple(vars(base).items()):
            held = next(
                (part for part in (getattr(value, n, None) for n in _HOLDS) if part is not None), value
            )
            if name not in _NOT_RUN and (not name.startswith("__") or isinstance(held, FunctionType)):
                yield from (name, held)


@functools.lru_cache(maxsize=4096)
def _globals_in(code: CodeType) -> tuple[str, ...]:
    """Returns the globals that a function's code and the functions inside it read."""
    inner = [part for part in code.co_consts if isinstance(part, CodeType)]
    own = [step.argval for step in dis.get_instructions(code) if step.opname in ("LOAD_GLOBAL", "LOAD_NAME")]
    return tuple(dict.fromkeys([*own, *(name for part in inner for name in _globals_in(part))]))


@functools.lru_cache(maxsize=1024)
def _field_names(kind: type) -> tuple[str, ...] | None:
    """Returns the fields of a dataclass; None for other classes."""
    return tuple(field.name for field in dataclasses.fields(kind)) if dataclasses.is_dataclass(kind) else None


def _is_of_library(kind: type) -> bool:
    """Tells whether a class is of Python or of an installed package."""
    if kind.__module__ == "builtins":
        return True
    if kind.__module__ == "__main__":  # a package may be what runs as it: the kernel of a notebook
        return False
    return _is_library_file(getattr(sys.modules.get(kind.__module__), "__file__", None) or "")


@functools.cache
def _is_library_file(file: str) -> bool:
    return file.startswith(_LIBRARIES)

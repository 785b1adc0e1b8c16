"""Sizes that the user's own classes store: whole numbers in modules, and in configuration objects that modules hold.

No rule says what such a number means; it can only be guessed by its value (`stored_sizes`) and set by name
(`set_size`). A configuration object (a dataclass, a named tuple, a dictionary, any plain object, and these within each
other) often belongs to the caller or to several modules. So it is never edited: the module gets a copy with the new
number.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Collection, Iterator, Mapping
from types import MappingProxyType
from typing import Any, cast

from flax import nnx

from jaxprune.structure.layer_sizes import value_at
from jaxprune.structure.model_state import Path, dotted
from jaxprune.types import is_whole

_LIBRARIES = frozenset({"builtins", "flax", "jax", "jaxlib", "jaxprune", "numpy", "optax"})
"""Objects of their classes are no configurations, but for dictionaries and tuples."""
_MAX_DEPTH = 4


def stored_sizes(model: nnx.Module, sizes: Collection[int]) -> dict[str, int]:
    """Finds whole numbers, stored by modules that are not Flax's own and their configurations, that equal a size.

    Args:
      model: the full network.
      sizes: the numbers to look for.

    Returns:
      Dotted path of the number -> the number.

    Example:
      >>> class Net(nnx.Module):
      ...     def __init__(self):
      ...         self.heads, self.config = 4, nnx.static({"width": 16, "depth": 3})
      >>> stored_sizes(Net(), {4, 16})
      {'heads': 4, 'config.width': 16}
    """
    return {path: value for path, value in stored_numbers(model).items() if value in sizes}


def stored_numbers(model: nnx.Module) -> dict[str, int]:
    """Finds all numbers that may be such sizes, for code that asks about many of them.

    Example:
      >>> class Net(nnx.Module):
      ...     def __init__(self):
      ...         self.heads = 4
      >>> stored_numbers(Net())
      {'heads': 4}
    """
    found: dict[str, int] = {}
    for path, module in nnx.iter_modules(model):
        if type(module).__module__.split(".")[0] != "flax":
            for own_path, value in _numbers_in(vars(module), _MAX_DEPTH):
                found[dotted((*cast(Path, path), *own_path))] = value
    return found


def _numbers_in(parts: Mapping[Any, object], depth: int) -> Iterator[tuple[Path, int]]:
    """Yields the path and the value of every whole number in the parts of an object."""
    for name, value in parts.items():
        if isinstance(name, str) and (name.startswith("_") or "." in name):
            continue
        if is_whole(value):
            yield (name,), int(value)
        elif depth:
            for path, number in _numbers_in(_parts_of(value), depth - 1):
                yield (name, *path), number


def _parts_of(value: object) -> Mapping[Any, object]:
    """Returns what a configuration holds, by name, key or position; nothing of what is none."""
    if isinstance(value, nnx.Pytree | nnx.Variable | type) or callable(value):
        return {}
    if isinstance(value, Mapping):
        return cast(Mapping[Any, object], value)
    if isinstance(value, tuple):  # positions in a plain one say too little of what its numbers mean
        return dict(zip(value._fields, value, strict=True)) if hasattr(value, "_fields") else {}
    if type(value).__module__.split(".")[0] in _LIBRARIES:
        return {}
    if dataclasses.is_dataclass(value):
        return {field.name: getattr(value, field.name, None) for field in dataclasses.fields(value)}
    return getattr(value, "__dict__", {})


def set_size(model: nnx.Module, name: str, size: int) -> None:
    """Sets a whole number that a module or its configuration stores.

    The module is changed in place. A configuration is replaced by a copy.

    Args:
      model: a copy that belongs to the caller.
      name: dotted path of the number, such as `"block.num_heads"` or `"block.config.width"`.
      size: its new value.

    Raises:
      ValueError: if the network has no such number, or the configuration does not take the new one.

    Example:
      >>> class Net(nnx.Module):
      ...     def __init__(self, config):
      ...         self.config = nnx.static(config)
      >>> config = {"width": 16}
      >>> net = Net(config)
      >>> set_size(net, "config.width", 8)
      >>> net.config, config
      ({'width': 8}, {'width': 16})
    """
    path = tuple(int(part) if part.isdigit() else part for part in name.split("."))
    if not is_whole(value_at(model, path)):
        raise ValueError(
            f"attributes needs names of whole numbers in the network, such as 'block.num_heads', got {name!r}."
        )
    owners = (value_at(model, path[:length]) for length in reversed(range(len(path))))
    depth, owner = next(
        (len(path) - 1 - number, owner)
        for number, owner in enumerate(owners)
        if isinstance(owner, nnx.Module)
    )
    attribute, *rest = path[depth:]
    try:
        new = _with_size(getattr(owner, str(attribute)), rest, size)
    except Exception as error:  # whatever a class of the user raises for a number that it does not take
        raise ValueError(
            f"attributes needs numbers that the network's configuration takes, but with {name}={size} it raised "
            f"{type(error).__name__}: {error}."
        ) from error
    setattr(owner, str(attribute), new)


def _with_size(value: Any, path: list[str | int], size: int) -> Any:  # noqa: ANN401
    """Returns a copy of a configuration with another number at a path; the number itself for an empty path."""
    if not path:
        return size
    part, *rest = path
    new = _with_size(value_at(value, (part,)), rest, size)
    if isinstance(value, MappingProxyType):
        return MappingProxyType({**value, part: new})
    if isinstance(value, Mapping):
        return type(value)({**value, part: new})  # type: ignore[call-arg]
    if isinstance(value, tuple):
        return value._replace(**{str(part): new})  # type: ignore[attr-defined]
    is_argument = dataclasses.is_dataclass(value) and any(
        field.name == part and field.init for field in dataclasses.fields(value)
    )
    if is_argument:  # so that what the class computes from its fields follows
        return dataclasses.replace(value, **{str(part): new})
    twin = copy.copy(value)
    object.__setattr__(twin, str(part), new)
    return twin

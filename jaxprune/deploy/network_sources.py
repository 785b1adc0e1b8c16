"""How to make a dense network anew in another process: a name and keyword arguments that are plain data.

What a file says is called only if it is made to build networks, because a file may come from anyone: a network of ours,
a class of NNX modules, or a function that takes random streams. Arguments from a file reach nothing else.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from flax import nnx

from jaxprune.files import parse_json, to_text
from jaxprune.nets.factories import (
    NETWORKS,
    call_factory,
    import_attribute,
    named_network,
    needed_parameters,
    takes_rngs,
)
from jaxprune.text import closest

Factory = str | Callable[..., Any]
"""A name of `jaxprune.nets.NETWORKS`, `module:factory`, or a function that makes the network (a `partial` too)."""

Maker = Callable[[nnx.Rngs], nnx.Module]
"""Makes a network from random streams."""


@dataclass(frozen=True)
class NetworkSource:
    """A network's name and the keyword arguments that it is made with.

    Example:
      >>> source = NetworkSource("plain_conv_net", {"widths": (2, 3, 4)})
      >>> source.make(nnx.Rngs(0)).conv1.kernel.shape
      (3, 3, 1, 2)
    """

    name: str
    """A name of `NETWORKS`, or `module:factory`."""
    options: Mapping[str, Any]
    """Plain data, with tuples in place of lists."""

    def make(self, rngs: nnx.Rngs) -> nnx.Module:
        """Returns the network, with fresh weights.

        Raises:
          ValueError: if there is no such network, module or factory; if the factory needs other arguments, is not made
            to build networks, or returns something else.
        """
        if (known := named_network(self.name)) is not None:
            return known(rngs=rngs, **{"num_classes": 10, **self.options})
        if ":" not in self.name:
            raise ValueError(
                f"a network needs to be one of {', '.join(NETWORKS)}, or module:factory, got {self.name!r}."
                f"{closest(self.name, NETWORKS)}"
            )
        factory = import_attribute("network", self.name)
        if not callable(factory) or not _builds_networks(factory, self.options):
            raise ValueError(
                f"network {self.name!r} needs a class of flax.nnx.Module or a function with a parameter rngs to pass "
                f"arguments to, got {factory!r:.80}. Give it that parameter, or pass factory= to load()."
            )
        return _checked(call_factory(factory, self.name, rngs, self.options), self.name)

    def to_record(self) -> dict[str, Any]:
        """Returns the source as an object of JSON."""
        return {"name": self.name, "options": dict(self.options)}

    @classmethod
    def from_record(cls, record: object) -> NetworkSource:
        """Returns the source that `to_record` described.

        Raises:
          ValueError: if the record is of another form.
        """
        name = record.get("name") if isinstance(record, dict) else None
        options = record.get("options") if isinstance(record, dict) else None
        if not isinstance(name, str) or not isinstance(options, dict):
            raise ValueError(f"a network needs a name and options, got {record!r:.80}.")
        return cls(name, {key: _with_tuples(value) for key, value in options.items()})


def as_source(factory: Factory, options: Mapping[str, Any] | None = None) -> NetworkSource:
    """Describes a factory so that another process can call it.

    Args:
      factory: a name of `NETWORKS`, `module:factory`, a class or function at the top of a module, or a
        `functools.partial` of one with keyword arguments.
      options: keyword arguments of the factory; besides those of the partial.

    Returns:
      The description.

    Raises:
      ValueError: for a factory that cannot be imported by its name, or arguments that are no plain data.

    Example:
      >>> from jaxprune.nets import LeNet5
      >>> as_source(partial(LeNet5, widths=(2, 3, 4)))
      NetworkSource(name='jaxprune.nets.small_nets:LeNet5', options={'widths': (2, 3, 4)})
    """
    given = dict(options or {})
    if isinstance(factory, partial):
        if factory.args:
            raise ValueError(
                f"a factory needs keyword arguments to be saved, got the positional {factory.args!r}. Name them."
            )
        return as_source(factory.func, {**factory.keywords, **given})
    if isinstance(factory, str):
        return NetworkSource(factory, _plain(given))
    module, name = getattr(factory, "__module__", ""), getattr(factory, "__qualname__", "")
    if module == "__main__" or getattr(sys.modules.get(module), name, None) is not factory:
        raise ValueError(
            "a factory needs to be at the top of a module that another process can import, got "
            f"{module}:{name or factory}. Move it there, or leave out factory= and pass it to load()."
        )
    return NetworkSource(f"{module}:{name}", _plain(given))


def maker_of(factory: Factory) -> Maker:
    """Returns what makes a network, for a factory that the caller trusts.

    Args:
      factory: as for `as_source`, or any other function that takes `nnx.Rngs` or nothing.

    Returns:
      A function from random streams to the network. It raises a ValueError if the factory needs other arguments or
      returns something else than a module.
    """
    if isinstance(factory, str):
        return NetworkSource(factory, {}).make
    name = getattr(factory, "__qualname__", repr(factory))
    if isinstance(factory, partial):
        inner, options = factory.func, factory.keywords
        name = getattr(inner, "__qualname__", repr(inner))
        if not factory.args:
            return lambda rngs: _checked(call_factory(inner, name, rngs, options), name)
    return lambda rngs: _checked(call_factory(factory, name, rngs), name)


def _builds_networks(factory: Callable[..., Any], options: Mapping[str, Any]) -> bool:
    """Tells whether a factory may be called with arguments that come from a file."""
    if inspect.isclass(factory):
        return issubclass(factory, nnx.Module)
    return takes_rngs(factory) or (not options and len(needed_parameters(factory)) <= 1)


def _checked(network: object, name: str) -> nnx.Module:
    """Returns what a factory made, if it is a network."""
    if isinstance(network, nnx.Module):
        return network
    raise ValueError(
        f"network {name!r} needs to be a factory of a Flax NNX module (flax.nnx.Module), got one that gives "
        f"{type(network).__name__}. Let it return the network itself."
    )


def _plain(options: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the options as JSON gives them back, with tuples in place of lists."""
    problems, plain = [], {}
    for name, value in options.items():
        try:
            plain[name] = _with_tuples(parse_json(to_text(value)))
            is_plain = plain[name] == _with_tuples(value)
        except (TypeError, ValueError):
            is_plain = False
        if not is_plain:
            problems.append(f"{name}={value!r:.60}")
    if problems:
        raise ValueError(
            "arguments of a factory need to be numbers, texts, booleans, None, lists or dicts of these to be saved, "
            f"got {', '.join(problems)}. Write a function that sets them, and give that as factory=."
        )
    return plain


def _with_tuples(value: object) -> object:
    """Returns plain data with tuples in place of lists, which networks may hash."""
    if isinstance(value, list | tuple):
        return tuple(_with_tuples(part) for part in value)
    return {key: _with_tuples(part) for key, part in value.items()} if isinstance(value, dict) else value

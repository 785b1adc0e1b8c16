"""Networks by name or from your own `module:factory`, with weights or of shapes alone."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import accumulate
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any

import jax
import numpy as np
from flax import nnx

from jaxprune.nets.efficientnet import EfficientNetLite0
from jaxprune.nets.imagenet_vgg import ImageNetVGG
from jaxprune.nets.mobilenet import MobileNetV2
from jaxprune.nets.resnets import CifarResNet, ImageNetResNet, PreActResNet
from jaxprune.nets.small_nets import DepthwiseNet, LeNet5, PlainConvNet, SmallConvNet
from jaxprune.nets.vgg import VGG16, VGG19
from jaxprune.text import closest

NETWORKS: Mapping[str, Callable[..., nnx.Module]] = MappingProxyType(
    {
        "plain_conv_net": PlainConvNet,
        "small_conv_net": SmallConvNet,
        "depthwise_net": DepthwiseNet,
        "lenet5": LeNet5,
        "vgg16": VGG16,
        "vgg19": VGG19,
        "resnet20": partial(CifarResNet, depth=20),
        "resnet56": partial(CifarResNet, depth=56),
        "resnet110": partial(CifarResNet, depth=110),
        "resnet164": partial(PreActResNet, depth=164),
        "resnet18": partial(ImageNetResNet, depth=18),
        "resnet34": partial(ImageNetResNet, depth=34),
        "resnet50": partial(ImageNetResNet, depth=50),
        "imagenet_vgg16": partial(ImageNetVGG, depth=16),
        "imagenet_vgg19": partial(ImageNetVGG, depth=19),
        "mobilenet_v2": MobileNetV2,
        "efficientnet_lite0": EfficientNetLite0,
    }
)
"""Name -> network; each takes `rngs` and the keywords `widths`, `num_classes`, `image_shape`."""


def find_network(
    name: str,
    *,
    image_shape: Sequence[int] = (),
    num_classes: int = 10,
    seed: int = 0,
    has_weights: bool = True,
    **settings: object,
) -> nnx.Module:
    """Makes a network with fresh weights.

    Args:
      name: one of `NETWORKS`, in any spelling of its words ("lenet5", "LeNet5"), made with its default widths; or
        `module:factory`, where the factory takes `nnx.Rngs` or nothing and returns a Flax NNX module.
      image_shape: shape of one image, for networks of `NETWORKS`; () for their own default.
      num_classes: width of the output, for networks of `NETWORKS`.
      seed: seed of the initial weights.
      has_weights: False for shapes and dtypes instead of arrays (see `without_weights`), if the factory can be traced.
      settings: further keywords for networks of `NETWORKS`, such as `widths`.

    Returns:
      The network.

    Raises:
      ValueError: if there is no such network, module or factory, the factory needs other arguments, or it returns
        something else.

    Example:
      >>> type(find_network("plain_conv_net", image_shape=(8, 8, 1))).__name__
      'PlainConvNet'
      >>> find_network("vgg16", has_weights=False).dense.kernel.shape
      (512, 512)
      >>> find_network("jaxprune.nets:PlainConvNet").image_shape
      (8, 8, 1)
    """
    if (known := named_network(name)) is not None:
        shape = {"image_shape": tuple(image_shape)} if image_shape else {}
        make = partial(known, num_classes=num_classes, **shape, **settings)
        return make(nnx.Rngs(seed)) if has_weights else without_weights(make)
    module_name, _, attribute = name.partition(":")
    if not (module_name and attribute):
        raise ValueError(
            f"a network needs to be one of {', '.join(NETWORKS)}, or module:factory, got {name!r}."
            f"{closest(name, NETWORKS)}"
        )
    if settings:
        raise ValueError(
            f"{', '.join(settings)} needs one of {', '.join(NETWORKS)}, got {name!r}. Let the factory set it."
        )
    network = factory = import_attribute("network", name)
    if inspect.isclass(factory) and not issubclass(factory, nnx.Module):
        raise ValueError(
            f"network {name!r} needs to be a factory of a Flax NNX module (flax.nnx.Module), "
            f"got the class {factory.__name__}."
        )
    if callable(factory) and not isinstance(factory, nnx.Module):
        network = (
            call_factory(factory, name, nnx.Rngs(seed)) if has_weights else _shapes_of(factory, name, seed)
        )
    if not isinstance(network, nnx.Module):
        raise ValueError(
            f"network {name!r} needs to be a factory of a Flax NNX module (flax.nnx.Module), "
            f"got one that gives {type(network).__name__}. Let it return the network itself."
        )
    return network


def named_network(name: str) -> Callable[..., nnx.Module] | None:
    """Returns the network of `NETWORKS` with a name in any spelling of its words, or None.

    Example:
      >>> named_network("LeNet-5").__name__, named_network("mymodule:net")
      ('LeNet5', None)
    """
    return {_letters(known): make for known, make in NETWORKS.items()}.get(_letters(name))


def without_weights(make: Callable[[nnx.Rngs], nnx.Module], *, counts_keys: bool = False) -> nnx.Module:
    """Makes a network with shapes and dtypes in place of arrays, so that nothing is computed or stored.

    This is enough for `trace_structure`, `plan`, `slim`, `count_macs` and `count_parameters`. It is `nnx.eval_shape`,
    also for arrays outside of variables, with random streams that do not count, which saves most of the time on deep
    networks.

    Args:
      make: the network's class, or a function that makes it from `nnx.Rngs`.
      counts_keys: whether the network gets random streams that count, which it needs if arrays are filled in later.

    Returns:
      The network, which cannot be run.

    Example:
      >>> without_weights(lambda rngs: nnx.Linear(3, 5, rngs=rngs)).kernel.shape
      (3, 5)
    """
    graphdefs: list[nnx.GraphDef[nnx.Module]] = []
    paths: list[tuple[Any, ...]] = []
    others: dict[tuple[Any, ...], Any] = {}

    def build() -> list[Any]:
        rngs = nnx.Rngs(0)
        if not counts_keys:
            rngs.default = _ConstantStream(0, tag="default")  # type: ignore[attr-defined]
        model = make(rngs)
        _mark_arrays(model)
        graphdef, state = nnx.split(model)
        graphdefs.append(graphdef)
        arrays = []
        for path, value in nnx.to_flat_state(state):
            if any(isinstance(leaf, jax.Array | np.ndarray) for leaf in jax.tree.leaves(value)):
                paths.append(path)
                arrays.append(value)
            else:  # a variable of numbers or texts, which the network's code may read
                others[path] = value.copy()
        return arrays

    shapes = {path: placeholder(value) for path, value in zip(paths, jax.eval_shape(build), strict=True)}
    return nnx.merge(graphdefs[0], nnx.from_flat_state([*shapes.items(), *others.items()]))


def placeholder(value: Any) -> Any:  # noqa: ANN401 - a variable, or a shape
    """Returns what stands for arrays in a network without weights.

    A shape outside of a variable, of `nnx.WeightNorm`'s scales or a mask say, would be no state to Flax. An array of
    zeros that share one address is, and takes no memory.

    Example:
      >>> placeholder(jax.ShapeDtypeStruct((2, 3), "float32")).strides
      (0, 0)
    """
    if isinstance(value, nnx.Variable) or jax.numpy.issubdtype(value.dtype, jax.dtypes.extended):
        return value
    return np.broadcast_to(np.zeros((), value.dtype), value.shape)


def _mark_arrays(model: nnx.Module) -> None:
    """Tells Flax that traced arrays outside of variables are state, as it knows of others."""
    for _, node in nnx.iter_graph(model):
        if isinstance(node, nnx.Pytree):
            for name, value in list(vars(node).items()):
                if isinstance(value, jax.core.Tracer):
                    setattr(node, name, nnx.data(value))


def look_in_working_directory() -> None:
    """Adds the working directory to the Python path, where a console script would not look for `module:factory`."""
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))


_own_files: set[str] = set()
"""Source files of the modules that `import_attribute` was asked for in this process."""


def own_files() -> frozenset[str]:
    """Returns the source files of users' own modules, which `import_attribute` was asked for in this process."""
    return frozenset(_own_files)


def import_attribute(kind: str, name: str) -> Any:  # noqa: ANN401 - whatever the module has there
    """Imports the attribute that `module:attribute` names.

    Args:
      kind: what the attribute is needed for, "network" say, for error messages.
      name: the name, as given by the user.

    Raises:
      ValueError: if there is no such module or attribute.

    Example:
      >>> import_attribute("network", "jaxprune.nets:LeNet5").__name__
      'LeNet5'
    """
    module_name, _, attribute = name.partition(":")
    if not all(part.isidentifier() for part in [*module_name.split("."), attribute]):
        raise ValueError(f"{kind} {name!r} needs to look like module:function, in names of Python.")
    needed = f"{kind} {name!r} needs a module on the Python path with a function {attribute!r}"
    try:
        module = _import_module(module_name)
    except ImportError as error:
        raise ValueError(f"{needed}: {error}.") from error
    except SystemExit as error:
        raise ValueError(
            f"{kind} {name!r} needs a module that can be imported, got one that ends the program (status "
            f"{error.code}). "
            'Move what it does below if __name__ == "__main__".'
        ) from error
    try:
        found = getattr(module, attribute)
    except AttributeError as error:
        raise ValueError(f"{needed}: {error}.") from error
    if inspect.isbuiltin(found):
        raise ValueError(f"{kind} {name!r} needs a function written in Python, got a built-in one.")
    return found


def _import_module(name: str) -> ModuleType:
    """Imports a user's module, and notes its source file first, because the import may fail."""
    for package in accumulate(name.split("."), lambda above, part: f"{above}.{part}"):
        known = sys.modules.get(package)
        spec = None if known else importlib.util.find_spec(package)
        file = getattr(known, "__file__", None) or getattr(spec, "origin", None)
        _own_files.update([file] if file else [])
    return importlib.import_module(name)


def _shapes_of(factory: Callable[..., object], name: str, seed: int) -> object:
    """What a factory makes without weights; with weights if it looks at values, as one that reads a file does."""
    others: list[object] = []

    def make(rngs: nnx.Rngs) -> nnx.Module:
        network = call_factory(factory, name, rngs)
        if isinstance(network, nnx.Module):
            return network
        others.append(network)
        return nnx.Dict()

    try:
        network: object = without_weights(make)
    except jax.errors.JAXTypeError:
        return call_factory(factory, name, nnx.Rngs(seed))
    return others[0] if others else network


def call_factory(
    factory: Callable[..., object], name: str, rngs: nnx.Rngs, options: Mapping[str, object] | None = None
) -> object:
    """Calls a factory, with random streams if it takes any.

    Args:
      factory: a class, or a function.
      name: its name, for messages.
      rngs: the random streams.
      options: keyword arguments to call it with.

    Returns:
      Whatever the factory returns.

    Raises:
      ValueError: if it needs other arguments.

    Example:
      >>> call_factory(lambda rngs, width: width, "mine", nnx.Rngs(0), {"width": 3})
      3
    """
    options = options or {}
    parameters = _parameters(factory)
    positional = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    needed = [each for each in needed_parameters(factory) if each not in options]
    if takes_rngs(factory) and set(needed) <= {"rngs"}:
        return factory(rngs=rngs, **options)
    if not needed:
        return factory(**options)
    if needed == positional[:1]:
        return factory(rngs, **options)
    raise ValueError(
        f"network {name!r} needs a factory that takes flax.nnx.Rngs or nothing, got one that needs "
        f"{', '.join(needed)}. Write a function that fills in the others."
    )


def takes_rngs(function: Callable[..., object]) -> bool:
    """Tells whether a function or class has a parameter `rngs` that can be passed by name.

    Example:
      >>> takes_rngs(nnx.Linear), takes_rngs(lambda key: None)
      (True, False)
    """
    return any(p.name == "rngs" and p.kind is not p.POSITIONAL_ONLY for p in _parameters(function))


def needed_parameters(function: Callable[..., object]) -> list[str]:
    """Returns the names of the parameters without a default, of a function or class.

    Example:
      >>> needed_parameters(lambda rngs, widths, depth=3, **others: None)
      ['rngs', 'widths']
    """
    stars = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [p.name for p in _parameters(function) if p.default is p.empty and p.kind not in stars]


def _parameters(function: Callable[..., object]) -> list[inspect.Parameter]:
    """The parameters of a function or class; none if it is written in C and does not tell."""
    is_class = inspect.isclass(function)  # the signature of the class itself is that of NNX's metaclass
    try:
        signature = inspect.signature(function.__init__ if is_class else function)
    except ValueError:
        return []
    return list(signature.parameters.values())[1 if is_class else 0 :]


def _letters(name: str) -> str:
    """A name without separators and capitals."""
    return name.replace("_", "").replace("-", "").lower()


class _ConstantStream(nnx.RngStream):
    """A random stream that always gives the same key; counting keys, as Flax does, is slow when it is traced."""

    def __call__(self) -> jax.Array:
        """Returns the key."""
        return self.key[...]

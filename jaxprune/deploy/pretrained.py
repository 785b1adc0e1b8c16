"""Networks with weights that were trained elsewhere, from safetensors files, without PyTorch and without a network."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from jaxprune.deploy.tensor_files import TensorFile, TensorShape, open_tensors
from jaxprune.deploy.weight_names import (
    IGNORED,
    StoredTensor,
    fitting_tensors,
    layouts_of,
)
from jaxprune.nets.factories import find_network
from jaxprune.pruning.plan_checks import network_problems
from jaxprune.pruning.planning import Plan, make_plan
from jaxprune.pruning.slimming import slim
from jaxprune.structure.model_state import Parts, merge_model, take_apart
from jaxprune.structure.tracing import trace_structure
from jaxprune.text import closest
from jaxprune.types import Array

METADATA_KEY = "jaxprune_weights"
"""Under which `export_weights` keeps the plan of a slim network."""

METADATA_FORMAT = 1

PRETRAINED: Mapping[str, str] = MappingProxyType(
    {
        "resnet18": "resnet18",
        "resnet34": "resnet34",
        "resnet50": "resnet50",
        "resnet20": "resnet20",
        "resnet56": "resnet56",
        "resnet110": "resnet110",
        "vgg16": "imagenet_vgg16",
        "vgg19": "imagenet_vgg19",
        "mobilenet_v2": "mobilenet_v2",
        "efficientnet_lite0": "efficientnet_lite0",
    }
)
"""Name as elsewhere -> name in `nets.NETWORKS`."""

_OUTPUTS = ("fc", "linear", "classifier", "classifier.1", "classifier.6", "head.fc", "_fc")
"""What the output layer may be called."""

_NUM_CLASSES = 1000
"""Of a network whose output layer the file does not have."""

_FLOATS = ("F64", "F32", "F16", "BF16")
_PREFIXES = ("module.", "model.", "_orig_mod.")
"""What data-parallel training, trainers and compilation in PyTorch write before every name."""


@dataclass(frozen=True)
class _Source:
    """An open file: its arrays by name, and the plan of the slim network in it."""

    path: str
    file: TensorFile
    shapes: Mapping[str, TensorShape]
    prefix: str
    plan: Plan | None

    @property
    def num_classes(self) -> int | None:
        """Width of the output layer."""
        outputs = (self.shapes.get(f"{name}.weight") for name in _OUTPUTS)
        return next((found.shape[0] for found in outputs if found and found.shape), None)

    def read(self, tensor: StoredTensor) -> np.ndarray:
        """Returns an array as it lies in the network, in the type of the file."""
        return tensor.to_network(self.file.get_tensor(self.prefix + tensor.name))


def load_pretrained(
    network: str,
    path: str | os.PathLike[str],
    *,
    num_classes: int | None = None,
    new_output: bool = False,
    image_shape: Sequence[int] = (),
    dtype: DTypeLike = jnp.float32,
    **settings: object,
) -> nnx.Module:
    """Makes a network with the weights in a safetensors file, in the names of torchvision, timm and others.

    The network computes what the one there does: kernels are transposed, also that of a dense layer behind images;
    padding, strides, epsilon and momentum are those of the network there. What the file tells is taken from it: the
    number of classes, whether a VGG network has norms, the stem of a ResNet and its shortcuts. A file that
    `export_weights` wrote with a plan becomes the slim network.

    Args:
      network: "resnet18", "resnet34", "resnet50", "vgg16", "vgg19" (with or without norms), "mobilenet_v2",
        "efficientnet_lite0", or "resnet20", "resnet56", "resnet110" for CIFAR-10.
      path: the file.
      num_classes: number of classes that the file must have; None takes what it has.
      new_output: draws a new output layer, of `num_classes`, instead of loading the one in the file.
      image_shape: (H, W, C) of one image; () for the network's default, or that of the plan.
      dtype: floating-point type of the parameters; batch statistics are float32. Weights of half precision become
        float32 unless another type is asked for.
      settings: further keywords of the network, as for `find_network`: `widths`, `multiplier`, ... Networks that timm
        trained without "tf_" in their name need `padding="equal", epsilon=1e-5` for "efficientnet_lite0".

    Returns:
      The network.

    Raises:
      ImportError: if safetensors is not installed.
      OSError: if the file cannot be read.
      ValueError: if the name of the network is not known, the file is damaged or of another kind, or does not hold the
        weights of the network: the message lists all arrays that are missing, not known or of another shape or type,
        and says if it has another number of classes.

    Example:
      >>> import tempfile
      >>> from jaxprune import export_weights
      >>> model = find_network("resnet20", widths=(2, 2, 2), num_classes=3)
      >>> path = tempfile.mkdtemp() + "/model.safetensors"
      >>> export_weights(model, path)
      >>> load_pretrained("resnet20", path, widths=(2, 2, 2)).output.kernel.shape
      (2, 3)
    """
    name = _known_name(network)
    dtype = _checked_dtype(dtype)
    with open_tensors(path) as (file, shapes):
        source = _source(os.fspath(path), file, shapes)
        classes = num_classes if new_output or source.num_classes is None else source.num_classes
        classes = classes or source.num_classes or _NUM_CLASSES
        if not image_shape and source.plan is not None:
            image_shape = source.plan.example_shape[1:]
        form: dict[str, Any] = {**_settings_in(name, source), **settings}
        parts = take_apart(
            find_network(name, num_classes=classes, image_shape=image_shape, has_weights=False, **form)
        )
        parts = parts._replace(rest={path: _materialised(value) for path, value in parts.rest.items()})
        if source.plan is not None:
            parts = take_apart(_slim_zeros(parts, source.plan, source.path))
        asked = None if new_output else num_classes
        tensors = _checked_tensors(network, parts, source, asked=asked, has_output=not new_output)
        flat: dict[Any, Array] = {
            tensor.path: _array(source.read(tensor), dtype if tensor.path in parts.trained else jnp.float32)
            for tensor in tensors
        }
    for path_here, array in parts.flat.items():
        if path_here not in flat:
            flat[path_here] = _new_output_array(array.shape, dtype)
    return merge_model(parts.graphdef, flat, parts.rest)


def pretrained_form(network: str, path: str | os.PathLike[str]) -> dict[str, object]:
    """Returns the keywords of a network that `load_pretrained` takes from a file, such as the stem of a ResNet.

    Args:
      network: as for `load_pretrained`.
      path: the file.

    Returns:
      Keyword -> value, without the number of classes.

    Raises:
      ImportError, OSError, ValueError: as `load_pretrained`, for names and files that it cannot read.

    Example:
      >>> import tempfile
      >>> from jaxprune import export_weights
      >>> path = tempfile.mkdtemp() + "/model.safetensors"
      >>> export_weights(find_network("resnet20", widths=(2, 2, 2), num_classes=3), path)
      >>> pretrained_form("resnet20", path)
      {'shortcut': 'A'}
    """
    with open_tensors(path) as (file, shapes):
        return _settings_in(_known_name(network), _source(os.fspath(path), file, shapes))


def _known_name(network: str) -> str:
    """Returns the name of the network in `NETWORKS`, from a name in any spelling of its words."""
    known = {name.replace("_", ""): ours for name, ours in PRETRAINED.items()}
    letters = str(network).replace("_", "").replace("-", "").lower()
    letters = letters.removesuffix("bn") if letters.startswith("vgg") else letters
    if letters not in known:
        raise ValueError(
            f"load_pretrained needs one of {', '.join(PRETRAINED)}, got {network!r}."
            f"{closest(str(network), PRETRAINED)}"
        )
    return known[letters]


def _checked_dtype(dtype: DTypeLike) -> np.dtype:
    """Returns a floating-point type that JAX has."""
    given = np.dtype(dtype)
    if not jnp.issubdtype(given, jnp.floating):
        raise ValueError(f"load_pretrained needs a floating-point dtype, got {given}.")
    if jax.dtypes.canonicalize_dtype(given) != given:
        raise ValueError(f"load_pretrained needs jax_enable_x64 for dtype {given}, which is switched off.")
    return given


def _source(path: str, file: TensorFile, shapes: Mapping[str, TensorShape]) -> _Source:
    """Returns an open file, without what its names may have in common, and with the plan in its metadata."""
    common = (each for each in _PREFIXES if shapes and all(name.startswith(each) for name in shapes))
    prefix = next(common, "")
    plain = {name.removeprefix(prefix): shape for name, shape in shapes.items()}
    text = (file.metadata() or {}).get(METADATA_KEY)
    plan = None
    if text is not None:
        try:
            record = json.loads(text)
            if not isinstance(record, dict) or record.get("format") != METADATA_FORMAT:
                raise ValueError(f"needs metadata of format {METADATA_FORMAT}, got {text[:60]!r}.")
            if record.get("plan") is not None:
                plan = Plan.from_json(json.dumps(record["plan"]))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}: the metadata {METADATA_KEY!r} {error}") from error
    return _Source(path, file, plain, prefix, plan)


def _settings_in(name: str, source: _Source) -> dict[str, object]:
    """Returns what the arrays in a file tell about the form of the network."""
    if name.startswith("imagenet_vgg"):
        return {"has_norms": any(each.endswith("running_mean") for each in source.shapes)}
    if name in ("resnet18", "resnet34", "resnet50"):
        stem = source.shapes.get("conv1.weight")
        return {"stem": "3x3"} if stem is not None and stem.shape[2:] == (3, 3) else {}
    if name.startswith("resnet"):
        is_projected = any(".downsample." in each or ".shortcut." in each for each in source.shapes)
        return {"shortcut": "B" if is_projected else "A"}
    return {}


def _materialised(value: Any) -> Any:  # noqa: ANN401 - random keys and counters, or a variable
    """Returns random state for what stands for it in a network without weights."""
    if not isinstance(value, jax.ShapeDtypeStruct):
        return value
    if jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
        return jax.random.key(0)
    return jnp.zeros(value.shape, value.dtype)


def _slim_zeros(parts: Parts, plan: Plan, path: str) -> nnx.Module:
    """Returns the slim network of zeros that a plan makes of a network."""
    zeros = {where: np.zeros(array.shape, array.dtype) for where, array in parts.flat.items()}
    dense = merge_model(parts.graphdef, zeros, parts.rest)
    structure = trace_structure(dense, plan.example)
    if problems := network_problems(plan.widths, structure.widths):
        raise ValueError(
            f"{path} holds a slim network, and needs the settings of the network that was pruned: "
            f"{'; '.join(problems)}. Pass the same settings (widths=..., image_shape=...)."
        )
    return slim(dense, make_plan(structure, dict(plan.kept)))


def _checked_tensors(
    network: str, parts: Parts, source: _Source, *, asked: int | None, has_output: bool
) -> list[StoredTensor]:
    """Returns where each array of the network is found in the file, after checking that they fit each other."""
    layout, tensors = fitting_tensors(parts.model, source.shapes)
    expected = [tensor for tensor in tensors if has_output or tensor.path[0] != "output"]
    names = {tensor.name for tensor in tensors}
    found = [tensor for tensor in expected if tensor.name in source.shapes]
    problems = _listed("missing", [tensor.name for tensor in expected if tensor.name not in source.shapes])
    problems += _listed(
        "not known to the network",
        [name for name in source.shapes if name not in names and not name.endswith(IGNORED)],
    )
    problems += _listed(
        "of another shape",
        [
            f"{tensor.name} (needs {tensor.stored_shape}, got {source.shapes[tensor.name].shape})"
            for tensor in found
            if source.shapes[tensor.name].shape != tensor.stored_shape
        ],
    )
    problems += _listed(
        "not of a floating-point type",
        [
            f"{tensor.name} ({source.shapes[tensor.name].dtype})"
            for tensor in found
            if source.shapes[tensor.name].dtype not in _FLOATS
        ],
    )
    advice = "Check the name of the network, its settings (widths=..., image_shape=...) and the file."
    if asked is not None and source.num_classes not in (None, asked):
        if not problems:
            advice = (
                f"Leave num_classes out, or pass new_output=True for a new output layer of {asked} classes."
            )
        problems.append(f"the output has {source.num_classes} classes, not num_classes={asked}")
    if problems:
        raise ValueError(
            f"{source.path} needs to hold the weights of {network} in the names of "
            f"{' or '.join(layouts_of(parts.model))} (nearest: {layout}), but: {'; '.join(problems)}. {advice}"
        )
    return expected


def _listed(problem: str, names: Sequence[str]) -> list[str]:
    """Returns one clause that names everything that has a problem; none if nothing has."""
    return [f"{len(names)} {problem}: {', '.join(names)}"] if names else []


def _array(values: np.ndarray, dtype: DTypeLike) -> jax.Array:
    """The values as a JAX array of their own; `jnp.asarray` would compile a program for each shape."""
    return jax.device_put(np.array(values, dtype, order="C"))


def _new_output_array(shape: tuple[int, ...], dtype: np.dtype) -> jax.Array:
    """Returns a new kernel, or a bias of zeros, of the output layer."""
    if len(shape) == 1:
        return _array(np.zeros(shape), dtype)
    return nnx.initializers.lecun_normal()(jax.random.key(0), shape, jnp.float32).astype(dtype)

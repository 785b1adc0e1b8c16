"""Weights of a network, dense or slim, to a safetensors file in the names of other libraries."""

from __future__ import annotations

import json
import os

import jax
import numpy as np
from flax import nnx

from jaxprune._version import __version__
from jaxprune.deploy.pretrained import METADATA_FORMAT, METADATA_KEY
from jaxprune.deploy.tensor_files import write_tensors
from jaxprune.deploy.weight_names import Layout, known_kinds, layouts_of, stored_tensors
from jaxprune.pruning.planning import Plan
from jaxprune.structure.model_state import FlatState, dotted, fingerprint, take_apart


def export_weights(
    model: nnx.Module,
    path: str | os.PathLike[str],
    *,
    layout: Layout = "torchvision",
    plan: Plan | None = None,
) -> None:
    """Writes the weights of a network as safetensors, in the names and layouts of another library.

    A network of the same widths there loads the file as it is. `load_pretrained` reads it back, bit by bit the same; a
    slim network needs its plan for that, which is kept in the file's metadata: under "jaxprune_weights" there is a JSON
    object with `plan`, as `Plan.to_json` writes it with the kept indices of each group, and with `producers`, which
    gives the name that a group's first producer has in the file.

    Args:
      model: a ResNet, MobileNetV2, EfficientNet-lite0 or VGG network for large images, of `find_network` or
        `load_pretrained`, or slimmed from one; types of the arrays stay as they are.
      path: the file to write; its folder must exist.
      layout: whose names: "torchvision", "timm", "efficientnet_pytorch" (of EfficientNet-lite0 alone) or
        "pytorch_cifar" (`linear` and `shortcut` in ResNets).
      plan: the plan that a slim network was made with.

    Raises:
      ImportError: if safetensors is not installed.
      OSError: if the file cannot be written; nothing is left behind.
      ValueError: if the layout has no names for this network, or the plan was made for another one.

    Example:
      >>> import tempfile
      >>> from jaxprune.nets import find_network
      >>> model = find_network("resnet20", widths=(2, 2, 2), num_classes=3)
      >>> export_weights(model, tempfile.mkdtemp() + "/model.safetensors", layout="pytorch_cifar")
    """
    if layout not in layouts_of(model):
        raise ValueError(_no_names(model, layout))
    flat = take_apart(model).flat
    if any(isinstance(array, jax.ShapeDtypeStruct) for array in flat.values()):
        raise ValueError("export_weights needs a network with weights, got one of shapes alone.")
    tensors = stored_tensors(model, layout)
    record: dict[str, object] = {"format": METADATA_FORMAT, "jaxprune": __version__, "layout": layout}
    if plan is not None:
        _check_slim(flat, plan)
        names = {dotted(tensor.path): tensor.name for tensor in tensors}
        record |= {
            "plan": json.loads(plan.to_json()),
            "producers": {group: names[group] for group in plan.kept},
        }
    arrays = {tensor.name: tensor.to_stored(np.asarray(flat[tensor.path])) for tensor in tensors}
    write_tensors(path, arrays, {"format": "pt", METADATA_KEY: json.dumps(record)})


def _no_names(model: nnx.Module, layout: str) -> str:
    """Says which networks or layouts there are names for."""
    kind, layouts = type(model).__name__, layouts_of(model)
    if layouts:
        return f"export_weights needs one of the layouts {', '.join(layouts)} for {kind}, got {layout!r}."
    return (
        f"export_weights needs a network whose names it knows ({', '.join(known_kinds())}), got {kind}. "
        "Save it with jaxprune.save instead."
    )


def _check_slim(flat: FlatState, plan: Plan) -> None:
    """Checks that a plan may have made a network; whether it did shows when the file is loaded."""
    sizes = {dotted(where): array.shape[-1] for where, array in flat.items()}
    problems = [
        f"{group} keeps {count} channels, the network has {sizes.get(group, 'no such array')}"
        for group, count in plan.kept_counts.items()
        if count > sizes.get(group, 0)
    ]
    if fingerprint(flat) == plan.fingerprint and plan.kept_counts != plan.widths:
        problems.append("this is the network before slimming")
    if problems:
        raise ValueError(
            f"export_weights needs the plan that the slim network was made with, but: {'; '.join(problems)}. "
            "Pass the result of slim(model, plan) together with the same plan."
        )

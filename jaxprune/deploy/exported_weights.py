"""Weights of a network, dense or slim, as a safetensors file in the names of other libraries."""

from __future__ import annotations

import json
import os

import numpy as np
from flax import nnx

from jaxprune._version import __version__
from jaxprune.deploy.pretrained import METADATA_FORMAT, METADATA_KEY
from jaxprune.deploy.tensor_files import write_tensors
from jaxprune.deploy.weight_names import Layout, known_kinds, layouts_of, stored_tensors
from jaxprune.pruning.planning import Plan
from jaxprune.structure.model_state import dotted, take_apart


def export_weights(
    model: nnx.Module,
    path: str | os.PathLike[str],
    *,
    layout: Layout = "torchvision",
    plan: Plan | None = None,
) -> None:
    """Writes the weights of a network as safetensors, in the names and layouts of another library.

    A network of the same widths there loads the file as it is. `load_pretrained` reads it back, bit by bit the same; a
    slim network needs its plan for that, which is kept in the file's metadata: under "jaxprune" there is a JSON object
    with `plan`, as `Plan.to_json` writes it, and `kept`, which gives for the weight that makes a group's channels (in
    the names of the file) the indices of the rows of the dense network that are left.

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
    tensors = stored_tensors(model, layout)
    record: dict[str, object] = {"format": METADATA_FORMAT, "jaxprune": __version__, "layout": layout}
    if plan is not None:
        _check_slim(flat_shapes={dotted(where): array.shape for where, array in flat.items()}, plan=plan)
        names = {dotted(tensor.path): tensor.name for tensor in tensors}
        record["kept"] = {names[group]: list(kept) for group, kept in plan.kept.items()}
        record["plan"] = json.loads(plan.to_json())
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


def _check_slim(flat_shapes: dict[str, tuple[int, ...]], plan: Plan) -> None:
    """Checks that a network has the numbers of channels that a plan leaves."""
    problems = [
        f"{group} keeps {count} channels, the network has "
        f"{flat_shapes[group][-1] if group in flat_shapes else 'no such array'}"
        for group, count in plan.kept_counts.items()
        if group not in flat_shapes or flat_shapes[group][-1] != count
    ]
    if problems:
        raise ValueError(
            f"export_weights needs the plan that the slim network was made with, but: {'; '.join(problems)}. "
            "Pass the result of slim(model, plan) together with the same plan."
        )

"""Pruned networks stay on the devices of the network that they were made of."""

import os
import subprocess
import sys
from pathlib import Path

SCRIPT = """
import jax
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec
from pruned_nets import IMAGES, plain

from jaxprune.pruning.masking import mask
from jaxprune.pruning.planning import make_plan
from jaxprune.pruning.slimming import slim
from jaxprune.structure.model_state import split_model
from jaxprune.structure.tracing import trace_structure

first, second = jax.devices()
mesh = jax.make_mesh((2,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
split = NamedSharding(mesh, PartitionSpec(None, None, None, "d"))
replicated = NamedSharding(mesh, PartitionSpec())
structure = trace_structure(plain(), IMAGES)


def placed(place):
    model = plain()
    nnx.update(model, jax.device_put(nnx.state(model), place))
    return model


def places(model):
    arrays = split_model(model)[1]
    return {path: array.sharding for path, array in arrays.items()}, {a.committed for a in arrays.values()}


def pruned(model, kept):
    plan = make_plan(structure, {"conv1.kernel": kept})
    return [mask(model, plan), slim(model, plan)]


for place in (second, replicated):
    model = placed(place)
    for smaller in pruned(model, (0, 2)):
        assert places(smaller) == places(model), place
        assert places(smaller)[1] == {True}

for smaller in pruned(plain(), (0, 2)):
    assert places(smaller) == places(plain())
    assert places(smaller)[1] == {False}  # JAX may move it beside other arrays, as the model itself

model = plain()
model.conv1.kernel[...] = jax.device_put(model.conv1.kernel[...], split)
for kept, slim_place in (((0, 2), split), ((0, 1, 2), replicated)):
    masked, smaller = pruned(model, kept)
    assert masked.conv1.kernel[...].sharding == split
    assert smaller.conv1.kernel[...].sharding.is_equivalent_to(slim_place, 4)
    expected = np.asarray(model.conv1.kernel[...])[..., list(kept)]
    np.testing.assert_array_equal(smaller.conv1.kernel[...], expected)
print("done")
"""


def test_arrays_stay_on_their_devices_and_split_as_they_were(root: Path) -> None:
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=2"
    paths = os.pathsep.join(map(str, (root, root / "tests", root / "tests" / "support")))
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, "PYTHONPATH": paths}
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=env, capture_output=True, text=True, check=False
    )
    assert result.stdout == "done\n", result.stderr

"""Every network of the zoo, pruned, saves and loads bit-equal and is exported for all platforms and batch sizes."""

from __future__ import annotations

import jax
import pytest
from jax import export as jax_export
from zoo import ZOO
from zoo_cases import QUICK, attributes_of, case_of, relative_error, run, scores_of

import jaxprune as jp
from jaxprune.deploy.stored_state import stored_state


@pytest.mark.slow
@pytest.mark.parametrize("name", ZOO)
def test_a_pruned_network_is_saved_loaded_and_exported(name, tmp_path):
    model, structure, inputs = case_of(name)
    plan = jp.plan(model, scores_of(structure), inputs, kept_fraction=0.5)
    attributes = attributes_of(structure, plan.kept)
    smaller = jp.slim(model, plan, attributes=attributes)

    jp.save(smaller, tmp_path / "net", plan=plan, attributes=attributes)
    loaded = jp.load(tmp_path / "net", factory=ZOO[name].small)
    saved, found = stored_state(smaller), stored_state(loaded)
    assert (saved.random, saved.values, saved.arrays.keys()) == (
        found.random,
        found.values,
        found.arrays.keys(),
    )
    for path, array in saved.arrays.items():
        assert (array.dtype, array.shape, array.tobytes()) == (
            found.arrays[path].dtype,
            found.arrays[path].shape,
            found.arrays[path].tobytes(),
        )

    exported = jax_export.deserialize(bytearray(jp.export(loaded, inputs)))
    assert exported.platforms == ("cpu", "cuda", "tpu") and str(exported.in_avals[0].shape[0]) == "b"
    outputs = jax.device_get(exported.call(*(inputs if isinstance(inputs, tuple) else (inputs,))))
    assert relative_error(outputs, run(smaller, inputs, QUICK)) < 1e-5

"""Importing jaxprune is cheap: it starts no device work and loads nothing that only a report needs."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

# Loads the dependencies, then jaxprune; prints what jaxprune itself added.
PROBE = """
import json, sys, time
import chex, flax, jax, numpy, optax, rich
import rich.console, rich.live, rich.table
import orbax.checkpoint
from flax import nnx
from jax._src import xla_bridge
before, start = set(sys.modules), time.process_time()
import jaxprune
seconds = time.process_time() - start  # of this process: a busy machine does not count
print(json.dumps({
    "seconds": seconds,
    "added": sorted({name.split(".")[0] for name in set(sys.modules) - before}),
    "loaded": sorted({name.split(".")[0] for name in sys.modules}),
    "device_work": xla_bridge.backends_are_initialized(),
}))
"""


@pytest.fixture(scope="module")
def probe(root) -> dict:
    done = subprocess.run(
        [sys.executable, "-c", PROBE], capture_output=True, text=True, cwd=root, timeout=120, check=True
    )
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    "name", ["tensorflow", "tensorflow_datasets", "grain", "matplotlib", "sympy", "pandas", "torch"]
)
def test_importing_jaxprune_does_not_load(name, probe):
    assert name not in probe["loaded"]


def test_importing_jaxprune_starts_no_device_work(probe):
    assert not probe["device_work"]


def test_importing_jaxprune_loads_only_itself_and_the_standard_library(probe):
    foreign = set(probe["added"]) - {"jaxprune"} - set(sys.stdlib_module_names)
    # Parts of packages that are loaded already count as theirs (names in `added` are top-level packages).
    assert foreign <= {"jax", "jaxlib", "flax", "optax", "chex", "numpy", "orbax", "rich"}, sorted(foreign)


def test_importing_jaxprune_adds_little_to_its_dependencies(probe):
    # The target is 0.3 s on an idle machine; the bound leaves room for a slow one.
    assert probe["seconds"] < 1.0, f"import jaxprune took {probe['seconds']:.2f} s over its dependencies"

"""What every test gets: strict broadcasting, a compilation cache, Hypothesis without deadlines, a key."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# Before JAX is imported: sub-processes that tests start inherit both, and so do the workers of pytest-xdist.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".jax_cache"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")

import jax
import pytest
from hypothesis import HealthCheck, settings

# [C] + [N, C] raises everywhere: Flax, Optax and Orbax live under it, and an unmeant broadcast is found.
jax.config.update("jax_numpy_rank_promotion", "raise")

# A first call compiles, so no deadline. The same examples every time: a red run can be repeated.
settings.register_profile(
    "default",
    deadline=None,
    max_examples=50,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
)
# HYPOTHESIS_PROFILE=explore looks for new counterexamples.
settings.register_profile("explore", settings.get_profile("default"), derandomize=False, max_examples=1000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


@pytest.fixture
def key() -> jax.Array:
    """A typed key, the same in every test."""
    return jax.random.key(0)


@pytest.fixture(scope="session")
def root() -> Path:
    """The folder that holds pyproject.toml."""
    return ROOT

"""What every test gets: strict broadcasting, cheap compilation, a cache of it, Hypothesis without deadlines, a key."""

from __future__ import annotations

import gc
import os
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# Before JAX is imported: sub-processes that tests start inherit these, and so do the workers of pytest-xdist.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".jax_cache"))
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.02"  # smaller ones are not worth a file
# Most time of the suite is XLA's: optimising code that runs once. A small program takes a third of the time without.
CHEAP_COMPILATION = "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
os.environ["XLA_FLAGS"] = f"{CHEAP_COMPILATION} {os.environ.get('XLA_FLAGS', '')}".strip()

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

collect_ignore = ["golden/write_pretrained.py"]
"""Needs PyTorch and libraries on it."""

MAX_COMPILATIONS = 8_600
"""Programs that the fast suite may compile or read from the cache, over all workers; see `pytest_sessionfinish`."""

_num_compiled = {"here": 0, "in workers": 0}


@pytest.fixture
def key() -> jax.Array:
    """A typed key, the same in every test."""
    return jax.random.key(0)


@pytest.fixture(scope="session")
def bases_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder where all tests of a process find the base networks that one of them has trained."""
    return tmp_path_factory.mktemp("bases")


@pytest.fixture(scope="session")
def root() -> Path:
    """The folder that holds pyproject.toml."""
    return ROOT


def pytest_configure(config: pytest.Config) -> None:
    """Counts programs from now on, and looks for garbage more seldom."""

    def count(event: str, duration: float, **details: object) -> None:
        _num_compiled["here"] += event == "/jax/core/compile/backend_compile_duration"

    jax.monitoring.register_event_duration_secs_listener(count)
    gc.set_threshold(
        50_000, 50, 100
    )  # traced programs are many small objects, most of them alive until the end


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: object, error: object) -> None:
    """Adds what a worker of pytest-xdist has compiled."""
    _num_compiled["in workers"] += getattr(node, "workeroutput", {}).get("num_compiled", 0)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fails a run that compiles more than it may: compiling is what makes the suite slow, and it creeps up unseen."""
    if hasattr(session.config, "workeroutput"):  # a worker: the process that started it has the sum
        session.config.workeroutput["num_compiled"] = _num_compiled["here"]
    elif sum(_num_compiled.values()) > MAX_COMPILATIONS and "not slow" in session.config.option.markexpr:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Says how much was compiled, and what to do where that is too much."""
    total = sum(_num_compiled.values())
    terminalreporter.write_line(f"{total} programs compiled or read from the cache")
    if total > MAX_COMPILATIONS:
        terminalreporter.write_line(
            f"The fast suite may compile {MAX_COMPILATIONS} programs: let tests share compiled ones (--durations=50), "
            "or raise MAX_COMPILATIONS in tests/conftest.py and say why."
        )

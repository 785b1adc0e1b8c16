"""Tests in seconds that the devices of this machine compute: each part of a run once, on a tiny network.

A test that fails is named with what to do, and one that does not end is given up. So a job learns within seconds,
not after an hour, that a driver is too old or that another process holds the device.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from importlib import metadata
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, PartitionSpec

from jaxprune.accelerators import Found, find_accelerator, old_driver
from jaxprune.language.parsing import parse
from jaxprune.nets.small_nets import PlainConvNet
from jaxprune.observation.operands import Operands
from jaxprune.scoring.populations import score_population
from jaxprune.scoring.scorer import default_backend
from jaxprune.training.loop import Examples, batch_order, split_network
from jaxprune.training.recipes import RECIPES
from jaxprune.training.trainer import Job, Trainer

LIMIT_SECONDS = 120.0
"""A test that takes longer is given up; compiling for a TPU for the first time takes a part of it."""

PLUGINS: Mapping[str, str] = {"cuda": "jax-cuda13-plugin", "tpu": "libtpu"}
"""Extra -> the package by which JAX finds the accelerator."""

_BUSY = (
    "another process may hold the device: look with nvidia-smi, or with lsof /dev/accel* /dev/vfio/* on a TPU, and end "
    "it or wait"
)
_LEAST_EXAMPLES = 8


class Check(NamedTuple):
    """The result of one test."""

    name: str
    seconds: float
    detail: str
    """What was computed where, if the test passed; else empty."""
    problem: str = ""
    """What went wrong; empty if the test passed."""
    remedy: str = ""
    """What to do about it; empty for a test that was not tried."""
    ended: bool = True
    """False for a test that was given up and may still hold a thread."""

    @property
    def passed(self) -> bool:
        """Whether the test passed."""
        return not self.problem


class DeviceError(RuntimeError):
    """Something that a device should do and did not.

    Args:
      problem: what was needed, and what came.
      remedy: what to do.
    """

    def __init__(self, problem: str, remedy: str) -> None:
        super().__init__(problem)
        self.remedy = remedy


def self_test(*, limit_seconds: float = LIMIT_SECONDS) -> tuple[Check, ...]:
    """Runs every test of `TESTS`, one after the other.

    Args:
      limit_seconds: a test that takes longer is given up, and those after it are not tried.

    Returns:
      One result per test, in the order of `TESTS`. Without devices, and after a test that does not end, the others
      fail without being tried.

    Example:
      >>> [check.name for check in self_test()]
      ['devices', 'jit', 'scoring', 'fine-tuning', 'collective']
    """
    checks: list[Check] = []
    for name, (test, remedy) in TESTS.items():
        first = next(
            (check for check in checks if check.problem and (check.name == "devices" or not check.ended)),
            None,
        )
        if first:
            checks.append(Check(name, 0.0, "", f"not tried, because {first.name} failed"))
        else:
            checks.append(_within(limit_seconds, name, test, remedy))
    return tuple(checks)


def tiny_trainer() -> Trainer:
    """Returns a trainer of a tiny network with the settings of a run: its strategy and chunk are those of a search."""
    images = np.linspace(-1.0, 1.0, _LEAST_EXAMPLES * 64, dtype=np.float32).reshape(_LEAST_EXAMPLES, 8, 8, 1)
    examples = Examples(jnp.asarray(images), jnp.arange(_LEAST_EXAMPLES, dtype=jnp.int32))
    recipe = RECIPES["adam_short"].replace(epochs=1, batch_size=_LEAST_EXAMPLES)
    return Trainer(PlainConvNet(nnx.Rngs(0), widths=(2, 2, 4)), recipe, examples, examples)


def is_cpu_chosen() -> bool:
    """Returns whether the user said that the CPU is meant, with `JAX_PLATFORMS=cpu` for instance."""
    return (jax.config.values.get("jax_platforms") or "").split(",")[0] == "cpu"


def check_devices() -> str:
    """Finds devices, and an accelerator where the machine has one.

    Returns:
      What was found.

    Raises:
      DeviceError: if the machine has an accelerator, JAX may use it, and does not.
    """
    devices, backend = jax.local_devices(), jax.default_backend()
    found = find_accelerator() if backend == "cpu" and not is_cpu_chosen() else None
    if found:
        raise DeviceError(
            f"there is {found.evidence}, but JAX computes on the CPU{_why(found)}", _how_to_use(found)
        )
    return f"{len(devices)} x {devices[0].device_kind} ({backend})"


def check_jit() -> str:
    """Multiplies two matrices of ones in a compiled program.

    Returns:
      Where.

    Raises:
      DeviceError: if the product is wrong.
    """
    size = 64
    ones = jnp.ones((size, size))
    product = jax.jit(jnp.matmul)(ones, ones)
    _compare("a product of matrices of ones", np.asarray(product), np.full((size, size), size), "jit")
    return f"on {next(iter(product.devices())).device_kind}"


def check_scoring() -> str:
    """Scores a layer by a formula of its weights and one of its activations.

    Returns:
      Where a search scores.

    Raises:
      DeviceError: if scores differ from those that NumPy computes.
    """
    features = np.arange(24, dtype=np.float32).reshape(6, 4) / 8
    kernel = np.array([[1, -2, 3, 0], [0.5, 2, -1, 4]], np.float32)
    operands = Operands.from_arrays(features=features, labels=np.arange(6) % 2, kernel=kernel)
    scores = score_population([parse("sum(abs(WI))"), parse("mean(X)")], operands)
    expected = np.stack([np.abs(kernel).sum(axis=0), features.mean(axis=0)])
    _compare("scores of two formulas", scores, expected, "scoring")
    return "by NumPy" if default_backend() == "numpy" else "on the device"


def check_finetuning() -> str:
    """Trains the tiny network for one step.

    Returns:
      By which strategy.

    Raises:
      DeviceError: if weights are not finite or did not change.
    """
    trainer = tiny_trainer()
    weights = split_network(trainer.model)[1]
    job = Job(weights, batch_order(jax.random.key(0), _LEAST_EXAMPLES, trainer.recipe), jax.random.key(1))
    trained = next(iter(trainer.run([job]))).weights
    before, after = ([np.asarray(leaf) for leaf in jax.tree.leaves(tree)] for tree in (weights, trained))
    if not all(np.isfinite(leaf).all() for leaf in after):
        raise DeviceError("a training step needs to give finite weights, got others", TESTS["fine-tuning"][1])
    if all(np.array_equal(*pair) for pair in zip(before, after, strict=True)):
        raise DeviceError(
            "a training step needs to change weights, got the same ones", TESTS["fine-tuning"][1]
        )
    return f"one step, by {trainer.chosen}"


def check_collective() -> str:
    """Adds up one number of each local device.

    Returns:
      Over how many devices.

    Raises:
      DeviceError: if the sum is wrong.
    """
    devices = jax.local_devices()
    split = PartitionSpec("device")
    total = jax.shard_map(
        partial(jax.lax.psum, axis_name="device"),
        mesh=Mesh(np.array(devices), ("device",)), in_specs=split, out_specs=PartitionSpec(),
    )  # fmt: skip
    numbers = np.arange(1, len(devices) + 1, dtype=np.float32)
    found = np.asarray(jax.jit(total)(numbers))
    _compare(f"a sum over {len(devices)} devices", found, np.array([numbers.sum()]), "collective")
    return f"a sum over {len(devices)} device{'s' if len(devices) > 1 else ''}"


TESTS: dict[str, tuple[Callable[[], str], str]] = {
    "devices": (
        check_devices,
        f"see that driver and packages fit (make setup ACCELERATOR=cuda or tpu); {_BUSY}; JAX_PLATFORMS=cpu computes "
        "on the CPU",
    ),
    "jit": (
        check_jit,
        "unset XLA_FLAGS, empty the folder of JAX_COMPILATION_CACHE_DIR, and try again; install the versions of "
        "constraints.txt: make setup",
    ),
    "scoring": (
        check_scoring,
        "install the versions of constraints.txt (make setup), and report it with this output",
    ),
    "fine-tuning": (
        check_finetuning,
        "unset XLA_FLAGS, install the versions of constraints.txt (make setup), and report it with this output",
    ),
    "collective": (
        check_collective,
        "NCCL_DEBUG=INFO says what GPUs wait for; to compute without, show one device alone, with "
        "CUDA_VISIBLE_DEVICES=0 for instance",
    ),
}
"""Name of a test -> what runs it, and what to do if it fails."""


def _within(seconds: float, name: str, test: Callable[[], str], remedy: str) -> Check:
    """Runs a test on a thread of its own, which is left behind if it does not end."""
    results: list[Check] = []
    start = time.perf_counter()

    def run() -> None:
        try:
            detail, problem, advice = test(), "", ""
        except Exception as error:  # of drivers, compilers and libraries: any
            detail, problem = "", str(error).strip().partition("\n")[0] or type(error).__name__
            advice = error.remedy if isinstance(error, DeviceError) else remedy
            if "RESOURCE_EXHAUSTED" in str(error) or "out of memory" in str(error).lower():
                advice = f"{_BUSY}; XLA_PYTHON_CLIENT_PREALLOCATE=false lets two processes share a GPU"
        results.append(Check(name, time.perf_counter() - start, detail, problem, advice))

    thread = threading.Thread(target=run, name=f"test of {name}", daemon=True)
    thread.start()
    thread.join(seconds)
    if results:
        return results[0]
    return Check(
        name,
        time.perf_counter() - start,
        "",
        f"did not end within {seconds:g} s",
        f"{_BUSY}; {remedy}",
        ended=False,
    )


def _compare(what: str, found: np.ndarray, expected: np.ndarray, name: str) -> None:
    """Refuses a wrong result of a test."""
    if found.shape != expected.shape or not np.allclose(found, expected, rtol=1e-3):
        raise DeviceError(
            f"{what} needs to be {expected.ravel()[:4].tolist()}, got {found.ravel()[:4].tolist()}",
            TESTS[name][1],
        )


def _why(found: Found) -> str:
    """The reason why JAX does not use an accelerator, as it gives it itself; "" if it gives none."""
    if not _is_installed(found):
        return f", because the extra {found.kind} is not installed"
    try:
        jax.devices(found.kind)
    except RuntimeError as error:
        return f": {str(error).partition(chr(10))[0]}"
    return ""


def _how_to_use(found: Found) -> str:
    """What to do where JAX does not use an accelerator."""
    otherwise = "JAX_PLATFORMS=cpu says that the CPU is meant"
    if not _is_installed(found):
        return (
            f"make setup ACCELERATOR={found.kind}, or pip install 'jaxprune[{found.kind}]' in this environment; "
            f"{otherwise}"
        )
    old = old_driver() if found.kind == "cuda" else None
    return f"{old or _BUSY}; {otherwise}"


def _is_installed(found: Found) -> bool:
    """Whether JAX's package for an accelerator is there."""
    return any(True for _ in metadata.distributions(name=PLUGINS[found.kind]))

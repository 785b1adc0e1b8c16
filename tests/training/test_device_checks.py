"""The self-test passes where devices compute, and names each part that does not, with what to do."""

from __future__ import annotations

import threading

import jax
import numpy as np
import pytest

from jaxprune.accelerators import Found
from jaxprune.training import device_checks
from jaxprune.training.device_checks import TESTS, DeviceError, self_test
from jaxprune.training.trainer import Trained, Trainer

NAMES = ["devices", "jit", "scoring", "fine-tuning", "collective"]


@pytest.fixture
def alone(monkeypatch):
    """Runs one test of the self-test, without the others."""

    def run(name, **keywords):
        monkeypatch.setattr(device_checks, "TESTS", {name: TESTS[name]})
        return self_test(**keywords)[0]

    return run


def test_every_test_passes_on_this_machine():
    checks = self_test()
    assert [check.name for check in checks] == NAMES
    assert not [check for check in checks if check.problem or check.remedy]
    assert all(check.passed and check.ended and check.seconds > 0 and check.detail for check in checks)
    details = {check.name: check.detail for check in checks}
    assert details["devices"] == "1 x cpu (cpu)"
    assert details["fine-tuning"] == "one step, by scan"
    assert details["collective"] == "a sum over 1 device"


GPU, TPU = Found("cuda", "an NVIDIA GPU at /dev/nvidia0"), Found("tpu", "a TPU at /dev/accel0")


@pytest.mark.parametrize(
    ("found", "is_installed", "old", "problem", "remedy"),
    [
        (GPU, False, None, "because the extra cuda is not installed", "make setup ACCELERATOR=cuda"),
        (GPU, True, None, "on the CPU: Unknown backend cuda", "another process may hold the device"),
        (GPU, True, "CUDA 13 needs 580", "on the CPU: Unknown backend cuda", "CUDA 13 needs 580"),
        (TPU, False, None, "because the extra tpu is not installed", "pip install 'jaxprune[tpu]'"),
        (TPU, True, None, "there is a TPU at /dev/accel0, but JAX computes on the CPU", "lsof /dev/accel*"),
    ],
)
def test_an_accelerator_that_jax_does_not_use_is_named(
    alone, monkeypatch, found, is_installed, old, problem, remedy
):
    monkeypatch.setattr(device_checks, "is_cpu_chosen", lambda: False)
    monkeypatch.setattr(device_checks, "find_accelerator", lambda: found)
    monkeypatch.setattr(device_checks, "_is_installed", lambda found: is_installed)
    monkeypatch.setattr(device_checks, "old_driver", lambda: old)

    def devices(kind):
        raise RuntimeError(f"Unknown backend {kind}\nand more")

    monkeypatch.setattr(jax, "devices", devices)
    check = alone("devices")
    assert not check.passed and problem in check.problem and "\n" not in check.problem
    assert remedy in check.remedy and "JAX_PLATFORMS=cpu says that the CPU is meant" in check.remedy


def test_a_cpu_that_was_asked_for_is_no_fault(alone, monkeypatch):
    monkeypatch.setattr(device_checks, "find_accelerator", lambda: GPU)
    monkeypatch.setattr(device_checks, "is_cpu_chosen", lambda: True)
    assert alone("devices").passed


def test_without_devices_nothing_else_is_tried(monkeypatch):
    def local_devices():
        raise RuntimeError("Unable to initialize backend 'tpu': the TPU is already in use by process 7")

    monkeypatch.setattr(jax, "local_devices", local_devices)
    first, *others = self_test()
    assert first.problem.startswith("Unable to initialize backend 'tpu'") and "lsof" in first.remedy
    assert [check.name for check in others] == NAMES[1:]
    assert {check.problem for check in others} == {"not tried, because devices failed"}


def wrong_scores(functions, operands):
    return np.zeros((2, 4))


def trainer_that_gives(change):
    def run(self, jobs):
        for job in jobs:
            yield Trained(jax.tree.map(change, job.weights), np.zeros(1), 0.0)

    return run


def no_network(x, axis_name):
    raise RuntimeError("NCCL operation failed: unhandled system error")


@pytest.mark.parametrize(
    ("name", "target", "attribute", "fault", "problem", "remedy"),
    [
        ("jit", jax.numpy, "matmul", lambda a, b: a, r"of ones needs to be \[64, 64", "unset XLA_FLAGS"),
        ("scoring", device_checks, "score_population", wrong_scores, r"got \[0.0, 0.0", "make setup"),
        ("fine-tuning", Trainer, "run", trainer_that_gives(lambda w: w), "got the same ones", "report it"),
        ("fine-tuning", Trainer, "run", trainer_that_gives(lambda w: w * np.nan), "finite weights", "report it"),
        ("collective", jax.lax, "psum", no_network, "NCCL operation failed", "NCCL_DEBUG=INFO"),
        ("collective", jax.lax, "psum", lambda x, axis_name: 2 * x, r"sum over 1 devices? needs", "one device alone"),
    ],
    ids="jit scoring unchanged nan failing-collective wrong-sum".split(),
)  # fmt: skip
def test_each_part_that_fails_is_named(alone, monkeypatch, name, target, attribute, fault, problem, remedy):
    monkeypatch.setattr(target, attribute, fault)
    if name == "collective":  # one device has its value whole
        kept = jax.shard_map
        monkeypatch.setattr(jax, "shard_map", lambda f, **k: kept(f, check_vma=False, **k))
    check = alone(name)
    assert check.name == name and not check.passed and check.ended and not check.detail
    with pytest.raises(DeviceError, match=problem):
        raise DeviceError(check.problem, check.remedy)
    assert remedy in check.remedy


def test_memory_that_another_process_holds_is_told(alone, monkeypatch):
    def full(functions, operands):
        raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 3 bytes.\ndump")

    monkeypatch.setattr(device_checks, "score_population", full)
    check = alone("scoring")
    assert check.problem == "RESOURCE_EXHAUSTED: Out of memory allocating 3 bytes."
    assert "XLA_PYTHON_CLIENT_PREALLOCATE=false" in check.remedy


def test_a_test_that_does_not_end_is_given_up(monkeypatch):
    ending = threading.Event()
    tests = {
        "devices": (lambda: "one", ""),
        "jit": (lambda: str(ending.wait()), "wait"),
        "scoring": TESTS["scoring"],
    }
    monkeypatch.setattr(device_checks, "TESTS", tests)
    devices, jit, scoring = self_test(limit_seconds=0.1)
    ending.set()
    assert devices.passed and not jit.ended and jit.problem == "did not end within 0.1 s"
    assert jit.remedy.startswith("another process may hold the device") and jit.remedy.endswith("wait")
    assert scoring.ended and scoring.problem == "not tried, because jit failed"

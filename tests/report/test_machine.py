"""The description of a machine: what is installed, prepared, written and used, on faked machines."""

from __future__ import annotations

import json
import re
import tomllib
from collections import namedtuple

import jax
import pytest
from prepared_data import write_prepared

from jaxprune.accelerators import Found
from jaxprune.report import machine as machine_module
from jaxprune.report.machine import EXTRAS, checks_text, describe_machine, machine_text
from jaxprune.training.device_checks import Check

FakeDevice = namedtuple("FakeDevice", "id device_kind platform memory")
FakeDevice.memory_stats = lambda self: self.memory


def test_every_extra_is_known_by_packages_that_it_asks_for(root):
    stated = tomllib.loads((root / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert sorted(EXTRAS) == sorted(stated)
    for extra, names in EXTRAS.items():
        if extra in ("cuda", "tpu"):  # which ask for extras of JAX
            continue
        text = " ".join(stated[extra] + (stated["data"] if "jaxprune[data]" in stated[extra] else []))
        asked = set(re.findall(r"(?:^| )([\w-]+)(?=[<>=\[; ])", text))
        assert {name for both in names for name in both.split("|")} <= asked, extra


def test_this_machine_as_json(tmp_path):
    found = json.loads(json.dumps(describe_machine(data_dir=tmp_path).to_json()))
    assert sorted(found) == [
        "accelerator", "compilation_cache", "data_directory", "devices", "extras", "host", "places", "prepared",
        "remarks", "run", "versions",
    ]  # fmt: skip
    assert found["versions"]["jax"] == jax.__version__ and None not in found["versions"].values()
    assert found["extras"]["dev"] is True and found["extras"]["tpu"] is False
    assert found["devices"] == [{"id": 0, "kind": "cpu", "platform": "cpu", "memory_bytes": None}]
    assert sorted(found["host"]) == [
        "cores", "memory_bytes", "numpy_threads", "nvidia_driver", "system", "usable_cores",
    ]  # fmt: skip
    assert [place["what"] for place in found["places"]][:2] == ["runs", "data"]
    run = found["run"]
    assert (run["backend"], run["scoring"], run["batching"], run["chunk"]) == ("cpu", "numpy", "scan", 1)
    assert 1 <= run["threads"] <= found["host"]["usable_cores"] <= found["host"]["cores"]


@pytest.fixture
def gpu_box(monkeypatch):
    devices = [FakeDevice(i, "NVIDIA H100", "gpu", {"bytes_limit": 60 << 30}) for i in range(8)]
    monkeypatch.setattr(jax, "local_devices", lambda: devices)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    evidence = Found("cuda", "an NVIDIA GPU at /dev/nvidia0")
    monkeypatch.setattr(machine_module, "find_accelerator", lambda: evidence)
    monkeypatch.setattr(machine_module, "driver_version", lambda: "580.95.05")


def test_a_gpu_box_trains_in_chunks(gpu_box, tmp_path):
    machine = describe_machine(data_dir=tmp_path)
    assert machine.to_json()["accelerator"] == {"kind": "cuda", "evidence": "an NVIDIA GPU at /dev/nvidia0"}
    shown = machine_text(machine)
    assert re.search(r"devices +8 x NVIDIA H100 \(gpu\), 60.0 GiB memory each", shown)
    run = r"a run +on gpu: scores by device, trains by vmap in chunks that it measures first$"
    assert re.search(run, shown, re.MULTILINE)
    assert "NVIDIA driver 580.95.05" in shown and "accelerator  an NVIDIA GPU at /dev/nvidia0" in shown


def test_without_devices_the_rest_is_told(monkeypatch, tmp_path):
    def local_devices():
        raise AssertionError("is not asked")

    monkeypatch.setattr(jax, "local_devices", local_devices)
    machine = describe_machine(data_dir=tmp_path, has_devices=False)
    assert machine.devices == () and machine.run is None
    shown = machine_text(machine)
    assert re.search(r"devices +none", shown) and "a run" not in shown and "jaxlib" in shown


def test_prepared_sets_are_listed_and_damaged_ones_noted(tmp_path):
    write_prepared("mnist", tmp_path)
    (write_prepared("cifar10", tmp_path) / "features.json").unlink()
    (tmp_path / "jaxprune_cache" / "arrays").mkdir(parents=True)
    machine = describe_machine(data_dir=tmp_path)
    assert [(one.name, one.num_examples) for one in machine.prepared] == [
        ("tfds:cifar10", None),
        ("tfds:mnist", 120),
    ]
    assert any("tfds:cifar10 needs features.json" in remark for remark in machine.remarks)
    shown = machine_text(machine)
    assert f"{tmp_path}: 2 prepared sets" in shown and "tfds:mnist, 120 images" in shown
    assert "tfds:cifar10 (see note)" in shown


def test_what_disturbs_a_long_run_is_noted(monkeypatch, tmp_path):
    def check_writable(folder):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(machine_module, "check_writable", check_writable)
    monkeypatch.setattr(machine_module, "free_bytes", lambda folder: 5 << 20)
    cache = jax.config.values.get("jax_compilation_cache_dir")
    jax.config.update("jax_compilation_cache_dir", None)
    try:
        remarks = describe_machine(data_dir=tmp_path, has_devices=False).remarks
    finally:
        jax.config.update("jax_compilation_cache_dir", cache)
    assert remarks[0].startswith("each run compiles anew: name a folder")
    assert "runs: cannot write to runs: Permission denied" in remarks
    assert "data: cannot write" not in " ".join(remarks)
    assert f"data: only 5 MiB free on the disk of {tmp_path}" in remarks


@pytest.mark.parametrize("is_chosen", [True, False])
def test_an_extra_that_does_nothing_is_noted_unless_the_cpu_is_meant(monkeypatch, tmp_path, is_chosen):
    monkeypatch.setattr(machine_module, "_version", lambda name: None if "cuda" in name else "1.0")
    monkeypatch.setattr(machine_module, "is_cpu_chosen", lambda: is_chosen)
    remarks = describe_machine(data_dir=tmp_path).remarks
    noted = [remark for remark in remarks if "extra tpu is installed, but JAX found nothing" in remark]
    assert len(noted) == (not is_chosen) and not [remark for remark in remarks if "extra cuda" in remark]


def test_a_bucket_is_no_data_directory():
    with pytest.raises(ValueError, match=r"needs to be a folder, got gs://bucket\. Mount the bucket"):
        describe_machine(data_dir="gs://bucket")


def test_what_to_do_stands_below_a_test_that_failed():
    good, bad = (
        Check("jit", 0.31, "on cpu"),
        Check("collective", 2.0, "", "NCCL failed", "look at the network"),
    )
    assert checks_text((good, bad)).splitlines() == [
        "jit         ok      0.3 s  on cpu",
        "collective  FAILED  2.0 s  NCCL failed",
        "  what to do: look at the network",
    ]

"""What a run finds on this machine: devices, versions, prepared sets, the compilation cache, cores and disk.

`jaxprune doctor` prints it, and joins it with the tests of `training/device_checks.py`.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path

import jax
from threadpoolctl import threadpool_info

from jaxprune._version import __version__
from jaxprune.accelerators import Found, driver_version, find_accelerator
from jaxprune.datasets.preparation import free_bytes, readable_bytes
from jaxprune.datasets.prepared_folders import data_directory, find_prepared, prepared_names
from jaxprune.files import check_writable
from jaxprune.scoring.scorer import default_backend
from jaxprune.text import columns, duration
from jaxprune.training.device_checks import Check, is_cpu_chosen, tiny_trainer
from jaxprune.training.trainer import default_workers

EXTRAS: Mapping[str, tuple[str, ...]] = {
    "cuda": ("jax-cuda13-plugin",),
    "tpu": ("libtpu",),
    "data": (
        "tensorflow-datasets",
        "array_record",
        "grain",
        "simplejpeg",
        "opencv-python-headless",
        "pillow",
    ),
    "prepare": ("tensorflow-datasets", "array_record", "tensorflow-cpu|tensorflow"),
    "deploy": ("safetensors", "flatbuffers"),
    "onnx": ("jax2onnx",),
    "tflite": ("tensorflow-cpu|tensorflow",),
    "report": ("matplotlib", "sympy", "pandas"),
    "dev": ("pytest", "hypothesis", "mypy", "ruff"),
}
"""Extra of the package -> distributions by which it is known; of those with | between them one suffices."""

LEAST_FREE = 1 << 30
"""Bytes of free disk below which a remark says so."""

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint")
_PLUGINS = ("jax-cuda13-plugin", "jax-cuda12-plugin", "libtpu")


@dataclass(frozen=True)
class Device:
    """One local device; memory is what JAX may use of it, None where the backend does not tell, as on a CPU."""

    id: int
    kind: str
    platform: str
    memory_bytes: int | None


@dataclass(frozen=True)
class Host:
    """Cores of the machine and those this process may use, threads of one NumPy product, and memory."""

    system: str
    cores: int
    usable_cores: int
    numpy_threads: int | None
    memory_bytes: int | None
    nvidia_driver: str | None


@dataclass(frozen=True)
class PreparedName:
    """A set in the data directory; `problem` is empty if it can be read."""

    name: str
    num_examples: int | None
    problem: str


@dataclass(frozen=True)
class Place:
    """A folder that a run writes, which need not exist; `problem` is empty if it can be written."""

    what: str
    path: str
    free_bytes: int
    problem: str


@dataclass(frozen=True)
class RunSettings:
    """What a search would use on this machine for a network of this package, without options.

    Attributes:
      backend: of JAX.
      scoring: "numpy" or "device".
      batching: how networks that are fine-tuned are batched.
      chunk: members of one program; None with "vmap", where a run measures it when it starts, else 1.
      threads: that fine-tune at once.
    """

    backend: str
    scoring: str
    batching: str
    chunk: int | None
    threads: int


@dataclass(frozen=True)
class Machine:
    """A machine as a run finds it.

    Attributes:
      versions: of Python, this package and those below it; None for one that is missing.
      extras: extra of this package -> whether it is installed.
      accelerator: what the machine has, seen from its files.
      devices: the local devices of JAX; none if it has none, or they were not asked for.
      host: cores, threads, memory.
      data_directory: where prepared sets are looked for.
      prepared: the sets in it.
      compilation_cache: the folder of compiled programs, None without one.
      places: folders that are written.
      run: what a search would use; None without devices.
      remarks: what to know before a long run.
    """

    versions: Mapping[str, str | None]
    extras: Mapping[str, bool]
    accelerator: Found | None
    devices: tuple[Device, ...]
    host: Host
    data_directory: str
    prepared: tuple[PreparedName, ...]
    compilation_cache: str | None
    places: tuple[Place, ...]
    run: RunSettings | None
    remarks: tuple[str, ...]

    def to_json(self) -> dict[str, object]:
        """Returns it as plain data."""
        accelerator = None if self.accelerator is None else self.accelerator._asdict()
        return {**asdict(self), "accelerator": accelerator}


def describe_machine(*, data_dir: str | os.PathLike[str] | None = None, has_devices: bool = True) -> Machine:
    """Describes this machine; it asks no network.

    Args:
      data_dir: the data directory, see `datasets.prepared_folders.data_directory`.
      has_devices: whether to ask JAX for devices, which may take long or fail where a driver is broken.

    Returns:
      What was found. Things that are missing or damaged are part of it, not errors.

    Raises:
      ValueError: if the data directory is the address of a bucket.

    Example:
      >>> machine = describe_machine()
      >>> len(machine.devices) == len(jax.local_devices()), machine.run.backend == jax.default_backend()
      (True, True)
    """
    folder = data_directory(data_dir)
    cache = jax.config.values.get("jax_compilation_cache_dir") or None
    prepared = _prepared(folder)
    wanted = {"runs": Path("runs"), "data": folder, **({"compilation cache": Path(cache)} if cache else {})}
    places = tuple(_place(what, path) for what, path in wanted.items())
    return Machine(
        {
            "jaxprune": __version__,
            "python": platform.python_version(),
            **{name: _version(name) for name in _PACKAGES},
            **{name: version for name in _PLUGINS if (version := _version(name)) is not None},
        },
        {
            extra: all(any(map(_version, name.split("|"))) for name in names)
            for extra, names in EXTRAS.items()
        },
        find_accelerator(),
        _devices() if has_devices else (),
        _host(),
        str(folder),
        prepared,
        cache,
        places,
        _run_settings() if has_devices else None,
        (*(_unused_extras() if has_devices else ()), *_remarks(cache, places, prepared)),
    )  # fmt: skip


def machine_text(machine: Machine) -> str:
    """Returns the description of a machine as aligned lines.

    Args:
      machine: of `describe_machine`.
    """
    host = machine.host
    installed = [extra for extra, is_there in machine.extras.items() if is_there]
    rows = [
        ("versions", ", ".join(f"{name} {version or 'missing'}" for name, version in machine.versions.items())),
        ("extras", ", ".join(installed) or "none"),
        ("accelerator", machine.accelerator.evidence if machine.accelerator else "none seen"),
        *(("devices", text) for text in _device_texts(machine.devices)),
        (
            "host",
            f"{host.system}, {host.usable_cores} of {host.cores} cores, {_bytes(host.memory_bytes)} memory"
            + (f", {host.numpy_threads} threads in NumPy" if host.numpy_threads else "")
            + (f", NVIDIA driver {host.nvidia_driver}" if host.nvidia_driver else ""),
        ),
        ("data", f"{machine.data_directory}: {_count(len(machine.prepared), 'prepared set')}"),
        *(("", _prepared_text(prepared)) for prepared in machine.prepared),
        ("cache", machine.compilation_cache or "none"),
        *(
            ("disk", f"{place.what}: {place.path}, {readable_bytes(place.free_bytes)} free")
            for place in machine.places
        ),
    ]  # fmt: skip
    if run := machine.run:
        chunks = " in chunks that it measures first" if run.chunk is None else ""
        threads = f", {run.threads} at once" if run.threads > 1 else ""
        rows.append(
            ("a run", f"on {run.backend}: scores by {run.scoring}, trains by {run.batching}{chunks}{threads}")
        )
    rows += [("note", remark) for remark in machine.remarks]
    return columns(rows)


def checks_text(checks: tuple[Check, ...]) -> str:
    """Returns the results of tests as aligned lines, with what to do under each that failed.

    Args:
      checks: of `training.device_checks.self_test`.
    """
    table = columns(
        [(c.name, "ok" if c.passed else "FAILED", duration(c.seconds), c.detail or c.problem) for c in checks]
    )
    lines = []
    for check, line in zip(checks, table.splitlines(), strict=True):
        lines += [line, f"  what to do: {check.remedy}"] if check.remedy else [line]
    return "\n".join(lines)


def _version(name: str) -> str | None:
    """The version of an installed distribution."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _devices() -> tuple[Device, ...]:
    """The local devices."""
    limits = [(device.memory_stats() or {}).get("bytes_limit") for device in jax.local_devices()]
    return tuple(
        Device(device.id, device.device_kind, device.platform, limit)
        for device, limit in zip(jax.local_devices(), limits, strict=True)
    )


def _host() -> Host:
    """Cores, threads and memory."""
    cores = os.cpu_count() or 1
    names = getattr(os, "sysconf_names", {})
    has_memory = "SC_PHYS_PAGES" in names and "SC_PAGE_SIZE" in names
    return Host(
        f"{platform.system()} {platform.machine()}",
        cores,
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else cores,
        max((int(pool["num_threads"]) for pool in threadpool_info()), default=None),
        os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if has_memory else None,
        driver_version(),
    )


def _prepared(folder: Path) -> tuple[PreparedName, ...]:
    """The sets in the data directory."""
    found = []
    try:
        names = prepared_names(folder)
    except OSError as error:
        return (PreparedName("all", None, f"cannot be listed: {error.strerror or error}"),)
    for name in names:
        try:
            found.append(PreparedName(name, sum(find_prepared(name, folder).num_examples.values()), ""))
        except (ImportError, ValueError) as error:
            found.append(PreparedName(name, None, str(error)))
    return tuple(found)


def _place(what: str, path: Path) -> Place:
    """A folder that is written."""
    try:
        check_writable(path.absolute())
        problem = ""
    except OSError as error:
        problem = error.strerror or str(error)
    return Place(what, str(path), free_bytes(path), problem)


def _run_settings() -> RunSettings:
    """What a search uses, asked of the objects that it uses."""
    trainer = tiny_trainer()
    chunk = None if trainer.chosen == "vmap" else 1
    return RunSettings(jax.default_backend(), default_backend(), trainer.chosen, chunk, default_workers())


def _unused_extras() -> list[str]:
    """Extras for accelerators that are installed where JAX computes on the CPU, unless the CPU is meant."""
    if jax.default_backend() != "cpu" or is_cpu_chosen():
        return []
    return [
        f"the extra {extra} is installed, but JAX found nothing that it supports and computes on the CPU"
        for extra in ("cuda", "tpu")
        if any(map(_version, EXTRAS[extra]))
    ]


def _remarks(
    cache: str | None, places: tuple[Place, ...], prepared: tuple[PreparedName, ...]
) -> tuple[str, ...]:
    """What to know before a long run."""
    remarks = []
    if cache is None:
        remarks.append(
            "each run compiles anew: name a folder for compiled programs with JAX_COMPILATION_CACHE_DIR, as make does"
        )
    for place in places:
        if place.problem and place.what != "data":  # which is only read
            remarks.append(f"{place.what}: cannot write to {place.path}: {place.problem}")
        if place.free_bytes < LEAST_FREE:
            remarks.append(
                f"{place.what}: only {readable_bytes(place.free_bytes)} free on the disk of {place.path}"
            )
    remarks += [f"{one.name}: {one.problem}" for one in prepared if one.problem]
    return tuple(remarks)


def _device_texts(devices: tuple[Device, ...]) -> list[str]:
    """One text for each kind of device."""
    alike = dict.fromkeys((device.kind, device.platform, device.memory_bytes) for device in devices)
    return [
        f"{sum((d.kind, d.platform, d.memory_bytes) == one for d in devices)} x {one[0]} ({one[1]}), "
        f"{_bytes(one[2])} memory each"
        for one in alike
    ] or ["none"]


def _count(number: int, what: str) -> str:
    """How many there are of something."""
    return f"{number or 'no'} {what}{'' if number == 1 else 's'}"


def _prepared_text(prepared: PreparedName) -> str:
    """One set; what is wrong with it is a remark."""
    return prepared.name + (
        f", {prepared.num_examples:,} images" if prepared.num_examples is not None else " (see note)"
    )


def _bytes(number: int | None) -> str:
    """A number of bytes that may be unknown."""
    return "unknown" if number is None else readable_bytes(number)

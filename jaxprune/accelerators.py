"""Which accelerator a machine has, seen from its files, and which extra of the package supports it.

`make setup` runs this file before anything is installed, and `jaxprune doctor` compares it with what JAX found. So it
needs nothing but Python, asks no network, and starts no device.
"""

from __future__ import annotations

import contextlib
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

Kind = Literal["cuda", "tpu"]
"""An accelerator, by the name of the extra that supports it."""

PLATFORMS: Mapping[Kind, tuple[str, ...]] = {
    "cuda": ("Linux x86_64", "Linux aarch64"),
    "tpu": ("Linux x86_64",),
}
"""Where JAX has packages for an accelerator."""

LEAST_DRIVER = 580
"""Driver of NVIDIA that CUDA 13 needs, which the extra `cuda` brings."""

_TPU_VENDOR = "0x1ae0"
_TPU_DEVICES = {"0x0027", "0x0056", "0x005e", "0x0062", "0x0063", "0x006f", "0x0076"}
"""PCI devices that are TPUs, v2 to 7x, of JAX 0.10.2; Google's network cards have the same vendor."""

_TPU_VARIABLES = ("TPU_ACCELERATOR_TYPE", "TPU_TOPOLOGY", "TPU_WORKER_ID", "TPU_WORKER_HOSTNAMES", "TPU_NAME")
"""Variables that the makers of TPU machines and containers set; a TPU behind /dev/vfio is told by them."""

_SMI_SECONDS = 20


class Found(NamedTuple):
    """An accelerator of this machine, and by what it was seen."""

    kind: Kind
    evidence: str


def find_accelerator(root: Path = Path("/"), environ: Mapping[str, str] | None = None) -> Found | None:
    """Returns the accelerator of this machine; None if there is none, or JAX has no packages for it here.

    Args:
      root: the folder that holds `dev` and `sys`.
      environ: environment variables, by default those of this process; `PATH` is where `nvidia-smi` is looked for.

    Example:
      >>> find_accelerator(Path("/nowhere"), {"PATH": "/nowhere"})
    """
    environ = os.environ if environ is None else environ
    here = f"{platform.system()} {platform.machine()}"
    seen = (Found("tpu", _tpu(root, environ)), Found("cuda", _gpu(root, environ)))
    return next((found for found in seen if found.evidence and here in PLATFORMS[found.kind]), None)


def driver_version(root: Path = Path("/")) -> str | None:
    """Returns the version of NVIDIA's driver, "580.95.05" say; None where there is none or it cannot be read.

    Args:
      root: the folder that holds `proc`.
    """
    with contextlib.suppress(OSError, UnicodeDecodeError):
        text = (root / "proc/driver/nvidia/version").read_text(encoding="utf-8")
        match = re.search(r"\b(\d{3,}\.\d+(?:\.\d+)*)\b", text)
        return match[1] if match else None
    return None


def old_driver(root: Path = Path("/")) -> str | None:
    """Returns what to do about a driver of NVIDIA that is older than CUDA 13 needs; None if it is not, or not known.

    Args:
      root: the folder that holds `proc`.
    """
    version = driver_version(root)
    if version is None or int(version.partition(".")[0]) >= LEAST_DRIVER:
        return None
    return (
        f"CUDA 13 needs NVIDIA's driver {LEAST_DRIVER} or newer, got {version}. Update the driver, or install JAX for "
        "CUDA 12 in the same environment: pip install -c constraints.txt 'jax[cuda12]'"
    )


def choose_extra(asked: str, found: Found | None) -> Kind | None:
    """Returns the extra to install; None for the CPU alone.

    Args:
      asked: "auto" for what was found, "none", "cuda" or "tpu". What is named is installed, also where none is seen:
        the machine that sets up may be another one than the machine that computes.
      found: of `find_accelerator`.

    Raises:
      ValueError: for another name, or where JAX has no packages for what is asked.

    Example:
      >>> choose_extra("auto", Found("cuda", "/dev/nvidia0"))
      'cuda'
    """
    if asked == "auto":
        return found.kind if found else None
    if asked == "none":
        return None
    for kind, platforms in PLATFORMS.items():
        if asked == kind:
            here = f"{platform.system()} {platform.machine()}"
            if here not in platforms:
                raise ValueError(
                    f"JAX for ACCELERATOR={asked} needs {' or '.join(platforms)}, got {here}. To set up for the CPU: "
                    "make setup ACCELERATOR=none"
                )
            return kind
    hint = " For an NVIDIA GPU say ACCELERATOR=cuda." if asked.lower() in ("gpu", "nvidia") else ""
    raise ValueError(f"ACCELERATOR needs to be auto, none, cuda or tpu, got {asked!r}.{hint}")


def main(arguments: Sequence[str]) -> int:
    """Prints the extra to install, an empty line for none, and why to the standard error.

    Args:
      arguments: "auto", "none", "cuda" or "tpu".

    Returns:
      The exit status: 2 if what was asked for cannot be had.
    """
    asked = arguments[0] if arguments else "auto"
    found = find_accelerator() if asked == "auto" else None
    try:
        extra = choose_extra(asked, found)
    except ValueError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    if found:
        sys.stderr.write(
            f"Found {found.evidence}: installing jaxprune[{extra}]. To do without: ACCELERATOR=none\n"
        )
    trouble = old_driver() if extra == "cuda" else None
    if trouble:
        sys.stderr.write(f"warning: {trouble}\n")
    sys.stdout.write(f"{extra or ''}\n")
    return 0


def _tpu(root: Path, environ: Mapping[str, str]) -> str:
    """By what a TPU is seen: a PCI device, /dev/accel0, or /dev/vfio/0 with a variable; "" if none is."""
    for card in sorted((root / "sys/bus/pci/devices").glob("*")):
        with contextlib.suppress(OSError, UnicodeDecodeError):
            vendor, number = (
                (card / name).read_text(encoding="ascii").strip() for name in ("vendor", "device")
            )
            if vendor == _TPU_VENDOR and number in _TPU_DEVICES:
                return f"a TPU at {card}"
    # other makers' accelerators are in a folder, /dev/accel/accel0
    if device := next(_numbered(root / "dev", "accel"), None):
        return f"a TPU at {device}"
    variable = next((name for name in _TPU_VARIABLES if environ.get(name)), None)
    device = next(_numbered(root / "dev/vfio", ""), None)
    return f"a TPU at {device}, by {variable}" if variable and device else ""


def _gpu(root: Path, environ: Mapping[str, str]) -> str:
    """By what an NVIDIA GPU is seen: /dev/nvidia0, or what `nvidia-smi` lists; "" if none is."""
    if device := next(_numbered(root / "dev", "nvidia"), None):
        return f"an NVIDIA GPU at {device}"
    command = shutil.which("nvidia-smi", path=environ.get("PATH", ""))
    if command is None:
        return ""
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        listed = subprocess.run(
            [command, "-L"],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_SMI_SECONDS,
            check=False,
        )
        if listed.returncode == 0 and listed.stdout.startswith("GPU "):
            return f"an NVIDIA GPU, {listed.stdout.partition(' (')[0].strip()}"
    return ""


def _numbered(folder: Path, prefix: str) -> Iterator[Path]:
    """Files of a folder whose names are the prefix and a number, in order."""
    with contextlib.suppress(OSError):
        yield from sorted(
            path
            for path in folder.iterdir()
            if re.fullmatch(rf"{prefix}\d+", path.name) and not path.is_dir()
        )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

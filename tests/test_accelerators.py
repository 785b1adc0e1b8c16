"""`make setup` installs for the accelerator that a machine has, told by files alone, or for the one that is named."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest

from jaxprune import accelerators
from jaxprune.accelerators import Found, choose_extra, find_accelerator, old_driver

NO_COMMANDS = {"PATH": "/nowhere"}
TPU_VM = {"TPU_ACCELERATOR_TYPE": "v5litepod-8", **NO_COMMANDS}
NETWORK_CARD, V5E = "0x0042", "0x0063"


def pci(number, vendor="0x1ae0"):
    """The two files of a PCI device."""
    return {
        "sys/bus/pci/devices/0000:00:05.0/vendor": f"{vendor}\n",
        "sys/bus/pci/devices/0000:00:05.0/device": f"{number}\n",
    }


def machine(folder, files):
    """A folder with the files of a machine; names without text are empty."""
    for name, text in (files if isinstance(files, dict) else dict.fromkeys(files, "")).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


@pytest.fixture(autouse=True)
def on_linux(monkeypatch):
    monkeypatch.setattr(accelerators.platform, "system", lambda: "Linux")
    monkeypatch.setattr(accelerators.platform, "machine", lambda: "x86_64")


@pytest.mark.parametrize(
    ("files", "environ", "kind"),
    [
        ([], NO_COMMANDS, None),
        (["dev/null", "dev/nvidiactl"], NO_COMMANDS, None),
        (["dev/nvidia0", "dev/nvidia1", "dev/nvidiactl"], NO_COMMANDS, "cuda"),
        (["dev/accel0", "dev/accel1"], NO_COMMANDS, "tpu"),
        (["dev/accel/accel0"], NO_COMMANDS, None),
        (["dev/vfio/vfio"], TPU_VM, None),
        (["dev/vfio/0", "dev/vfio/vfio"], NO_COMMANDS, None),
        (["dev/vfio/0", "dev/vfio/vfio"], TPU_VM, "tpu"),
        (pci(V5E), NO_COMMANDS, "tpu"),
        (pci(NETWORK_CARD), TPU_VM, None),
        (pci(V5E, vendor="0x8086"), NO_COMMANDS, None),
    ],
    ids="nothing driver-alone gpus tpu-v4 npu vfio-alone passed-through tpu-vm pci cpu-vm other-vendor".split(),
)
def test_an_accelerator_is_seen_by_its_files(tmp_path, files, environ, kind):
    found = find_accelerator(machine(tmp_path, files), environ)
    assert (found and found.kind) == kind
    assert found is None or "TPU" in found.evidence or found.evidence.endswith("/dev/nvidia0")


def write_command(path, text):
    """Writes a shell script that can be run."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


@pytest.mark.parametrize(
    ("script", "evidence"),
    [
        ("echo 'GPU 0: NVIDIA H200 (UUID: GPU-1)'", "an NVIDIA GPU, GPU 0: NVIDIA H200"),
        ("echo 'No devices found.'", None),
        ("echo 'GPU 0: lost'; exit 9", None),
        ("exec /bin/sleep 30", None),
    ],
    ids="gpu none failing hanging".split(),
)
def test_without_device_files_nvidia_smi_is_asked(tmp_path, monkeypatch, script, evidence):
    """As under WSL. A command that hangs is given up."""
    monkeypatch.setattr(accelerators, "_SMI_SECONDS", 0.5)
    write_command(tmp_path / "bin/nvidia-smi", script)
    found = find_accelerator(tmp_path, {"PATH": str(tmp_path / "bin")})
    assert found == (evidence and Found("cuda", evidence))


def test_where_jax_has_no_packages_nothing_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr(accelerators.platform, "machine", lambda: "aarch64")
    assert find_accelerator(machine(tmp_path, ["dev/accel0"]), NO_COMMANDS) is None
    assert find_accelerator(machine(tmp_path, ["dev/nvidia0"]), NO_COMMANDS).kind == "cuda"


GPU = Found("cuda", "an NVIDIA GPU at /dev/nvidia0")


@pytest.mark.parametrize(
    ("asked", "found", "extra"),
    [
        ("auto", None, None),
        ("auto", GPU, "cuda"),
        ("none", GPU, None),
        ("tpu", GPU, "tpu"),
        ("cuda", None, "cuda"),
    ],
)
def test_what_is_named_comes_before_what_is_found(asked, found, extra):
    assert choose_extra(asked, found) == extra


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("gpu", r"needs to be auto, none, cuda or tpu, got 'gpu'. For an NVIDIA GPU say ACCELERATOR=cuda"),
        ("amd", r"needs to be auto, none, cuda or tpu, got 'amd'\.$"),
        ("tpu", r"ACCELERATOR=tpu needs Linux x86_64, got Darwin arm64. .* make setup ACCELERATOR=none"),
        ("cuda", r"ACCELERATOR=cuda needs Linux x86_64 or Linux aarch64, got Darwin arm64"),
    ],
)
def test_what_cannot_be_installed_is_an_error(monkeypatch, asked, message):
    monkeypatch.setattr(accelerators.platform, "system", lambda: "Darwin")
    monkeypatch.setattr(accelerators.platform, "machine", lambda: "arm64")
    with pytest.raises(ValueError, match=message):
        choose_extra(asked, None)


NVRM = "NVRM version: NVIDIA UNIX {}x86_64 Kernel Module  {}  Release Build  (gcc 12)\nGCC version:  gcc 12.2.0\n"


@pytest.mark.parametrize(
    ("text", "is_old"),
    [
        (NVRM.format("", "535.104.05"), True),
        (NVRM.format("Open ", "580.95.05"), False),
        ("no version", False),
        (None, False),
    ],
)
def test_a_driver_that_is_too_old_for_the_extra_is_told(tmp_path, text, is_old):
    trouble = old_driver(machine(tmp_path, {} if text is None else {"proc/driver/nvidia/version": text}))
    assert is_old == bool(trouble)
    assert not is_old or "needs NVIDIA's driver 580 or newer, got 535.104.05" in trouble


def test_the_script_prints_the_extra_and_explains_itself_on_the_error_stream(capsys, monkeypatch):
    monkeypatch.setattr(accelerators, "find_accelerator", lambda: GPU)
    monkeypatch.setattr(accelerators, "old_driver", lambda: "CUDA 13 needs more")
    assert accelerators.main(["auto"]) == 0
    shown = capsys.readouterr()
    assert shown.out == "cuda\n"
    assert "Found an NVIDIA GPU at /dev/nvidia0: installing jaxprune[cuda]" in shown.err
    assert "warning: CUDA 13 needs more" in shown.err
    assert accelerators.main(["none"]) == 0 and capsys.readouterr() == ("\n", "")
    assert accelerators.main(["gpu"]) == 2 and "error: ACCELERATOR needs" in capsys.readouterr().err


@pytest.fixture
def checkout(root, tmp_path):
    """A folder with what `make setup` reads, and commands that write down what they would install."""
    folder = tmp_path / "checkout"
    (folder / "jaxprune").mkdir(parents=True)
    for name in ("Makefile", "pyproject.toml", "constraints.txt", "jaxprune/accelerators.py"):
        shutil.copy(root / name, folder / name)
    fake_python = (
        f'case "$*" in *accelerators.py*) exec {sys.executable} "$@";; esac\n'
        f'case "$*" in *"-m pip install"*) echo "$@" >> {tmp_path}/installed; exit $(cat {tmp_path}/status);; esac\n'
        f'case "$*" in "-m venv .venv") mkdir -p .venv/bin; cp "$0" .venv/bin/python\n'
        f"echo made >> {tmp_path}/made;; esac\n"
        'case "$*" in *version_info*) echo 3.11.7;; esac'
    )
    write_command(tmp_path / "bin/python3", fake_python)
    for name in "cat rm mkdir cp sed awk env bash sh find mv echo".split():
        (tmp_path / "bin" / name).symlink_to(shutil.which(name))
    (tmp_path / "status").write_text("0")
    return folder


def set_up(checkout, *words, commands="bin"):
    """Calls `make setup`; its output, status, and what was installed since."""
    log = checkout.parent / "installed"
    log.unlink(missing_ok=True)
    environ = {"PATH": str(checkout.parent / commands), "HOME": str(checkout.parent)}
    done = subprocess.run(
        [shutil.which("make"), "setup", *words], cwd=checkout, env=environ, capture_output=True, text=True, check=False
    )  # fmt: skip
    return done, log.read_text().splitlines() if log.exists() else []


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
class TestMakeSetup:
    def test_installs_under_the_constraints_and_keeps_what_was_named(self, checkout):
        dev = "-m pip install -qq -c constraints.txt -e .[dev]"
        done, installed = set_up(checkout)
        assert done.returncode == 0, done.stderr
        if not os.path.exists("/dev/nvidia0"):
            assert installed == [dev]
        assert set_up(checkout)[1] == []  # is set up
        assert set_up(checkout, "ACCELERATOR=tpu")[1] == [dev.replace("[dev]", "[dev,tpu]")]
        assert set_up(checkout)[1] == []  # stays as it was named
        (checkout / "pyproject.toml").touch()
        assert set_up(checkout)[1] == [dev.replace("[dev]", "[dev,tpu]")]
        assert set_up(checkout, "ACCELERATOR=none")[1] == [dev]
        assert len((checkout.parent / "made").read_text().split()) == 3  # anew for each accelerator

    def test_a_wrong_name_changes_nothing(self, checkout):
        set_up(checkout)
        done, installed = set_up(checkout, "ACCELERATOR=gpu")
        assert done.returncode == 2 and not installed
        assert "error: ACCELERATOR needs to be auto, none, cuda or tpu, got 'gpu'" in done.stderr
        assert set_up(checkout)[1] == []

    def test_what_cannot_be_installed_says_how_to_do_without(self, checkout):
        (checkout.parent / "status").write_text("1")
        done, _ = set_up(checkout, "ACCELERATOR=cuda")
        assert done.returncode == 2
        assert "Could not install jaxprune[cuda]. To set up for the CPU alone: make setup" in done.stderr
        done, _ = set_up(checkout, "ACCELERATOR=none")
        assert done.returncode == 2 and "Could not install" not in done.stderr

    def test_uv_alone_does_the_same(self, checkout):
        folder = checkout.parent
        shutil.copytree(folder / "bin", folder / "uv", symlinks=True)
        (folder / "uv/python3").rename(folder / "uv/hidden")
        script = (
            f'case "$1" in run) while [ "$1" != python ]; do shift; done; shift; exec {folder}/uv/hidden "$@";;\n'
            f"venv) mkdir -p .venv/bin && cp {folder}/uv/hidden .venv/bin/python;;\n"
            f'pip) echo "$@" >> {folder}/installed; exit $(cat {folder}/status);; esac'
        )
        write_command(folder / "uv/uv", script)
        done, installed = set_up(checkout, "ACCELERATOR=cuda", commands="uv")
        assert done.returncode == 0, done.stderr
        assert installed == [
            "pip install --quiet --python .venv/bin/python -c constraints.txt -e .[dev,cuda]"
        ]
        (folder / "status").write_text("1")
        done, _ = set_up(checkout, "ACCELERATOR=tpu", commands="uv")
        assert done.returncode == 2 and "Could not install jaxprune[tpu]" in done.stderr
        assert set_up(checkout, "ACCELERATOR=gpu", commands="uv")[0].returncode == 2

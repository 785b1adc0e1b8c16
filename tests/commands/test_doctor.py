"""`jaxprune doctor` prints a machine and its tests, for people and for machines, and its status tells."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from jaxprune.cli import main
from jaxprune.training import device_checks
from jaxprune.training.device_checks import Check

KEYS = [
    "accelerator", "compilation_cache", "data_directory", "devices", "extras", "host", "passed", "places", "prepared",
    "remarks", "run", "tests", "versions",
]  # fmt: skip
GOOD = Check("devices", 0.1, "1 x cpu (cpu)")
BAD = Check("jit", 0.2, "", "the compiler is gone", "install it again")
HANGING = BAD._replace(ended=False)


@pytest.fixture
def tests_give(monkeypatch):
    monkeypatch.setenv("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # which the command would set for good

    def give(*checks):
        monkeypatch.setattr(device_checks, "self_test", lambda: checks)

    return give


def test_a_machine_that_computes_is_status_0(tests_give, capsys, tmp_path):
    tests_give(GOOD)
    assert main(["doctor", "--data-dir", str(tmp_path)]) == 0
    shown = capsys.readouterr()
    assert "self-test:\ndevices  ok  0.1 s  1 x cpu (cpu)\n" in shown.out
    assert "Testing the devices" in shown.err


def test_a_test_that_fails_is_status_1_with_what_to_do(tests_give, capsys, tmp_path):
    tests_give(GOOD, BAD)
    assert main(["doctor", "--data-dir", str(tmp_path)]) == 1
    shown = capsys.readouterr().out
    assert "FAILED" in shown and "the compiler is gone\n  what to do: install it again\n" in shown


def test_json_holds_everything(tests_give, capsys, tmp_path):
    tests_give(GOOD, BAD)
    assert main(["doctor", "--json", "--data-dir", str(tmp_path)]) == 1
    found = json.loads(capsys.readouterr().out)
    assert sorted(found) == KEYS and found["passed"] is False
    assert [test["passed"] for test in found["tests"]] == [True, False]
    assert sorted(found["tests"][1]) == ["detail", "ended", "name", "passed", "problem", "remedy", "seconds"]


def test_without_the_test_nothing_is_computed(tests_give, capsys, tmp_path):
    tests_give(BAD)
    assert main(["doctor", "--no-test", "--data-dir", str(tmp_path)]) == 0
    shown = capsys.readouterr()
    assert "self-test" not in shown.out and not shown.err


def test_devices_that_failed_are_not_asked_again(tests_give, capsys, tmp_path):
    tests_give(BAD._replace(name="devices"))
    assert main(["doctor", "--json", "--data-dir", str(tmp_path)]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["devices"] == [] and found["run"] is None


def test_after_a_test_that_hangs_the_process_ends(tests_give, capsys, monkeypatch, tmp_path):
    class Left(Exception):
        pass

    def leave(status):
        raise Left(status)

    tests_give(GOOD, HANGING)
    monkeypatch.setattr(os, "_exit", leave)
    with pytest.raises(Left, match="1"):
        main(["doctor", "--data-dir", str(tmp_path)])
    shown = capsys.readouterr().out
    assert "the compiler is gone" in shown and "devices      none" in shown  # which is not asked again


def test_a_bucket_is_refused_before_anything_is_tested(tests_give, capsys):
    tests_give(GOOD)
    assert main(["doctor", "--data-dir", "gs://bucket"]) == 2
    assert "Mount the bucket" in (error := capsys.readouterr().err) and "Testing" not in error


def test_two_devices_are_found_and_add_up(root, tmp_path):
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=2"
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, "PYTHONPATH": str(root)}
    command = [sys.executable, "-m", "jaxprune.cli", "doctor", "--json", "--data-dir", str(tmp_path)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert sorted(found) == KEYS and found["passed"] is True and len(found["devices"]) == 2
    details = {test["name"]: test["detail"] for test in found["tests"]}
    assert details["devices"] == "2 x cpu (cpu)" and details["collective"] == "a sum over 2 devices"

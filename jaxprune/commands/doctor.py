"""`jaxprune doctor`: shows what this machine has and what a run would use, and tests that it computes."""

from __future__ import annotations

import argparse
import json
import os
import sys

from jaxprune.commands.network_options import add_data_dir_option
from jaxprune.commands.output import note, printing, say


def add_doctor(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `jaxprune doctor`."""
    add_data_dir_option(parser)
    parser.add_argument("--json", action="store_true", help="as JSON")
    parser.add_argument(
        "--no-test", action="store_true", help="describe the machine and the devices, without the self-test"
    )


def run_doctor(arguments: argparse.Namespace) -> int:
    """Prints the description of the machine and the results of the self-test.

    Returns:
      1 if a test failed, else 0. A test that does not end leaves a thread behind; then the process ends here.

    Raises:
      ValueError: if the data directory is the address of a bucket.
    """
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # a run may hold most of a GPU's memory
    from jaxprune.datasets.prepared_folders import data_directory
    from jaxprune.report.machine import checks_text, describe_machine, machine_text
    from jaxprune.training.device_checks import self_test

    data_directory(arguments.data_dir)
    if not arguments.no_test:
        note(
            "Testing the devices: about ten seconds, longer where programs are compiled for the first time ..."
        )
    checks = () if arguments.no_test else self_test()
    # a device on which something hangs must not be asked again
    is_usable = not checks or (checks[0].passed and all(check.ended for check in checks))
    machine = describe_machine(data_dir=arguments.data_dir, has_devices=is_usable)
    has_passed = all(check.passed for check in checks)
    if arguments.json:
        tests = [{**check._asdict(), "passed": check.passed} for check in checks]
        say(json.dumps({**machine.to_json(), "tests": tests, "passed": has_passed}, indent=2))
    else:
        say(machine_text(machine))
        if checks:
            say(f"\nself-test:\n{checks_text(checks)}")
    if not all(check.ended for check in checks):  # the thread of a test that hangs would keep the process
        with printing():
            sys.stdout.flush()
        os._exit(1)
    return 0 if has_passed else 1

"""An interrupted command leaves with its status and all that it has written, whatever would crash in the clean-up."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import atexit, os, sys
from jaxprune import cli
from jaxprune.commands import list as command

class CrashesWhenDeleted:
    abort = os.abort
    def __del__(self):
        self.abort()

def run_list(arguments):
    global left
    left = CrashesWhenDeleted()
    atexit.register(print, "clean-up of a library", flush=False)
    print("written before")
    {error}

command.run_list = run_list
sys.argv = ["jaxprune", "list", "tasks"]
sys.exit(cli.main())
"""


@pytest.mark.parametrize(
    ("error", "status", "word"),
    [
        ("raise KeyboardInterrupt", 130, "stopped."),
        (
            "from jaxprune.interrupts import SearchInterrupted; raise SearchInterrupted('saved', 15)",
            143,
            "saved",
        ),
    ],
    ids=["Ctrl-C", "SIGTERM"],
)
def test_an_interrupted_command_does_not_crash_at_its_exit(error: str, status: int, word: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(error=error)], capture_output=True, text=True, check=False
    )
    assert done.returncode == status, done.stderr
    assert done.stdout == "written before\nclean-up of a library\n" and done.stderr == f"{word}\n"

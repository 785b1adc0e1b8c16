"""The command line `jaxprune`: finds the command, runs it, and turns errors into one clear line."""

from __future__ import annotations

import argparse
import importlib
import os
import re
import signal
import sys
from collections.abc import Mapping, Sequence
from typing import NoReturn

from jaxprune._version import __version__
from jaxprune.text import closest

COMMANDS: Mapping[str, str] = {
    "evolve": "evolve pruning functions and write a report",
    "compare": "compare pruning functions fairly on several base networks",
    "calibrate": "measure what a task can tell about functions, and how much there is to gain",
    "score": "score the channels of a network by one or many functions",
    "prune": "prune a trained network, fine-tune it, and save plan and network",
    "transfer": "compare a frozen formula, or the winner of a run, on other tasks",
    "report": "write the report of a run again, from its files",
    "explain": "show a formula (type, LaTeX, code, cost on a network), or what of a network can be pruned",
    "list": "list tasks, presets, functions, operands, operators and recipes",
}
"""Command -> one line of help. The module `jaxprune.commands.COMMAND` has `add_COMMAND` and `run_COMMAND`."""

EXIT_ERROR = 2
"""Exit status after an error whose message was printed."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command line.

    Args:
      arguments: what follows `jaxprune` on the command line; by default that of this process.

    Returns:
      The exit status: 0; 1 if the command worked and its answer is "no"; 2 after an error, whose message went to the
      standard error; 130 after Ctrl-C and 143 after SIGTERM.

    Raises:
      SystemExit: after `--help`, `--version` and options that cannot be read.

    Example:
      >>> main(["explain", "sum(abs(WI))", "--only", "type"])
      ()
      0
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    parser = make_parser(words)
    parsed, unknown = parser.parse_known_args(words)
    if unknown:
        getattr(parsed, "parser", parser).error(f"unrecognized arguments: {' '.join(unknown)}")
    if parsed.command is None:
        parser.print_help()
        return 0
    try:
        return int(parsed.run(parsed))
    except BrokenPipeError:  # the reader of a pipe, such as `head`, wants no more
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt as error:
        if parsed.debug:
            raise
        sys.stderr.write(f"{str(error) or 'stopped.'}\n")
        return int(getattr(error, "exit_status", 128 + signal.SIGINT))
    except Exception as error:
        message = _explanation(error)
        if parsed.debug or message is None:
            raise
        sys.stderr.write(f"jaxprune {parsed.command}: error: {message}\n")
        return EXIT_ERROR


def make_parser(arguments: Sequence[str]) -> argparse.ArgumentParser:
    """Returns the parser of a command line.

    Args:
      arguments: the command line. Only the command that it names is imported and gets its options, so that `--help`
        is fast.
    """
    parser = Parser(
        prog="jaxprune",
        description="Evolve pruning functions and use them to make Flax networks smaller.",
        epilog="Each command has its own --help.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"jaxprune {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=Parser)
    named = next((argument for argument in arguments if not argument.startswith("-")), None)
    for name, about in COMMANDS.items():
        command = commands.add_parser(
            name,
            help=about,
            description=f"{about[0].upper()}{about[1:]}.",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        if name == named:
            module = importlib.import_module(f"jaxprune.commands.{name}")
            getattr(module, f"add_{name}")(command)
            command.set_defaults(run=getattr(module, f"run_{name}"), parser=command)
            command.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


class Parser(argparse.ArgumentParser):
    """A parser whose errors suggest the nearest option or command."""

    def error(self, message: str) -> NoReturn:
        """Prints what was wrong and how to get help, and exits with status 2.

        Args:
          message: of `argparse`.
        """
        options = [option for action in self._actions for option in action.option_strings]
        unknown = re.search(r"unrecognized arguments: (-[\w-]+)", message)
        command = re.search(r"invalid choice: '([^']*)' \(choose from", message)
        if unknown:
            message += f".{closest(unknown[1], options)}"
        elif command:
            message += f".{closest(command[1], COMMANDS)}"
        self.exit(EXIT_ERROR, f"{self.prog}: error: {message}\nSee {self.prog} --help.\n")


def _explanation(error: Exception) -> str | None:
    """Returns the message of an error that says what to do; None for a bug, which needs its traceback."""
    from jaxprune.datasets.guarded_split import AlreadyOpenedError
    from jaxprune.files import RunDirectoryError
    from jaxprune.search.problem import InfrastructureError

    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"Cannot read or write {error.filename}: {error.strerror}."
    ours = (ValueError, OSError, ImportError, RunDirectoryError, InfrastructureError, AlreadyOpenedError)
    return str(error) or type(error).__name__ if isinstance(error, ours) else None


if __name__ == "__main__":
    sys.exit(main())

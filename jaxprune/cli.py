"""The command line `jaxprune`: finds the command, runs it, and turns errors into one clear line."""

from __future__ import annotations

import argparse
import atexit
import contextlib
import importlib
import os
import re
import signal
import sys
import sysconfig
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from jaxprune._version import __version__
from jaxprune.commands.output import STANDARD_OUTPUT, note, prepare_streams, printing
from jaxprune.text import closest

COMMANDS: Mapping[str, str] = {
    "evolve": "evolve pruning functions and write a report",
    "compare": "compare pruning functions fairly on several base networks",
    "calibrate": "measure what a task can tell about functions and how much there is to gain, or how its networks are "
    "best batched",
    "score": "score the channels of a network by one or many functions",
    "sensitivity": "measure how accuracy falls when single groups of channels are pruned",
    "prune": "prune a trained network, fine-tune it, and save plan and network",
    "prepare": "download image sets, or take archives, and write them as the other commands read them",
    "transfer": "take a frozen function, or the winner of a run, to networks and images of full size",
    "report": "write the report of a run again, from its files",
    "explain": "show a formula (type, LaTeX, code, cost on a network), or what of a network can be pruned",
    "doctor": "show devices, versions, data and disk, and test in seconds that this machine computes",
    "list": "list tasks, presets, functions, operands, operators and recipes",
}
"""Command -> one line of help. The module `jaxprune.commands.COMMAND` has `add_COMMAND` and `run_COMMAND`."""

EXIT_ERROR = 2
"""Exit status after an error whose message was printed."""

_LONGEST_WORD = 400
"""Letters that an error message shows of one word, of a number with thousands of digits say."""


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
    prepare_streams()
    status_after_interrupt: list[int] = []
    if arguments is None:  # registered before other libraries are imported, so that it runs after their own
        atexit.register(_leave_at_once, status_after_interrupt)
    words = list(sys.argv[1:] if arguments is None else arguments)
    parser = make_parser(words)
    try:
        parsed, unknown = parser.parse_known_args(words)
    except SystemExit:
        _flush_help()
        raise
    if unknown:
        getattr(parsed, "parser", parser).error(f"unrecognized arguments: {' '.join(unknown)}")
    if parsed.command is None:
        parser.print_help()
        _flush_help()
        return 0
    from jaxprune.interrupts import ctrl_c_once_more

    try:
        if sys.stdout is None and parsed.command != "evolve":
            raise ValueError(
                "the result needs a standard output, got a closed one. Say > FILE, or > /dev/null."
            )
        with ctrl_c_once_more():
            status = int(parsed.run(parsed))
        with printing():
            if sys.stdout is not None:
                sys.stdout.flush()
        return status
    except BrokenPipeError:  # the reader of a pipe, such as `head`, wants no more
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt as error:
        if parsed.debug:
            raise
        status_after_interrupt.append(int(getattr(error, "exit_status", 128 + signal.SIGINT)))
        note(str(error) or "stopped.")
        return status_after_interrupt[0]
    except Exception as error:
        message = None if parsed.debug else explanation(error)
        if message is None:
            raise
        note(f"jaxprune {parsed.command}: error: {message}")
        if isinstance(error, OSError) and error.filename == STANDARD_OUTPUT:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what is left cannot be written at the exit either
        return int(getattr(error, "exit_status", EXIT_ERROR))


def _leave_at_once(status: Sequence[int]) -> None:
    """Ends an interrupted process, if there is a status, without the last clean-up.

    An exception that a signal raised inside JAX's compiled code leaves objects there that crash when they are deleted.
    """
    if status:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError, AttributeError):  # closed, gone, or none
                stream.flush()
        os._exit(status[0])


def _flush_help() -> None:
    """Writes what `argparse` printed, and leaves if that cannot be written, because of a full disk say."""
    try:
        with printing():
            if sys.stdout is not None:
                sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):
            note(f"jaxprune: error: {explanation(error)}")
            raise SystemExit(EXIT_ERROR) from error


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
            command.set_defaults(given=frozenset())
    return parser


class StoreOnce(argparse.Action):
    """Stores a value, and notes in `given` that the option was on the command line.

    A second name or path is refused, because the first would be forgotten; a number may be given again to change it.
    """

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,  # noqa: ANN401 - as argparse
        option: str | None = None,
    ) -> None:
        """Does what the class says, for `argparse`."""
        given: frozenset[str] = getattr(namespace, "given", frozenset())
        if self.type in (None, Path) and self.choices is None and option is not None and self.dest in given:
            raise argparse.ArgumentError(self, "needs one value, but is given twice. Leave one out")
        setattr(namespace, self.dest, values)
        namespace.given = given | {self.dest} if option is not None else given


class Parser(argparse.ArgumentParser):
    """A parser whose errors suggest the nearest option or command, and that takes each option once."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:  # noqa: ANN401 - as argparse
        """Makes a parser, as `argparse` does."""
        super().__init__(*arguments, **keywords)
        for name in (None, "store"):
            self.register("action", name, StoreOnce)
        self.register("type", Path, _path)

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
        self.exit(EXIT_ERROR, f"{self.prog}: error: {_shortened(message)}\nSee {self.prog} --help.\n")


def _path(text: str) -> Path:
    """Reads a path for `argparse`; an empty one, of a shell variable without a value say, is no folder."""
    if not text:
        raise argparse.ArgumentTypeError("needs a path, got an empty text")
    return Path(text)


def explanation(error: Exception) -> str | None:
    """Returns what the command line says about an error that a command raised.

    Errors of the options themselves, of `argparse`, are told by `Parser.error`.

    Args:
      error: what a command raised.

    Returns:
      For errors that callers and machines cause, their own message, shortened, which says what was needed and how to
      go on; for an error of a file that nobody explained, the file and what the system says; for an error in a user's
      own module its traceback, without frames of others; None for a bug of ours, which needs the whole traceback.
    """
    from jaxprune.datasets.guarded_split import AlreadyOpenedError
    from jaxprune.files import RunDirectoryError, is_disk_full
    from jaxprune.hosts.watching import AbsentError, HostsError
    from jaxprune.search.problem import InfrastructureError

    own = _own_traceback(error)
    if own is not None:
        return own
    is_of_device = type(error).__name__ in ("JaxRuntimeError", "XlaRuntimeError")
    if isinstance(error, MemoryError) or (is_of_device and "RESOURCE_EXHAUSTED" in str(error)):
        reason = str(error).partition("\n")[0]
        return f"needs more memory than there is ({reason}). Make the input or the network smaller."
    if isinstance(error, OSError) and error.strerror:
        remedy = " Free some space, or choose another disk." if is_disk_full(error) else ""
        file = _shortened(str(error.filename or "a file"))
        return f"Cannot read or write {file}: {error.strerror}.{remedy}"
    ours = (
        ValueError,
        OSError,
        ImportError,
        RunDirectoryError,
        InfrastructureError,
        AbsentError,
        HostsError,
        AlreadyOpenedError,
    )
    return _shortened(str(error) or type(error).__name__) if isinstance(error, ours) else None


def _own_traceback(error: Exception) -> str | None:
    """Returns the traceback of an error raised by a user's own module, without frames of others; None for others."""
    factories = sys.modules.get("jaxprune.nets.factories")
    if factories is None:  # nothing of a user's was imported
        return None
    files = factories.own_files()
    frames = list(traceback.extract_tb(error.__traceback__))
    what = f"{type(error).__name__}: {error}"
    if isinstance(error, SyntaxError) and error.filename in files:
        frames, what = [], "".join(traceback.format_exception_only(error)).rstrip("\n")
    else:
        inner = [frame for frame in frames if frame.filename in files or not _is_of_others(frame.filename)]
        if not inner or _is_ours(inner[-1].filename) or not any(frame.filename in files for frame in frames):
            return None
        frames = [frame for frame in inner if not _is_ours(frame.filename)]
    where = "".join(traceback.format_list(frames))
    return f"a module of yours failed. Its traceback, without frames of others:\n{where}{what}"


def _is_ours(file: str) -> bool:
    """Returns whether a source file belongs to this package."""
    return Path(file).is_relative_to(Path(__file__).parent)


def _is_of_others(file: str) -> bool:
    """Returns whether a source file belongs to Python or to an installed package, other than this one."""
    if _is_ours(file):
        return False
    folders = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    return file.startswith("<") or any(Path(file).is_relative_to(folder) for folder in folders)


def _shortened(text: str) -> str:
    """Returns the text with the middle of very long words left out."""

    def short(match: re.Match[str]) -> str:
        return f"{match[0][:40]}...{match[0][-20:]}"

    return re.sub(rf"\S{{{_LONGEST_WORD},}}", short, text)


if __name__ == "__main__":
    sys.exit(main())

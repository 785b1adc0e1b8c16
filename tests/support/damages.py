"""What disks, editors and hands do to the files of a run."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from pathlib import Path

RUN_FILES = (
    "config.json",
    "journal.jsonl",
    "state.json",
    "archive.json",
    "hall_of_fame.csv",
    "events.jsonl",
    "final.json",
    "test-digits.json",
)
"""The files of a run that a test may damage."""


def _cut(content: bytearray, rng: random.Random) -> bytes:
    return bytes(content[: rng.randrange(len(content))])


def _flip(content: bytearray, rng: random.Random) -> bytes:
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    return bytes(content)


def _other_digit(content: bytearray, rng: random.Random) -> bytes:
    index = rng.choice([index for index, byte in enumerate(content) if 48 <= byte <= 57])
    content[index] = 48 + (content[index] - 48 + rng.randrange(1, 10)) % 10
    return bytes(content)


def _other_value(content: bytearray, rng: random.Random) -> bytes:
    values = list(re.finditer(rb': (\d+|"[^"]*"|null)', bytes(content)))
    if values:
        value = rng.choice(values)
        others = [b"[]", b"{}", b"null", b'"x"', b"1e999", b"NaN", b"-1", b"1" * 5000, b"true"]
        content[value.start(1) : value.end(1)] = rng.choice(others)
    return bytes(content)


def _other_key(content: bytearray, rng: random.Random) -> bytes:
    keys = list(re.finditer(rb'"(\w+)":', bytes(content)))
    if keys:
        key = rng.choice(keys)
        content[key.start(1) : key.end(1)] = b"x"
    return bytes(content)


def _lines(
    change: Callable[[list[bytes], random.Random], None],
) -> Callable[[bytearray, random.Random], bytes]:
    def damage(content: bytearray, rng: random.Random) -> bytes:
        lines = bytes(content).splitlines(keepends=True)
        change(lines, rng)
        return b"".join(lines)

    return damage


def _remove(lines: list[bytes], rng: random.Random) -> None:
    del lines[rng.randrange(len(lines))]


def _repeat(lines: list[bytes], rng: random.Random) -> None:
    lines.insert(rng.randrange(len(lines)), rng.choice(lines))


def _swap(lines: list[bytes], rng: random.Random) -> None:
    first, second = rng.randrange(len(lines)), rng.randrange(len(lines))
    lines[first], lines[second] = lines[second], lines[first]


def _replace(lines: list[bytes], rng: random.Random) -> None:
    lines[rng.randrange(len(lines))] = rng.choice([b"{}", b"[]", b"null", b"3", b'"x"', b"nonsense"]) + b"\n"


def _zeros(content: bytearray, rng: random.Random) -> bytes:
    start = rng.randrange(len(content))
    content[start : start + 50] = b"\0" * len(content[start : start + 50])
    return bytes(content)


def _garbage(content: bytearray, rng: random.Random) -> bytes:
    start = rng.randrange(len(content))
    content[start:start] = rng.randbytes(20)
    return bytes(content)


DAMAGES: dict[str, Callable[[bytearray, random.Random], bytes]] = {
    "cut": _cut,
    "flipped bit": _flip,
    "another digit": _other_digit,
    "another value": _other_value,
    "another key": _other_key,
    "a line removed": _lines(_remove),
    "a line repeated": _lines(_repeat),
    "lines swapped": _lines(_swap),
    "a line replaced": _lines(_replace),
    "zeros": _zeros,
    "garbage": _garbage,
    "emptied": lambda content, rng: b"",
    "an object": lambda content, rng: b"{}",
    "a list": lambda content, rng: b"[]",
    "deep brackets": lambda content, rng: b"[" * 100_000,
    "random bytes": lambda content, rng: rng.randbytes(300),
    "a byte-order mark": lambda content, rng: b"\xef\xbb\xbf" + content,
    "line ends of Windows": lambda content, rng: bytes(content).replace(b"\n", b"\r\n"),
}
"""Name -> what becomes of the content of a file."""


def damage_one(run_dir: Path, seed: int) -> str:
    """Damages one file of a run; returns which and how."""
    rng = random.Random(seed)
    path = run_dir / rng.choice(RUN_FILES)
    name = rng.choice(list(DAMAGES))
    path.write_bytes(DAMAGES[name](bytearray(path.read_bytes()), rng))
    return f"{path.name}: {name}"

"""Reads the options of a simulation, and collects its numbers with where each is from."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

from config import ASSUMED, FULL_CHUNK, REPORTED_SCORING
from stages import Work, row_seconds, work_of

from jaxprune.search.settings import find_preset

COUNTED = ("finetune_flops", "base_flops", "rounds", "bases", "extra_bases")
"""Facts of a task that are counted."""

OF_TASKS = ("flops_per_second", "score_seconds", "compile_seconds")
"""Measured numbers of a task that options replace."""

Tagged = tuple[Any, str]
"""A number, and where it is from."""


def make_parser(about: str) -> argparse.ArgumentParser:
    """The options; what replaces a measured or an assumed number has no default."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    add, of_task = parser.add_argument, {"action": "append", "default": [], "metavar": "[TASK=]VALUE"}
    add("--measure", action="store_true", help="measure this machine, instead of a simulation")
    add("--preset", default="paper", choices=("paper", "quick", "thorough"))
    add("--name", help="of the files in results/ (default: that of the preset)")
    add("--devices-per-host", type=int, default=8)
    add("--chunk", type=int, default=FULL_CHUNK, help="members on each device")
    add("--apart", action="store_true", help="train elites after promoted candidates, not at the same time")
    add(
        "--flops-per-second",
        **of_task,
        help=f"of a device with {FULL_CHUNK} members, where rows are not timed",
    )
    add(
        "--gain",
        **of_task,
        help=f"how often as fast as one by one {FULL_CHUNK} members are, for the same tasks",
    )
    add("--score-seconds", **of_task, help="in which a plan is made on one base network")
    add("--compile-seconds", **of_task, help="of one program on one host")
    add("--gather-ms", type=float, help="until the results of one host are with the leader")
    add("--sigma", type=float, help="spread of the slowness of devices: standard deviation of its logarithm")
    add("--deaths", type=float, help="of a host in 1,000 hours")
    add("--restart", type=float, metavar="SECONDS", help="from a death until training goes on")
    add("--price", type=float, help="of a device hour")
    add("--seed", type=int, default=0, help="of stragglers and deaths")
    return parser


def numbers_of(options: argparse.Namespace, measured: Mapping[str, Any]) -> dict[str, Tagged]:
    """Every number that does not belong to a task."""
    numbers: dict[str, Tagged] = {"gather_ms": (measured["gather_seconds"] * 1000, "measured")}
    numbers |= {name: (ASSUMED[name], "assumed") for name in ("sigma", "deaths", "restart")}
    given = {name: getattr(options, name) for name in (*numbers, "price")}
    return numbers | {name: (value, "given") for name, value in given.items() if value is not None}


def tasks_of(options: argparse.Namespace, measured: Mapping[str, Any]) -> dict[str, dict[str, Tagged]]:
    """Every number of the preset's tasks, by task."""
    preset, tasks = find_preset(options.preset), {}
    for name in preset.tasks:
        numbers = {key: (value, "measured") for key, value in measured["tasks"][name].items()}
        numbers |= {key: (numbers[key][0], "counted") for key in COUNTED}
        numbers |= {key: (value, "counted") for key, value in preset.task_options.items()}
        if name in REPORTED_SCORING:
            numbers["score_seconds"] = (REPORTED_SCORING[name], "reported in experiments/paper_evolution")
        for key in OF_TASKS:
            given = _last(getattr(options, key), name)
            if given is not None and key in numbers:
                numbers[key] = (given, "given")
        if "row_seconds" not in numbers:
            gain = _last(options.gain, name)
            numbers["gain"] = (ASSUMED["gain"], "assumed") if gain is None else (gain, "given")
            speed, flops = numbers["flops_per_second"], numbers["finetune_flops"][0]
            rows = row_seconds(flops, speed[0], FULL_CHUNK, numbers["gain"][0])
            numbers["row_seconds"] = (rows, f"computed from the {speed[1]} speed")
        tasks[name] = numbers
    return tasks


def works_of(tasks: Mapping[str, Mapping[str, Tagged]]) -> list[Work]:
    """The work of each task."""
    works = []
    for name, numbers in tasks.items():
        costs = {key: value for key, (value, _) in numbers.items()}
        works.append(work_of(name, costs, costs["bases"], costs["extra_bases"]))
    return works


def _last(given: Sequence[str], task: str) -> float | None:
    """The last of values such as "3" or "TASK=3" that is for all tasks or for this one."""
    split = [text.rpartition("=") for text in given]
    values = [float(value) for name, _, value in split if name in ("", task)]
    return values[-1] if values else None

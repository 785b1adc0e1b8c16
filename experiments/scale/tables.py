"""Shows what the simulation found: rows of numbers, a table in Markdown, and a figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from advice import TARGET, Choice
from simulation import PARTS, Account, Machine

from jaxprune.figures.style import DARK, GREY, LIGHT, new_figure, save_figure
from jaxprune.text import duration, markdown_table

COLORS = ("#009E73", "#56B4E9", "#0072B2", "#E69F00", "#7a5195", "#CC79A7", "#D55E00", LIGHT, DARK)
"""One for each of `PARTS`."""

Row = dict[str, Any]
"""One number of devices: flat numbers, and the shares of device time."""


def row(machine: Machine, generation: Account, repeats: int, search: Account, price: float | None) -> Row:
    """One row of the result, from simulated generations and a simulated search."""
    hours = search.seconds * machine.devices / 3600
    return {
        "devices": machine.devices,
        "hosts": machine.hosts,
        "seconds_per_generation": generation.seconds / repeats,
        "efficiency_of_generation": generation.efficiency,
        "search_seconds": search.seconds,
        "efficiency_of_search": search.efficiency,
        "device_hours": hours,
        "cost": None if price is None else hours * price,
        "deaths": search.deaths,
        "search_loses_most_by": search.largest_loss(),
        "shares_of_generation": generation.shares(),
        "shares_of_search": search.shares(),
    }


def table(rows: Sequence[Row]) -> str:
    """The rows in Markdown."""
    header = [
        "devices",
        "hosts",
        "a generation",
        "busy",
        "a search",
        "busy",
        "device hours",
        "cost",
        "most is lost by",
    ]
    return markdown_table(
        header,
        [
            [
                f"{row['devices']:,}",
                f"{row['hosts']:,}",
                duration(row["seconds_per_generation"]),
                f"{row['efficiency_of_generation']:.0%}",
                duration(row["search_seconds"]),
                f"{row['efficiency_of_search']:.0%}",
                f"{row['device_hours']:,.1f}",
                "" if row["cost"] is None else f"{row['cost']:,.0f}",
                row["search_loses_most_by"],
            ]
            for row in rows
        ],
    )


def limit(rows: Sequence[Row], fitness: str) -> str:
    """Says how many devices are kept busy, and from how many on the search takes no less time."""
    # On landscapes a generation trains nothing.
    what, seconds = {
        "finetune": ("generation", "seconds_per_generation"),
        "landscape": ("search", "search_seconds"),
    }[fitness]
    busy = [row["devices"] for row in rows if row[f"efficiency_of_{what}"] >= TARGET]
    up_to = f"up to {max(busy):,} devices" if busy else "none of these numbers of devices"
    least = min(row[seconds] for row in rows)
    fastest = next(row["devices"] for row in rows if row[seconds] <= 1.05 * least)
    return (
        f"At least {TARGET:.0%} of the device time of a {what} is useful on {up_to}. "
        f"From {fastest:,} devices on it takes no less time ({duration(least)}): the search itself is the limit."
    )


def advice_table(choices: Mapping[int, Choice]) -> str:
    """The settings that keep devices busy, by number of devices."""
    header = [
        "devices",
        "population",
        "bases",
        "promoted",
        "chunk",
        "scoring on",
        "busy",
        "a generation",
        "fine-tunings",
        "most is lost by",
    ]
    return markdown_table(
        header,
        [
            [
                f"{devices:,}",
                f"{choice.population:,}",
                str(choice.bases),
                f"{choice.promote_fraction:.0%}" if choice.bases > 1 else "",
                str(choice.chunk),
                "all hosts" if choice.is_dealt else "the leader",
                f"{choice.efficiency:.0%}",
                duration(choice.seconds),
                f"{choice.fine_tunings:,}",
                choice.lost_by,
            ]
            for devices, choice in choices.items()
        ],
    )


def draw(rows: Sequence[Row], title: str, path: Path) -> None:
    """Draws seconds and the shares of device time against the number of devices."""
    devices = [row["devices"] for row in rows]
    with new_figure(10, 4.2) as figure:
        left, right = figure.subplots(1, 2)
        first = rows[0]["search_seconds"]
        left.plot(
            devices, [row["search_seconds"] for row in rows], color="#0072B2", marker="o", label="a search"
        )
        generations = [row["seconds_per_generation"] for row in rows]
        left.plot(devices, generations, color="#D55E00", marker="s", label="a generation")
        left.plot(
            devices, [first / number for number in devices], color=GREY, ls=":", label="a search, ideally"
        )
        left.set(xscale="log", yscale="log", xlabel="devices", ylabel="seconds", title=title)
        left.legend()
        # Waiting can come out just below nothing where devices happen to be fast.
        stacks = [[max(0.0, row["shares_of_search"][part]) for row in rows] for part in PARTS]
        right.stackplot(devices, stacks, labels=PARTS, colors=COLORS)
        right.axhline(TARGET, color=DARK, lw=0.8, ls="--")
        right.set(xscale="log", xlabel="devices", ylim=(0, 1), title="Device time of a search")
        right.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
        for axis in (left.xaxis, left.yaxis, right.xaxis):
            axis.set_major_formatter("{x:,.0f}")  # powers of ten would be formulas
        save_figure(figure, path)

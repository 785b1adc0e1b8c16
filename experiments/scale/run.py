"""Simulates how a search scales from 1 to 1,024 devices, from times that were measured or are given.

    python experiments/scale/run.py --measure            # minutes; writes results/measured.json
    python experiments/scale/run.py --preset quick
    python experiments/scale/run.py --preset paper --name paper-gpu --flops-per-second 3e13 --gain 3 --price 2

Options of tasks take VALUE for all tasks or TASK=VALUE for one, and may be repeated. README.md says what came out. Each
number of the result says whether it was measured, counted, given, assumed or reported elsewhere.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from advice import REPEATS, advise, per_generation
from config import CHUNKS, DEVICES
from inputs import make_parser, numbers_of, tasks_of, works_of
from measuring import measured_all
from simulation import Machine, NeverEndsError, simulate
from stages import search
from tables import advice_table, draw, limit, row, table

from jaxprune.files import write_atomically
from jaxprune.search.settings import find_preset

RESULTS = Path(__file__).parent / "results"


def main() -> None:
    """Measures, or simulates and writes table and figure."""
    options = make_parser(__doc__).parse_args()
    RESULTS.mkdir(exist_ok=True)
    if options.measure:
        write_atomically(RESULTS / "measured.json", json.dumps(measured_all(CHUNKS), indent=1) + "\n")
        return
    measured = json.loads((RESULTS / "measured.json").read_text())
    numbers, tasks = numbers_of(options, measured), tasks_of(options, measured)
    gather, sigma, deaths, restart = (
        numbers[name][0] for name in ("gather_ms", "sigma", "deaths", "restart")
    )
    works, config, together = works_of(tasks), find_preset(options.preset).config, not options.apart
    rows, choices = [], {}
    for devices in DEVICES:
        shape = (devices, options.devices_per_host, options.chunk)
        machine = Machine(*shape, gather / 1000, sigma, deaths / 1000, restart)
        try:
            generation = per_generation(config, works, machine, together=together)
            whole = simulate(search(config, works, together=together), machine, seed=options.seed)
        except NeverEndsError as error:
            raise SystemExit(f"on {devices} devices {error}") from error
        rows.append(row(machine, generation, REPEATS, whole, numbers.get("price", (None,))[0]))
        if config.fitness == "finetune":
            choices[devices] = advise(config, works, machine, together=together)
    name = options.name or options.preset
    text = f"{table(rows)}\n\n{limit(rows, config.fitness)}\n"
    if choices:
        text += f"\n{advice_table(choices)}\n"
    found = {
        "preset": options.preset,
        "chunk": options.chunk,
        "together": together,
        "numbers": numbers,
        "tasks": tasks,
    }
    found["advice"] = {number: dataclasses.asdict(choice) for number, choice in choices.items()}
    write_atomically(RESULTS / f"{name}.json", json.dumps(found | {"rows": rows}, indent=1) + "\n")
    write_atomically(RESULTS / f"{name}.md", text)
    draw(rows, f"Preset {options.preset}", RESULTS / f"{name}.png")
    print(text)


if __name__ == "__main__":
    main()

"""A made-up search, comparison and calibration, for the tests of reports and figures."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np

from jaxprune.comparison.calibration import Calibration
from jaxprune.comparison.finals import Finals
from jaxprune.comparison.measurements import Measurement, Refused, TaskFacts
from jaxprune.comparison.protocol import LayerView
from jaxprune.comparison.results import Comparison
from jaxprune.comparison.winner_checks import Part, Soundness
from jaxprune.search.search import SearchResult, evolve_problem
from jaxprune.search.state import SearchState

LEVELS = {"winner": 90.0, "l2": 86.0, "l1": 85.0, "mean_shift": 88.0, "random": 68.0, "scratch": 36.0}
"""Row -> accuracy in percent that a made-up comparison measures around."""


@cache
def searched() -> SearchResult:
    """A short search on a toy problem with the tasks digits and fashion."""
    from toy_problem import SMALL, ToyProblem

    config = SMALL.replace(generations=3, population=12, proposals_per_slot=8, seed=8)
    return evolve_problem(ToyProblem(), config, tempfile.mkdtemp())


@cache
def searched_on_landscapes() -> SearchResult:
    """A short search on landscapes of the tasks digits and fashion."""
    from toy_problem import LANDSCAPE, ToyLandscapeProblem

    return evolve_problem(ToyLandscapeProblem(), LANDSCAPE, tempfile.mkdtemp())


def compared(
    levels: Mapping[str, float] = LEVELS,
    *,
    tasks: Mapping[str, int] | None = None,
    repeats: int = 1,
    points: int = 4,
    spread: float = 1.0,
    has_test: bool = True,
    refused: Mapping[str, str] | None = None,
) -> Comparison:
    """A comparison with noise of `spread` points; `tasks` maps names to numbers of bases."""
    rng = np.random.default_rng(0)
    measurements, facts = [], []
    tasks = {"digits": 4, "fashion": 3} if tasks is None else tasks
    for task, num_bases in tasks.items():
        for name, level in levels.items():
            if (refused or {}).get(name) == task:
                continue
            kind = name if name in ("random", "scratch", "oracle") else "metric"
            for base in range(num_bases):
                for draw in range(2 if name == "random" else 1):
                    for repeat in range(repeats):
                        final = float(np.clip(level + base + (name != "l2") * spread * rng.normal(), 0, 100))
                        curve = (*(final - 20.0 / point for point in range(1, points)), final)
                        measurements.append(
                            Measurement(
                                task=task, name=name, kind=kind, formula="mean(X)" if kind == "metric" else "",
                                base=base, draw=draw, repeat=repeat, validation=final,
                                test=final - 1.0 if has_test else None, curve=curve, seconds=0.1,
                                digest=f"{name}{base}{draw}" if name != "scratch" else "",
                            )
                        )  # fmt: skip
        facts.append(
            TaskFacts(
                task, "final", {"conv.kernel": 16}, {"conv.kernel": 6}, (95.0,) * num_bases, "fingerprint"
            )
        )
    invalid = tuple(Refused(task, name, "mean(X)", "base 0: 0/0") for name, task in (refused or {}).items())
    return Comparison(tuple(measurements), tuple(facts), invalid, {"winner": 9, "l2": 4})


def layers(
    names: tuple[str, ...] = ("winner", "l2", "mean_shift"), widths: tuple[int, ...] = (16, 64)
) -> list[LayerView]:
    """Views of layers of these widths that keep a quarter."""
    rng = np.random.default_rng(0)
    views = []
    for number, width in enumerate(widths):
        count = width // 4

        def chosen(width: int = width, count: int = count) -> tuple[int, ...]:
            return tuple(sorted(rng.permutation(width)[:count].tolist()))

        kept = {name: chosen() for name in (*names, "random 1", "random 2")}
        scores = {name: tuple(np.sort(rng.gamma(2.0, size=width))[::-1].tolist()) for name in names}
        views.append(LayerView(f"conv{number}.kernel", width, count, kept, scores))
    return views


def made_up_finals(state: SearchState, comparison: Comparison | None = None, **changes: Any) -> Finals:
    """A final comparison of the state's winner."""
    winner = state.ranked()[0].candidate
    fields: dict[str, Any] = {
        "winner_id": winner.id,
        "formulas": {
            "winner": winner.text,
            "l2": "sqrt(sum(square(WI)))",
            "mean_shift": "sum(square(mP - mX))",
        },
        "roles": {"winner": "winner of the search", "mean_shift": "best own seed on the search bases"},
        "best_start": "mean_shift",
        "controls": "standard",
        "comparison": comparison or compared(),
        "views": {"digits": tuple(layers())},
        "steps": {"digits": 63},
        "seconds": 12.0,
    }
    return Finals(**fields | changes)


POOLED = {
    "winner": 90.0, "l2": 86.0, "l1": 85.0, "mean_shift": 88.0, "fisher": 87.0, "random search": 88.5,
    "random": 68.0, "scratch": 36.0,
}  # fmt: skip
"""Rows after a search on landscapes."""


def pooled_finals(state: SearchState, comparison: Comparison | None = None, **changes: Any) -> Finals:
    """A final comparison after a search on landscapes of digits and fashion, with the unseen task digits-res."""
    tasks = {"digits": 4, "fashion": 3, "digits-res": 5}
    fields: dict[str, Any] = {
        "comparison": comparison or compared(POOLED, tasks=tasks, spread=0.1),
        "random_search": {
            "evaluations": 40, "candidates": 30, "origin": "random", "mean": 1.0, "se": 0.5, "generations": 4,
        },
        "formulas": {
            "winner": state.ranked()[0].candidate.text, "l2": "sqrt(sum(square(WI)))", "l1": "sum(abs(WI))",
            "mean_shift": "sum(square(mP - mX))", "fisher": "fisher", "random search": "mean(X)*std(X)",
        },
        "unseen": ("digits-res",),
        "known": ("l2", "l1", "mean_shift", "fisher"),
        "best_known": "fisher",
        "parts": (Part("std(X)", "mean(X)", -0.5, -0.25, 0.125), Part("mean(X)", "0/0", reason="not finite")),
        "soundness": {"digits": Soundness(4, 8, 0, 64, 3, 0, 0), "digits-res": Soundness(5, 10, 0, 80, 0, 0, 0)},
        "compensated": ("digits",),
    }  # fmt: skip
    return made_up_finals(state, **fields | changes)


def calibrated(oracle: float | None = 92.0, *, bases: int = 3) -> Calibration:
    """A calibration of the task digits."""
    levels = {f"function_{i}": 80.0 + i for i in range(5)} | LEVELS
    levels |= {} if oracle is None else {"oracle": oracle}
    return Calibration(compared(levels, tasks={"digits": bases}, repeats=2, points=1), (), 4)

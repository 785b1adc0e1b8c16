"""Writes what is taken away from a pruning run: the network, saved and exported, and how fast it is."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from flax import nnx

from jaxprune.comparison.pruning_setup import PruningSetup
from jaxprune.deploy.exporting import export
from jaxprune.deploy.saving import save
from jaxprune.deploy.speed import compare_speed
from jaxprune.files import explained
from jaxprune.nets.factories import NETWORKS
from jaxprune.pruning.planning import Plan

_AGAIN = "give the same command again"


def write_outputs(
    setup: PruningSetup,
    folder: Path,
    plan: Plan,
    dense: nnx.Module,
    slim: nnx.Module,
    on_message: Callable[[str], None],
) -> dict[str, Any]:
    """Saves the slim network for `jaxprune.load`, exports it to StableHLO, and times it against the dense one.

    Args:
      setup: the run.
      folder: of the run; gets `network/`, `network.stablehlo` and `speed.json`.
      plan: what the network was slimmed by.
      dense: the network before pruning.
      slim: the network after fine-tuning.
      on_message: is told how it goes.

    Returns:
      Plain data: the `speed` that was measured, and the `export_problem`, "" if the network could be exported.

    Raises:
      RunDirectoryError: if a file cannot be written.
    """
    example = jax.ShapeDtypeStruct((1, *setup.data.image_shape), "float32")
    network, is_known = setup.settings.network, setup.settings.network in NETWORKS
    with explained(f"write to {folder}", again=_AGAIN, place="folder"):
        save(
            slim,
            folder / "network",
            plan=plan,
            factory=network,
            options=setup.factory_options if is_known else None,
            overwrite=True,
        )
        problem = ""
        try:
            export(slim, example, folder / "network.stablehlo")
        except (ValueError, ImportError) as error:  # the network itself is written
            problem = str(error)
            on_message(f"no network.stablehlo: {problem}")
        on_message("measuring the latency of both networks")
        report = compare_speed(dense, slim, example).to_json()
        (folder / "speed.json").write_text(report + "\n", encoding="utf-8")
    return {"speed": json.loads(report), "export_problem": problem}

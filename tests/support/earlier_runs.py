"""Turns runs of today into runs of earlier versions."""

from __future__ import annotations

import json
from pathlib import Path

from jaxprune.files import CHECK, sealed


def as_earlier(run_dir: Path, joint: str) -> None:
    """Makes the files of a run those of the version before landscapes, which called `joint` the fitness."""
    for name in ("config.json", "state.json"):
        plain = json.loads((run_dir / name).read_text())
        del plain[CHECK]
        holder = plain if name == "config.json" else plain["state"]
        for setting in ("joint", "plans", "leaders", "parsimony", "force"):
            del holder["config"][setting]
        holder["config"]["fitness"] = joint
        plain.get("settings", {}).pop("unseen", None)
        plain.pop("batching", None)
        for field in ("banks", "verified_at") if name == "state.json" else ():
            del plain["state"][field]
        (run_dir / name).write_text(json.dumps(sealed(plain)))

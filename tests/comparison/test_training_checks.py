"""What needs one process says so at once, and names what several can do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import pytest

from jaxprune.comparison.calibration import calibrate
from jaxprune.comparison.protocol import compare
from jaxprune.comparison.pruning_setup import set_up_pruning

NEEDS_ONE: dict[str, Callable[[], Any]] = {
    "pruning": lambda: set_up_pruning("l1", network="none", data="none", recipe="none"),
    "a comparison": lambda: compare(["none"], []),
    "a calibration": lambda: calibrate(None),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("what", NEEDS_ONE)
def test_several_processes_are_refused_before_anything_is_looked_at(
    what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(
        ValueError, match=rf"^{what} needs one process.* got 2 .*share a search \(evolve\) or a transfer"
    ):
        NEEDS_ONE[what]()

"""Base networks shared by processes, here threads: the bits of one process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_tasks import small
from threads_as_hosts import on_hosts

from jaxprune.hosts.sharing import Hosts
from jaxprune.language.library import library
from jaxprune.scoring.metrics import metrics
from jaxprune.tasks.base_networks import BasePool, Entry
from jaxprune.tasks.shared_pool import SharedPool, _function_from_plain, _function_to_plain
from jaxprune.tasks.task_programs import TaskPrograms
from jaxprune.training.trainer import Trained

KEPT = (("first", (0, 2, 5, 7)),)


def bits(trained: Trained) -> tuple[Any, ...]:
    """All bits of weights and accuracies."""
    weights = {path: np.asarray(array).tobytes() for path, array in trained.weights.items()}
    return weights, trained.accuracies.tobytes()


def test_shared_bases_and_fine_tunings_are_those_of_one_process(tmp_path: Path) -> None:
    programs = TaskPrograms(small())
    alone = BasePool(programs, 0, "search", 3)
    (group,) = programs.structure.widths
    kept = tuple((group, channels) for _, channels in KEPT)
    entries = [
        Entry(0, kept=kept),
        Entry(1, 1, library["l1"]),
        Entry(2, draw=1),
        Entry(0),
        Entry(2, kept=kept),
    ]
    expected = [bits(trained) for trained in alone.finetune(entries, evaluations=2)]

    def act(hosts: Hosts) -> Any:
        folder = tmp_path if hosts.is_leader else None
        pool = SharedPool(programs, 0, "search", 3, folder=folder, hosts=hosts)
        if not hosts.is_leader:
            hosts.serve()
        accuracies = [base.accuracy for base in pool.bases]
        found = [bits(trained) for trained in pool.finetune(entries, evaluations=2, with_weights=True)]
        (short,) = pool.finetune(entries[:1], evaluations=2)
        assert hosts.num_run > 0
        return accuracies, found, short

    accuracies, found, short = on_hosts(2, act)[0]
    assert accuracies == [base.accuracy for base in alone.bases]
    assert found == expected
    assert short.weights == {} and short.accuracies.tobytes() == expected[0][1]
    assert len(list(tmp_path.glob("small-*/search-*"))) == 3


def test_functions_travel_by_formula_or_name() -> None:
    for function in (None, library["l2"], metrics["fpgm"]):
        assert _function_from_plain(_function_to_plain(function)) == function
    with pytest.raises(ValueError, match=r"need functions that have a name or are formulas, got <?mine"):

        def mine(operands: Any) -> Any:
            return operands

        _function_to_plain(mine)

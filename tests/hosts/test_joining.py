"""Which job a process is part of, and one folder for all."""

from __future__ import annotations

from pathlib import Path

import pytest
from threads_as_hosts import on_hosts

from jaxprune.hosts.agreement import check_one_folder
from jaxprune.hosts.joining import Group, find_group

SLURM = {
    "SLURM_JOB_ID": "5", "SLURM_STEP_NODELIST": "node[7-9]", "SLURM_NTASKS": "3", "SLURM_PROCID": "2",
    "SLURM_LOCALID": "0", "SLURM_STEP_NUM_NODES": "3",
}  # fmt: skip
JAX = {"JAX_COORDINATOR_ADDRESS": "here:1", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "1"}


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*SLURM, *JAX, "OMPI_COMM_WORLD_SIZE", "OMPI_MCA_orte_hnp_uri", "JOB_COMPLETION_INDEX"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("environment", "options", "group"),
    [
        ({}, {}, None),
        (JAX, {}, Group("here:1", 2, 1)),
        (JAX, {"rank": 0}, Group("here:1", 2, 0)),
        (JAX, {"is_asked": False}, None),
        (JAX, {"count": 1, "rank": 0}, None),
        (SLURM, {}, Group("node7:61445", 3, 2)),
        (SLURM | {"SLURM_NTASKS": "1", "SLURM_PROCID": "0"}, {}, None),
        (SLURM | {"SLURM_STEP_NUM_NODES": "1", "SLURM_LOCALID": "2"}, {}, Group("node7:61445", 3, 2, (2,))),
    ],
)  # fmt: skip
def test_the_job_is_named_or_detected(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], options: dict[str, int], group: Group | None
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert find_group(**options) == group


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"is_asked": True},
            "need --coordinator, --num-processes, --process-id, and JAX detects no TPU slice",
        ),
        ({"coordinator": "here:1", "count": 2}, "several processes need --process-id"),
        (
            {"coordinator": "here", "count": 2, "rank": 0},
            "HOST:PORT of process 0, .* from 1 to 65535, got 'here'",
        ),
        ({"coordinator": "here:65536", "count": 2, "rank": 1}, "from 1 to 65535, got 'here:65536'"),
        (
            {"coordinator": "here:1", "count": 0, "rank": 0},
            r"needs 1 process or more, got 0 \(--num-processes\)",
        ),
        ({"coordinator": "here:1", "count": 2, "rank": 2}, "from 0 to 1, because there are 2"),
    ],
)
def test_what_is_missing_or_wrong_is_named(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        find_group(**options)


def test_a_number_of_the_environment_needs_to_be_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAX_PROCESS_ID", "two")
    with pytest.raises(ValueError, match=r"JAX_PROCESS_ID needs a whole number, got 'two'"):
        find_group()


def test_all_see_one_folder_or_are_told_who_does_not(tmp_path: Path) -> None:
    shared, other = tmp_path / "shared", tmp_path / "other"
    assert on_hosts(2, lambda hosts: check_one_folder(hosts, shared)) == [None, None]
    assert list(shared.iterdir()) == []
    found = on_hosts(
        3, lambda hosts: check_one_folder(hosts, other if hosts.rank == 2 else shared, seconds=0.1)
    )
    assert {type(error) for error in found} == {ValueError}
    assert "process 2 on " in str(found[1]) and f"sees another folder at {other}" in str(found[1])
    assert "process 1" not in str(found[1])

"""Rows of members over all local devices: the bits and the compilations of one device, whatever their number."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from on_devices import CHUNK, NUM_MEMBERS, digest, make_jobs, make_trainer, search

from jaxprune.files import CHECK
from jaxprune.search.journal import read_journal, without_times
from jaxprune.training.local_devices import on_all_devices, over_devices, row_size, stack_row, unstack_row
from jaxprune.training.trainer import Trained, Trainer

SCRIPT = Path(__file__).resolve().parent.parent / "support" / "on_devices.py"


@pytest.fixture(scope="module")
def trainer() -> Trainer:
    return make_trainer()


@pytest.fixture(scope="module")
def one_device(trainer: Trainer) -> list[str]:
    """Hashes of the members of `make_jobs`, trained by the one device of this process."""
    return digest(list(trainer.run(make_jobs())))


def run_on(num_devices: int, folder: Path) -> dict[str, Any]:
    """What the script prints with so many devices."""
    found: dict[str, Any] = json.loads(output_of([SCRIPT, folder], num_devices))
    return found


def output_of(arguments: Sequence[str | Path], num_devices: int) -> str:
    """What Python prints with so many devices."""
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={num_devices}"
    # XLA's pool has a thread for each device at least, and large matrix products are split by the size of the pool.
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "NPROC": "8"}
    done = subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        env=environment,
        timeout=400,
        cwd=SCRIPT.parent,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def results_of(run_dir: Path) -> dict[str, Any]:
    """All results of a run, without times."""
    return {
        "journal": [without_times(line) for line in read_journal(run_dir / "journal.jsonl")],
        "archive": (run_dir / "archive.json").read_text(),
        "final": untimed(json.loads((run_dir / "final.json").read_text())),
        "batching": json.loads((run_dir / "config.json").read_text())["batching"],
    }


def untimed(plain: Any) -> Any:
    """Plain data without times, and without checksums, which cover them."""
    if isinstance(plain, dict):
        return {name: untimed(value) for name, value in plain.items() if name not in ("seconds", CHECK)}
    return [untimed(value) for value in plain] if isinstance(plain, list) else plain


def test_a_row_is_padded_by_copies_of_its_last_member_and_comes_back_in_order() -> None:
    row = stack_row([np.array([1.0, 2.0]), np.array([3.0, 4.0])], 4 * jax.local_device_count())
    np.testing.assert_array_equal(row[:4], [[1, 2], [3, 4], [3, 4], [3, 4]])
    for member, expected in zip(unstack_row(row, 2), ([1, 2], [3, 4]), strict=True):
        np.testing.assert_array_equal(member, expected)
        assert not member.committed  # what is computed from it compiles as it does for any other array


def test_typed_keys_are_members_too() -> None:
    keys = [jax.random.key(seed) for seed in range(2)]
    draws = over_devices(lambda key, scale: scale * jax.random.normal(key))(
        stack_row(keys, row_size(2)), on_all_devices(jnp.float32(2))
    )
    np.testing.assert_allclose(draws[:2], [2 * float(jax.random.normal(key)) for key in keys], rtol=1e-6)


def test_examples_on_one_device_are_not_copied(trainer: Trainer) -> None:
    if jax.local_device_count() == 1:
        placed = trainer._placed[0].x.addressable_shards[0].data
        assert placed.unsafe_buffer_pointer() == trainer.data.x.unsafe_buffer_pointer()
    assert on_all_devices(trainer._placed)[0].x is trainer._placed[0].x


def test_rows_have_the_bits_of_a_plain_vmap_of_one_chunk(trainer: Trainer, one_device: list[str]) -> None:
    plain = jax.jit(jax.vmap(trainer._program, in_axes=(0, None, None)))
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *make_jobs()[:CHUNK])
    weights, counts = plain(stacked, trainer.data, trainer.validation)
    members = [
        Trained(jax.tree.map(lambda leaf, i=i: leaf[i], weights), trainer._percent(counts[i]), 0.0)
        for i in range(CHUNK)
    ]
    assert digest(members) == one_device[:CHUNK]


def test_journals_and_bits_are_those_of_one_device(
    tmp_path: Path, trainer: Trainer, one_device: list[str]
) -> None:
    one = search(tmp_path / "1")
    trials = [line for line in one["journal"] if line["kind"] == "trial"]
    start = sum(line["generation"] == 0 for line in trials)
    summary = json.loads((tmp_path / "1" / "run" / "state.json").read_text())["state"]["summaries"][0]
    size = CHUNK * jax.local_device_count()
    assert start % size and summary["idle_seconds"] / summary["row_seconds"] == pytest.approx(
        -start % size / (start + -start % size)
    )
    assert len(trials) > 4 * CHUNK  # more than four devices hold at a time
    assert len(set(one_device)) == NUM_MEMBERS
    for num_devices in (2, 4):
        found = run_on(num_devices, tmp_path / str(num_devices))
        assert found["devices"] == num_devices
        assert found["digests"] == one_device
        assert found["programs"] == 1
        assert {name: found[name] for name in one} == one
    assert trainer._vmapped._cache_size() == 1  # type: ignore[attr-defined]


@pytest.mark.slow
def test_eight_devices_compile_as_often_as_one(tmp_path: Path, one_device: list[str]) -> None:
    one, eight = (run_on(num_devices, tmp_path / str(num_devices)) for num_devices in (1, 8))
    # One small program splits the keys of a row.
    assert eight.pop("compiled") - one.pop("compiled") in (0, 1)
    assert (one.pop("devices"), eight.pop("devices")) == (1, 8)
    assert one == eight
    assert one["digests"] == one_device


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("batching", [("scan",), ("vmap", "--chunk", "2")], ids=["scan", "vmap"])
def test_search_and_final_comparison_are_those_of_one_device(
    tmp_path: Path, batching: tuple[str, ...]
) -> None:
    task = "--task on_devices:normed --unseen none --fitness finetune --seeds paper --generations 1 --population 4"
    command = ["-m", "jaxprune.cli", "evolve", *task.split(), "--quiet", "--batching", *batching]
    found = {}
    for num_devices in (1, 2, 4, 8):
        run_dir = tmp_path / str(num_devices)
        output_of([*command, "--run-dir", run_dir], num_devices)
        found[num_devices] = results_of(run_dir)
    one = found.pop(1)
    assert one["final"] and sum(line["kind"] == "trial" for line in one["journal"]) > 4 * CHUNK
    assert one["batching"]["normed"]["strategy"] == batching[0]
    for num_devices, results in found.items():
        assert results == one, num_devices

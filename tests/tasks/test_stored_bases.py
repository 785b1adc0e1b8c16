"""Stored base networks: none is used in the place of another, none is lost, and those of earlier versions count."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import orbax.checkpoint as ocp
import pytest
from tiny_task import tiny_programs, tiny_task

from jaxprune.files import RunDirectoryError
from jaxprune.structure.model_state import dotted
from jaxprune.tasks.base_networks import Base, BasePool
from jaxprune.tasks.task_identity import fingerprint_of
from jaxprune.tasks.task_programs import TaskPrograms
from jaxprune.training.checkpoint import save_network
from jaxprune.training.loop import split_network

PATH = ("conv1", "kernel")


@pytest.fixture(scope="module")
def trained(bases_dir: Path) -> tuple[Base, ...]:
    return BasePool(tiny_programs(), 0, "search", 2, folder=bases_dir).bases


@pytest.fixture
def folder(trained: tuple[Base, ...], bases_dir: Path, tmp_path: Path) -> Path:
    """A copy of the stored base networks, to be damaged."""
    name = f"tiny-{tiny_programs().fingerprint}-0"
    return shutil.copytree(bases_dir / name, tmp_path / "bases" / name)


def pool_of(folder: Path, messages: list[str], num_bases: int = 2, seed: int = 0) -> BasePool:
    programs = tiny_programs()
    return BasePool(programs, seed, "search", num_bases, folder=folder.parent, on_message=messages.append)


def flip_a_bit(folder: Path) -> None:
    tree = ocp.PyTreeCheckpointer().restore(folder / "search-1")
    tree["weights"][dotted(PATH)].view(np.uint32)[0, 0, 0, 0] ^= 1
    ocp.PyTreeCheckpointer().save(folder / "search-1", tree, force=True)


def copy_base_0(folder: Path) -> None:
    shutil.rmtree(folder / "search-1")
    shutil.copytree(folder / "search-0", folder / "search-1")


def leave_a_thesis(folder: Path) -> None:
    shutil.rmtree(folder / "search-1")
    (folder / "search-1").mkdir()
    (folder / "search-1" / "thesis.tex").write_text("mine")


DAMAGES = {
    "a flipped bit": (flip_a_bit, "its content has changed since it was saved"),
    "base 0 in its place": (copy_base_0, r"it is another network: search base 0 of task tiny-\w+, seed 0"),
    "files of the user's": (leave_a_thesis, "it cannot be read"),
    "a missing file": (lambda folder: (folder / "search-1" / "manifest.ocdbt").unlink(), "cannot be read"),
}


@pytest.mark.parametrize(("damage", "reason"), DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_base_is_told_kept_and_trained_again(
    damage: Callable[[Path], None],
    reason: str,
    folder: Path,
    trained: tuple[Base, ...],
) -> None:
    damage(folder)
    content = sorted(path.name for path in (folder / "search-1").rglob("*"))
    messages: list[str] = []
    bases = pool_of(folder, messages).bases
    for one, other in zip(bases, trained, strict=True):
        np.testing.assert_array_equal(one.weights[PATH], other.weights[PATH])
        assert one.accuracy == other.accuracy
    (message,) = messages
    assert message.startswith(f"base network {folder / 'search-1'} is not used: ")
    assert re.search(reason, message)
    assert "kept as search-1.damaged, and the network is trained again" in message
    assert sorted(path.name for path in (folder / "search-1.damaged").rglob("*")) == content
    messages.clear()
    assert pool_of(folder, messages).bases[1].accuracy == trained[1].accuracy
    assert not messages


def test_damaged_networks_are_kept_under_different_names(folder: Path) -> None:
    messages: list[str] = []
    for _ in range(2):
        flip_a_bit(folder)
        _ = pool_of(folder, messages).bases
    assert {"search-1", "search-1.damaged", "search-1.damaged1"} <= {path.name for path in folder.iterdir()}
    assert len(messages) == 2


def test_bases_of_another_seed_are_not_taken(folder: Path) -> None:
    renamed = folder.rename(folder.with_name(folder.name.removesuffix("-0") + "-1"))
    messages: list[str] = []
    assert pool_of(renamed, messages, num_bases=1, seed=1).bases[0].weights
    assert "it is another network" in messages[0]


def test_without_a_listener_damage_is_a_warning(folder: Path) -> None:
    flip_a_bit(folder)
    with pytest.warns(UserWarning, match=r"search-1 is not used: its content has changed"):
        _ = BasePool(tiny_programs(), 0, "search", 2, folder=folder.parent).bases


def test_a_damaged_base_that_cannot_be_put_aside_stops(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    flip_a_bit(folder)
    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(RunDirectoryError, match=r"could not put the damaged base network .*search-1 aside"):
        _ = pool_of(folder, []).bases


def test_bases_on_pixels_of_earlier_versions_are_used(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (60, 8, 8, 1), np.uint8)
    split = (pixels, np.arange(60) % 4)
    task = tiny_task("mine").replace(train=split, validation=split, test=None, calibration=40)
    programs = TaskPrograms(task)
    old = fingerprint_of({**programs.identity, "data": "fca8aef4b3171777"})  # of the standardised images
    assert programs.is_known_as(old) and programs.earlier_fingerprints[2] == old
    weights = split_network(programs.model)[1]
    name = f"search base 0 of task mine-{old}, seed 0"
    save_network(tmp_path / f"mine-{old}-0" / "search-0", weights, {"accuracy": 12.5}, name)
    messages: list[str] = []
    pool = BasePool(programs, 0, "search", 1, folder=tmp_path, on_message=messages.append)
    assert pool.bases[0].accuracy == 12.5 and not messages


@pytest.mark.parametrize("where", [0, 1], ids=["in a pipe", "on a terminal"])
def test_bases_of_earlier_versions_are_used(where: int, folder: Path, trained: tuple[Base, ...]) -> None:
    old = folder.with_name(f"tiny-{tiny_programs().earlier_fingerprints[where]}-0")
    weights = {dotted(path): np.asarray(array) for path, array in trained[0].weights.items()}
    weights[dotted(PATH)] = weights[dotted(PATH)] + 1  # so that it is not a network trained anew
    tree = {"weights": weights, "numbers": {"accuracy": np.float64(12.5)}}
    ocp.PyTreeCheckpointer().save(old / "search-0", tree)
    messages: list[str] = []
    shutil.rmtree(folder)
    (base,) = pool_of(folder, messages, num_bases=1).bases
    assert base.accuracy == 12.5 and not messages
    np.testing.assert_array_equal(base.weights[PATH], weights[dotted(PATH)])
    shutil.rmtree(old)  # it has been stored again, with a checksum
    assert pool_of(folder, messages, num_bases=1).bases[0].accuracy == 12.5

"""Stored networks: what comes back is what was saved under that name, or it is refused."""

from __future__ import annotations

import shutil
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from jaxprune.structure.model_state import FlatState
from jaxprune.training.checkpoint import DamagedNetworkError, load_network, read_weights, save_network

WEIGHTS: FlatState = {
    ("conv", "kernel"): np.random.default_rng(0).normal(size=(3, 3, 2, 4)).astype(np.float32),
    ("conv", "bias"): np.zeros(4, np.float32),
    ("layers", 0, "scale"): np.linspace(0, 1, 5).astype(jnp.bfloat16),
    ("steps",): np.array(7, np.int32),
}
NUMBERS = {"accuracy": 97.1}
NAME = "search base 1 of task tiny"


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("stored") / "search-1"
    save_network(path, WEIGHTS, NUMBERS, NAME)
    return path


def is_as_saved(loaded: tuple[FlatState, dict[str, float]] | None) -> bool:
    return (
        loaded is not None
        and loaded[1] == NUMBERS
        and all(
            np.asarray(loaded[0][path]).tobytes() == np.asarray(array).tobytes()
            for path, array in WEIGHTS.items()
        )
    )


def test_a_network_comes_back_bit_by_bit(stored: Path) -> None:
    assert is_as_saved(load_network(stored, WEIGHTS, NAME))
    assert load_network(stored.parent / "absent", WEIGHTS, NAME) is None


def test_a_network_of_another_name_is_refused_with_both_names(stored: Path) -> None:
    with pytest.raises(DamagedNetworkError, match="it is another network: search base 1 of task tiny"):
        load_network(stored, WEIGHTS, "search base 0 of task tiny")


def test_any_flipped_bit_is_noticed_or_harmless(stored: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    noticed = 0
    for number in range(24):
        copy = shutil.copytree(stored, tmp_path / str(number))
        files = sorted(path for path in copy.rglob("*") if path.is_file() and path.stat().st_size)
        file = files[number % len(files)]
        content = bytearray(file.read_bytes())
        content[rng.integers(len(content))] ^= 1 << int(rng.integers(8))
        file.write_bytes(bytes(content))
        try:
            assert is_as_saved(load_network(copy, WEIGHTS, NAME)), file
        except DamagedNetworkError:
            noticed += 1
    assert noticed > 5


def spoil_numbers(path: Path) -> None:
    save_network(path, WEIGHTS, {"accuracy": 99.9}, NAME)
    tree = ocp.PyTreeCheckpointer().restore(path)
    tree["numbers"]["accuracy"] = np.float64(12.0)
    ocp.PyTreeCheckpointer().save(path, tree, force=True)


def spoil_weight(path: Path) -> None:
    tree = ocp.PyTreeCheckpointer().restore(path)
    tree["weights"]["conv.bias"][2] = 1e-30
    ocp.PyTreeCheckpointer().save(path, tree, force=True)


def without_checksum(path: Path) -> None:
    tree = ocp.PyTreeCheckpointer().restore(path)
    ocp.PyTreeCheckpointer().save(path, {name: tree[name] for name in ("weights", "numbers")}, force=True)


def replaced_by_a_file(path: Path) -> None:
    shutil.rmtree(path)
    path.write_text("my notes")


def replaced_by_a_folder(path: Path) -> None:
    shutil.rmtree(path)
    path.mkdir()
    (path / "thesis.tex").write_text("?")


DAMAGES = {
    "another accuracy": (spoil_numbers, "its content has changed"),
    "another weight": (spoil_weight, "its content has changed"),
    "no checksum": (without_checksum, "cannot be read"),
    "a file": (replaced_by_a_file, "cannot be read"),
    "a folder of the user's": (replaced_by_a_folder, "cannot be read"),
    "no metadata": (lambda path: (path / "_METADATA").unlink(), "cannot be read"),
    "nothing in it": (lambda path: [shutil.rmtree(path), path.mkdir()], "cannot be read"),
}


@pytest.mark.parametrize(("damage", "message"), DAMAGES.values(), ids=DAMAGES)
def test_damage_is_named_and_left_alone(damage, message, stored, tmp_path):  # type: ignore[no-untyped-def]
    path = shutil.copytree(stored, tmp_path / "copy")
    damage(path)
    before = sorted(file.name for file in path.rglob("*")) if path.is_dir() else path.read_text()
    with pytest.raises(DamagedNetworkError, match=message):
        load_network(path, WEIGHTS, NAME)
    assert before == (sorted(file.name for file in path.rglob("*")) if path.is_dir() else path.read_text())


def test_other_shapes_and_types_are_refused(stored: Path) -> None:
    for other in (np.zeros(3, np.float32), np.zeros(4, np.float16)):
        with pytest.raises(DamagedNetworkError, match="other shapes or types than the network's"):
            load_network(stored, {**WEIGHTS, ("conv", "bias"): other}, NAME)


def test_networks_of_earlier_versions_are_read_where_they_may_be(stored: Path, tmp_path: Path) -> None:
    path = shutil.copytree(stored, tmp_path / "copy")
    without_checksum(path)
    assert is_as_saved(load_network(path, WEIGHTS, NAME, is_checked=False))
    path = shutil.copytree(stored, tmp_path / "other")
    spoil_weight(path)
    with pytest.raises(
        DamagedNetworkError, match="its content has changed"
    ):  # a checksum that is there counts
        load_network(path, WEIGHTS, NAME, is_checked=False)


def test_weights_of_ones_own_are_checked_by_their_checksum_alone(stored: Path, tmp_path: Path) -> None:
    np.testing.assert_array_equal(read_weights(stored, WEIGHTS)["conv", "kernel"], WEIGHTS["conv", "kernel"])
    path = shutil.copytree(stored, tmp_path / "copy")
    spoil_weight(path)
    with pytest.raises(
        ValueError, match=r"needs a checkpoint as it was saved, got .*copy, but its content has"
    ):
        read_weights(path, WEIGHTS)
    without_checksum(path)  # Orbax's own checkpoints have none
    assert read_weights(path, WEIGHTS)["conv", "bias"][2] == np.float32(1e-30)

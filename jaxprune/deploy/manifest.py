"""The manifest of a saved network: what the other files are, and how the network is made again.

It is JSON with a checksum of its own, and has the size and SHA-256 of every other file.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, get_args

from jaxprune._version import __version__
from jaxprune.deploy.network_sources import NetworkSource
from jaxprune.files import RunDirectoryError, read_json, sealed, to_text, unsealed
from jaxprune.types import is_whole

WeightsFormat = Literal["safetensors", "orbax"]

MANIFEST = "manifest.json"
KIND = "jaxprune network"
FORMAT = 1
_REMEDY = "Restore it from a backup, or save the network again."


@dataclass(frozen=True)
class Manifest:
    """What `manifest.json` says."""

    weights: WeightsFormat
    """How the arrays are stored."""
    source: NetworkSource | None
    """What makes the dense network; None if that was not said."""
    plans: tuple[str, ...]
    """Files of the plans, in the order in which they were applied."""
    attributes: tuple[Mapping[str, int], ...]
    """For each plan the `attributes` of `slim`."""
    recast: tuple[str, ...]
    """Arrays that are of another dtype than in a network that the factory makes."""
    random: Mapping[str, str]
    values: Mapping[str, tuple[str, str]]
    """As in `stored_state.StoredState`."""


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Writes a manifest for a folder of whole files.

    Args:
      folder: has all files but the manifest.
      manifest: what to write.

    Raises:
      OSError: if it cannot be written.
    """
    record = {
        "kind": KIND,
        "format": FORMAT,
        "versions": {"jaxprune": __version__, "jax": version("jax"), "flax": version("flax")},
        "weights": manifest.weights,
        "network": manifest.source.to_record() if manifest.source else None,
        "plans": list(manifest.plans),
        "attributes": [dict(each) for each in manifest.attributes],
        "recast": list(manifest.recast),
        "random": dict(manifest.random),
        "values": {name: list(value) for name, value in manifest.values.items()},
        "files": {name: _mark(folder / name) for name in _file_names(folder)},
    }
    (folder / MANIFEST).write_text(to_text(sealed(record), indent=1), encoding="utf-8")


def read_manifest(folder: Path) -> Manifest:
    """Reads the manifest of a saved network, and checks all files against it.

    Args:
      folder: as `save` wrote it.

    Returns:
      The manifest.

    Raises:
      FileNotFoundError: if there is nothing at that path.
      ValueError: if the folder is none of a saved network, is of a newer format, or files are missing or damaged; names
        all of these.
    """
    if not folder.exists():
        raise FileNotFoundError(f"needs a folder that jaxprune.save wrote, and there is nothing at {folder}.")
    if not (folder / MANIFEST).is_file():
        content = "which is no folder"
        if folder.is_dir():
            names = sorted(child.name for child in folder.iterdir())
            content = f"a folder with {', '.join(names[:4]) or 'nothing'} in it and no {MANIFEST}"
        raise ValueError(f"needs a folder that jaxprune.save wrote, got {folder}, {content}.")
    try:
        record = unsealed(read_json(folder / MANIFEST, _REMEDY), folder / MANIFEST, _REMEDY)
    except RunDirectoryError as error:
        raise ValueError(str(error)) from error
    found = record.get("format")
    if record.get("kind") != KIND or not is_whole(found, smallest=1):
        raise ValueError(
            f"needs a folder that jaxprune.save wrote, got {folder}, whose {MANIFEST} is of another kind."
        )
    if found > FORMAT:
        raise ValueError(
            f"needs a saved network of format {FORMAT} or older, got {folder} of format {found}, written by jaxprune "
            f"{record.get('versions', {}).get('jaxprune', 'of a newer version')}. Use that version to read it."
        )
    try:
        manifest = _from_record(record)
        damages = _damages(folder, record["files"])
    except (
        KeyError,
        TypeError,
        ValueError,
        AttributeError,
    ) as error:  # written by hand, with a right checksum
        raise ValueError(
            f"needs a folder that jaxprune.save wrote, got {folder}, whose {MANIFEST} does not have that form "
            f"({error})."
        ) from error
    if damages:
        raise ValueError(
            f"needs the files that jaxprune.save wrote to {folder}, but {'; '.join(damages)}. {_REMEDY}"
        )
    return manifest


def is_saved(folder: Path) -> bool:
    """Tells whether a folder is one that `save` wrote, of any format, damaged or not."""
    try:
        return not folder.is_symlink() and read_json(folder / MANIFEST).get("kind") == KIND
    except RunDirectoryError:
        return False


def _from_record(record: Mapping[str, Any]) -> Manifest:
    """Returns the manifest that an object of JSON holds."""
    if record["weights"] not in get_args(WeightsFormat):
        raise ValueError(f"weights are {record['weights']!r}")
    network = record["network"]
    return Manifest(
        weights=record["weights"],
        source=None if network is None else NetworkSource.from_record(network),
        plans=tuple(map(str, record["plans"])),
        attributes=tuple(dict(each) for each in record["attributes"]),
        recast=tuple(map(str, record["recast"])),
        random=dict(record["random"]),
        values={name: (kind, text) for name, (kind, text) in record["values"].items()},
    )


def _file_names(folder: Path) -> list[str]:
    """Names of all files in a folder and those below, with slashes."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def _mark(path: Path) -> dict[str, Any]:
    """Size and hash of a file."""
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _damages(folder: Path, marks: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Says which files are not as they were written."""
    problems = []
    for name, mark in marks.items():
        path = folder / name
        if not path.is_file():
            problems.append(f"{name} is missing")
        elif path.stat().st_size != mark["bytes"]:
            problems.append(f"{name} has {path.stat().st_size} bytes instead of {mark['bytes']}")
        elif _mark(path)["sha256"] != mark["sha256"]:
            problems.append(f"{name} was changed or damaged (its checksum differs)")
    return problems

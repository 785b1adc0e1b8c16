"""Image sets that TensorFlow Datasets has prepared in a folder: found by their names.

A prepared set lies in `data_dir/NAME/VERSION` or `data_dir/NAME/CONFIG/VERSION`, as `jaxprune prepare` or TensorFlow
Datasets itself has written it: two files that describe it, and files of records. Its name is written
`tfds:NAME[/CONFIG][/LABEL][:VERSION]`, such as `tfds:mnist`, `tfds:cifar100/coarse_label` or
`tfds:imagenette/320px-v2:1.0.0`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from jaxprune.datasets.prepared_sets import PREFIX, SHRUNK, PreparedSet, how_to_prepare, import_tfds
from jaxprune.text import closest

_VERSION = re.compile(r"\d+\.\d+\.\d+")
_NAME = re.compile(r"(\w+)((?:/[\w.+-]+)*)(?::(\d+\.\d+\.\d+))?")


def data_directory(data_dir: str | os.PathLike[str] | None = None) -> Path:
    """Returns the data directory: the one given, else `$TFDS_DATA_DIR`, else `~/tensorflow_datasets`.

    Args:
      data_dir: a folder, or None.

    Raises:
      ValueError: for an address of a bucket, which has to be mounted.
    """
    given = os.fspath(data_dir) if data_dir is not None else os.environ.get("TFDS_DATA_DIR", "")
    if re.match(r"\w{2,}:/", given):  # a `Path` has one slash of the two
        raise ValueError(
            f"the data directory needs to be a folder, got {given}. Mount the bucket, with gcsfuse for instance, and "
            "name the folder."
        )
    return Path(given or "~/tensorflow_datasets").expanduser()


def find_prepared(name: str, data_dir: str | os.PathLike[str] | None = None) -> PreparedSet:
    """Finds a prepared set and reads its description.

    Args:
      name: `tfds:NAME[/CONFIG][/LABEL][:VERSION]`, where LABEL is the key of the label, by default the set's usual
        one, and the newest version is taken by default; `tfds:` may be left out.
      data_dir: the data directory, see `data_directory`.

    Raises:
      ImportError: if the packages for reading are missing.
      ValueError: if there is no such set, configuration, version or label, the set is not prepared, only in part or
        as TFRecords, or it has no images with class labels.
    """
    tfds = import_tfds()
    root = data_directory(data_dir)
    if root.exists() and not root.is_dir():
        raise ValueError(f"the data directory needs to be a folder, got the file {root}.")
    place, parts, version = _place(tfds, name, root)
    versions = _versions(place.folder)
    if not versions or (version and version not in versions):
        raise ValueError(_why_absent(tfds, place, versions, version))
    folder = place.folder / (version or versions[-1])
    if len(parts) > 1:
        raise ValueError(f"{place.name} needs at most one key of a label, got {', '.join(parts)}.")
    return _described(place, folder, _builder(tfds, place, folder), parts[0] if parts else "")


def is_prepared(name: str, data_dir: str | os.PathLike[str] | None = None) -> bool:
    """Tells whether a folder for the version of a set is there, whole or not.

    Args:
      name: as in `find_prepared`.
      data_dir: the data directory.

    Raises:
      ImportError, ValueError: as `find_prepared` does for names that cannot be read.
    """
    place, _, version = _place(import_tfds(), name, data_directory(data_dir))
    versions = _versions(place.folder)
    return version in versions if version else bool(versions)


def prepared_names(data_dir: str | os.PathLike[str] | None = None) -> list[str]:
    """Returns the names, with `tfds:`, of the sets that have a folder for a version, whole or not, in order.

    Args:
      data_dir: the data directory.

    Raises:
      ValueError: as `data_directory`.
    """
    root = data_directory(data_dir)
    folders = [folder for pattern in ("*/", "*/*/") for folder in root.glob(pattern) if _versions(folder)]
    names = [folder.relative_to(root).as_posix() for folder in folders]
    return sorted(PREFIX + name for name in names if _NAME.fullmatch(name))


class _Place(NamedTuple):
    """Where a set with some name is looked for: its folder, without the version."""

    name: str
    root: Path
    set_name: str
    config: str

    @property
    def folder(self) -> Path:
        """The folder that holds the versions."""
        return self.root / self.set_name / self.config

    @property
    def how(self) -> str:
        """How to prepare the set."""
        return how_to_prepare(self.set_name, self.config, self.root)


def _place(tfds: ModuleType, name: str, root: Path) -> tuple[_Place, list[str], str]:
    """Reads a name: where its set lies, what follows the configuration, and the version or ""."""
    full_name = PREFIX + name.removeprefix(PREFIX)
    set_name, parts, version = parse_name(name)
    folder = root / set_name
    configs = sorted(path.name for path in folder.glob("*/") if path.name[0].isalnum() and _versions(path))
    if parts and (parts[0] in configs or SHRUNK.fullmatch(parts[0]) or _is_config(tfds, set_name, parts[0])):
        return _Place(full_name, root, set_name, parts[0]), parts[1:], version
    usual = [config for config in configs if not SHRUNK.fullmatch(config)]
    if _versions(folder) or not usual:
        return _Place(full_name, root, set_name, ""), parts, version
    if len(usual) > 1:
        raise ValueError(
            f"{full_name} needs a configuration, got none, and there are several in {folder}. Say one of "
            f"{', '.join(f'{PREFIX}{set_name}/{config}' for config in configs)}."
        )
    return _Place(full_name, root, set_name, usual[0]), parts, version


def parse_name(name: str) -> tuple[str, list[str], str]:
    """Splits the name of a set into the set, the parts between slashes, and the version, "" for the newest.

    Args:
      name: with or without `tfds:`.

    Raises:
      ValueError: if it does not look like the name of a set.

    Example:
      >>> parse_name("tfds:imagenette/320px-v2:1.0.0")
      ('imagenette', ['320px-v2'], '1.0.0')
    """
    match = _NAME.fullmatch(name.removeprefix(PREFIX))
    if match is None:
        raise ValueError(
            f"the name of a set needs to look like {PREFIX}mnist, {PREFIX}cifar100/coarse_label or "
            f"{PREFIX}imagenette/320px-v2:1.0.0, got {name!r}."
        )
    return match[1], match[2].split("/")[1:], match[3] or ""


def _versions(folder: Path) -> list[str]:
    """Versions that a folder has, the newest last."""
    names = [path.name for path in folder.glob("*.*.*") if _VERSION.fullmatch(path.name) and path.is_dir()]
    return sorted(names, key=lambda name: tuple(map(int, name.split("."))))


def _is_config(tfds: ModuleType, set_name: str, config: str) -> bool:
    """Whether a set that the library knows has such a configuration."""
    if set_name not in tfds.list_builders(with_community_datasets=False):
        return False
    return config in tfds.builder_cls(set_name).builder_configs


def check_known(tfds: ModuleType, set_name: str, root: Path) -> None:
    """Checks that the library knows a set, or that something with its name is there.

    Args:
      tfds: the library.
      set_name: the set.
      root: the data directory.

    Raises:
      ValueError: if neither is so; the message suggests the closest name.
    """
    known = tfds.list_builders(with_community_datasets=False)
    if set_name not in known and not (root / set_name).is_dir():
        raise ValueError(
            f"{PREFIX}{set_name} needs to be a set of TensorFlow Datasets, or a prepared one in {root}, got neither."
            f"{closest(set_name, known)}"
        )


def _why_absent(tfds: ModuleType, place: _Place, versions: Sequence[str], wanted: str) -> str:
    """The message about a set that is not prepared; an error if it is not known at all."""
    check_known(tfds, place.set_name, place.root)
    got = "nothing of it there"
    if versions:
        got = f"only version {', '.join(versions)}"
    elif not place.root.is_dir():
        got = "no such folder"
    elif any(place.folder.glob("*incomplete*")):
        got = "a preparation that did not end"
    how = how_to_prepare(place.set_name, place.config, place.root, wanted)
    return (
        f"{place.name} needs to be prepared in {place.root} first, got {got}. To do so, {how} If it is prepared "
        "elsewhere, name that folder with --data-dir (data_dir=)."
    )


def _builder(tfds: ModuleType, place: _Place, folder: Path) -> Any:  # noqa: ANN401 - has no types
    """The library's description of a prepared folder, after checking that all its files are there."""
    missing = [name for name in ("dataset_info.json", "features.json") if not (folder / name).is_file()]
    remedy = f"Restore it, or delete {folder} and {place.how}"
    if missing:
        raise ValueError(f"{place.name} needs {' and '.join(missing)} in {folder}, got none. {remedy}")
    try:
        builder = tfds.builder_from_directory(folder)
        splits = builder.info.splits.values()
        shards = [Path(file) for split in splits for file in split.filepaths]
    except Exception as error:  # of the library's readers: anything may be in a damaged file
        raise ValueError(
            f"{place.name} needs readable descriptions in {folder}, got {type(error).__name__}: "
            f"{str(error).partition(chr(10))[0]}. {remedy}"
        ) from error
    if builder.info.file_format.value != "array_record":
        raise ValueError(
            f"{place.name} needs files of array_record, which are read without TensorFlow, got "
            f"{builder.info.file_format.value} in {folder}. They cannot be converted: name another folder, and "
            f"{how_to_prepare(place.set_name, place.config, Path('FOLDER'))}"
        )
    absent = sorted(shard.name for shard in shards if not shard.is_file())
    if absent:
        raise ValueError(
            f"{place.name} needs {len(shards)} files of records in {folder}, got {len(shards) - len(absent)}: "
            f"{', '.join(absent[:3])}{' and others are' if len(absent) > 3 else ' is' if len(absent) == 1 else ' are'} "
            f"missing. {remedy}"
        )
    return builder


def _described(place: _Place, folder: Path, builder: Any, label_key: str) -> PreparedSet:  # noqa: ANN401
    """The record of a prepared set, after checking that it has images and labels."""
    import tensorflow_datasets as tfds

    features = builder.info.features
    kinds = {"image": tfds.features.Image, "label": tfds.features.ClassLabel}
    keys = {
        kind: sorted(key for key, feature in features.items() if isinstance(feature, wanted))
        for kind, wanted in kinds.items()
    }
    if not keys["image"] or not keys["label"]:
        raise ValueError(
            f"{place.name} needs images with class labels, got {', '.join(sorted(features))}. Read it "
            "yourself, and pass arrays to Dataset.from_arrays."
        )
    usual = builder.info.supervised_keys or ()
    image_key = next((key for key in keys["image"] if key in usual), keys["image"][0])
    label_keys = sorted(keys["label"], key=lambda key: key not in usual)
    chosen = label_key or label_keys[0]
    if chosen not in label_keys:
        raise ValueError(
            f"{place.name} needs a label that the set has, {' or '.join(label_keys)}, or one of its configurations, "
            f"got {chosen!r}.{closest(chosen, label_keys)}"
        )
    if str(features[image_key].np_dtype) != "uint8":
        raise ValueError(
            f"{place.name} needs images of 8 bits a colour, got {features[image_key].np_dtype}. Read it yourself, "
            "and pass arrays to Dataset.from_arrays."
        )
    splits = builder.info.splits
    return PreparedSet(
        place.name.removeprefix(PREFIX),
        place.root,
        folder,
        str(builder.info.full_name),
        image_key,
        chosen,
        {key: tuple(features[key].names) for key in label_keys},
        tuple(features[image_key].shape),
        {name: int(split.num_examples) for name, split in splits.items()},
        {name: int(split.num_bytes) for name, split in splits.items()},
        _checksums(tfds, place.set_name),
        str(builder.info.citation or builder.info.homepage or ""),
    )


def _checksums(tfds: ModuleType, set_name: str) -> tuple[str, ...]:
    """Different checksums of the archives of a set that the library knows; it checks them when it prepares the set."""
    if set_name not in tfds.list_builders(with_community_datasets=False):
        return ()
    infos = tfds.builder_cls(set_name).url_infos or {}
    return tuple(sorted({str(info.checksum) for info in infos.values()}))

"""Prepares sets of TensorFlow Datasets: downloads or takes archives, and writes records that need no TensorFlow.

What the library does itself is left to it: addresses, checksums, and the repair of files. Here is what a person wants
to know before and after: whether it is prepared already, the disk it needs, what is missing, and what went wrong.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from jaxprune.datasets.prepared_folders import (
    check_known,
    data_directory,
    find_prepared,
    is_prepared,
    parse_name,
)
from jaxprune.datasets.prepared_sets import PREFIX, SHRUNK, PreparedSet, how_to_prepare, import_tfds
from jaxprune.files import is_disk_full

DISK_FACTOR = 3
"""Disk that a set needs, in sizes of its download: the archive, what is unpacked, and the records."""

ARCHIVES = {"imagenet2012": ("ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar")}
"""Set -> archives that have to be fetched by hand, of which the library would leave out those that are missing."""

_DAMAGES = {"BadGzipFile", "BadZipFile", "EOFError", "ExtractError", "ReadError", "UnidentifiedImageError"}
"""Names of the errors that archives raise that are damaged."""

_END_OF_TAR = 1024
"""Bytes of zeros at the end of each tar archive."""

Tell = Callable[[str], object]
"""Gets a line about progress."""


def prepare(
    name: str,
    *,
    data_dir: str | os.PathLike[str] | None = None,
    manual_dir: str | os.PathLike[str] | None = None,
    tell: Tell = print,
) -> PreparedSet:
    """Prepares a set, unless it is prepared already.

    Archives that were downloaded whole are kept, so a second call goes on with the next one. Records are written to a
    temporary folder that gets its name at the end: an interrupted call leaves nothing that looks prepared.

    Args:
      name: `NAME[/CONFIG]`, with or without `tfds:`.
      data_dir: where to prepare it, see `data_directory`.
      manual_dir: folder of archives that have to be fetched by hand; by default `downloads/manual` in `data_dir`.
      tell: gets lines about what is done.

    Returns:
      The prepared set.

    Raises:
      ImportError: if TensorFlow or TensorFlow Datasets is missing.
      ValueError: if there is no such set, it has no images with labels, it is there as TFRecords or in part, the disk
        is too small, an archive is missing, damaged or not the one it should be, or the download failed.
    """
    root = data_directory(data_dir)
    tfds = import_tfds()
    set_name, parts, version = parse_name(name)
    check_known(tfds, set_name, root)
    usual = _usual_config(tfds, set_name)
    if usual and not parts:
        parts, name = [usual], f"{set_name}/{usual}" + (f":{version}" if version else "")
    if is_prepared(name, root):
        prepared = find_prepared(name, root)
        tell(f"{PREFIX}{prepared.name} is prepared already: {summary(prepared)}")
        return prepared
    builder = _builder(tfds, set_name, parts, version, root)
    _check_tensorflow(set_name)
    manual = Path(manual_dir).expanduser() if manual_dir is not None else root / "downloads" / "manual"
    archives = _check_archives(builder, set_name, manual)
    check_disk(f"{PREFIX}{set_name}", _needed_bytes(builder, archives), root, tell)
    tell_leftovers(root / set_name, tell)
    tell(f"Preparing {PREFIX}{builder.info.full_name} in {root}.")
    config = tfds.download.DownloadConfig(manual_dir=manual, try_download_gcs=False)
    logging.getLogger("urllib3").setLevel(logging.ERROR)  # which warns of each of many attempts
    try:
        with contextlib.redirect_stdout(sys.stderr):  # the library prints that it begins
            builder.download_and_prepare(download_dir=root / "downloads", download_config=config)
    except Exception as error:  # of the library and of all that it calls: their types are many
        raise _explained(error, set_name, root, manual) from error
    prepared = find_prepared(name, root)
    tell(f"{PREFIX}{prepared.name} is prepared: {summary(prepared)}")
    return prepared


def check_names(names: Iterable[str], data_dir: str | os.PathLike[str] | None = None) -> None:
    """Checks names of sets before the first one is prepared, which can take hours.

    Args:
      names: as for `prepare`.
      data_dir: likewise.

    Raises:
      ImportError: if TensorFlow Datasets is missing.
      ValueError: if there is no such set.
    """
    tfds, root = import_tfds(), data_directory(data_dir)
    for name in names:
        check_known(tfds, parse_name(name)[0], root)


def summary(prepared: PreparedSet) -> str:
    """Returns one line about a prepared set: its splits, size, and folder.

    Args:
      prepared: the set.
    """
    splits = ", ".join(f"{count:,} {split}" for split, count in prepared.num_examples.items())
    size = readable_bytes(sum(prepared.num_bytes.values()))
    return f"{splits} images, {len(prepared.class_names):,} classes, {size} in {prepared.folder}."


def readable_bytes(number: float) -> str:
    """Formats a number of bytes.

    Example:
      >>> readable_bytes(11_594_722), readable_bytes(155 * 2**30)
      ('11 MiB', '155.0 GiB')
    """
    return f"{number / 2**30:.1f} GiB" if number >= 2**30 else f"{number / 2**20:.0f} MiB"


def free_bytes(folder: Path) -> int:
    """Returns the free space on the disk of a folder in bytes.

    Args:
      folder: it need not exist.

    Example:
      >>> free_bytes(Path("runs")) > 0
      True
    """
    nearest = next(above for above in (folder.absolute(), *folder.absolute().parents) if above.exists())
    return shutil.disk_usage(nearest).free


def check_disk(what: str, needed: int, folder: Path, tell: Tell) -> None:
    """Says how much disk something needs, and checks that there is as much.

    Args:
      what: what needs it.
      needed: bytes; 0 if that is not known.
      folder: where it will be written; it need not exist.
      tell: gets a line.

    Raises:
      ValueError: if the disk is too small.
    """
    free = free_bytes(folder)
    if needed > free:
        raise ValueError(
            f"{what} needs about {readable_bytes(needed)} of disk in {folder}, got {readable_bytes(free)} free. Free "
            "some space, or name a folder on a larger disk with --data-dir."
        )
    known = f"about {readable_bytes(needed)}" if needed else "an unknown amount"
    tell(f"{what} needs {known} of disk in {folder}; {readable_bytes(free)} are free.")


def tell_leftovers(place: Path, tell: Tell) -> None:
    """Says where earlier preparations that were killed have left files.

    Args:
      place: the folder of a set in the data directory.
      tell: gets a line for each.
    """
    for folder in sorted([*place.glob("*incomplete*"), *place.glob("*/*incomplete*")]):
        tell(
            f"A preparation that did not end left {folder}: delete it, unless another one is writing there now."
        )


def _usual_config(tfds: ModuleType, set_name: str) -> str:
    """The configuration that the library takes where none is named; "" for sets without any, or unknown ones."""
    if set_name not in tfds.list_builders(with_community_datasets=False):
        return ""
    builder = tfds.builder_cls(set_name)
    return str(builder.DEFAULT_BUILDER_CONFIG_NAME or next(iter(builder.builder_configs), ""))


def _builder(tfds: ModuleType, set_name: str, parts: list[str], version: str, root: Path) -> Any:  # noqa: ANN401
    """The library's builder of a set, after checking that it has such a configuration, and images with labels."""
    if set_name not in tfds.list_builders(with_community_datasets=False):
        raise ValueError(
            f"{PREFIX}{set_name} needs to be a set of TensorFlow Datasets to be prepared, got a folder that holds no "
            f"version of it, {root / set_name}."
        )
    known = list(tfds.builder_cls(set_name).builder_configs)
    if len(parts) > 1 or (parts and parts[0] not in known):
        if len(parts) == 1 and (shrunk := SHRUNK.fullmatch(parts[0])) and (shrunk[1] or "") in ("", *known):
            how = how_to_prepare(set_name, parts[0], root)
            raise ValueError(f"{PREFIX}{set_name}/{parts[0]} is made with an option: {how}")
        configs = f"one of the configurations {', '.join(known)}" if known else "no configuration"
        raise ValueError(
            f"{PREFIX}{set_name} is prepared with {configs}, got {'/'.join(parts)!r}. All labels are prepared together."
        )
    try:
        full_name = "/".join([set_name, *parts]) + (f":{version}" if version else "")
        builder = tfds.builder(full_name, data_dir=root, file_format="array_record")
        kinds = {type(feature).__name__ for feature in builder.info.features.values()}
    except (AssertionError, ValueError, AttributeError) as error:
        raise ValueError(f"{PREFIX}{set_name} cannot be prepared: {_first_line(error)}") from error
    if not {"Image", "ClassLabel"} <= kinds:
        raise ValueError(
            f"{PREFIX}{set_name} needs images with class labels to be of use here, got features of the kinds "
            f"{', '.join(sorted(kinds))}. Prepare it with TensorFlow Datasets itself."
        )
    return builder


def _check_tensorflow(set_name: str) -> None:
    """Checks that TensorFlow is installed, without importing it."""
    try:
        is_there = importlib.util.find_spec("tensorflow") is not None
    except ValueError:  # of a module that was set to None
        is_there = False
    if not is_there:
        raise ImportError(
            f"Preparing {PREFIX}{set_name} needs TensorFlow, which writes the records once; got none. Run pip install "
            "'jaxprune[prepare]', here or in an environment of its own: reading and training need it no more."
        )


def _check_archives(builder: Any, set_name: str, manual: Path) -> list[Path]:  # noqa: ANN401 - has no types
    """The archives that a person has to fetch, after checking that they are there and whole."""
    instructions = builder.MANUAL_DOWNLOAD_INSTRUCTIONS
    if not instructions:
        return []
    names = ARCHIVES.get(set_name, ())
    missing = [name for name in names if not (manual / name).is_file()]
    if missing or not manual.is_dir() or not any(manual.iterdir()):
        url = re.search(r"https?://[^\s)]+", instructions)
        raise ValueError(
            f"{PREFIX}{set_name} needs {', '.join(missing) or 'its archives'} in {manual}, got "
            f"{'no such folder' if not manual.is_dir() else 'a folder without'}. They cannot be fetched without an "
            f"account: see {(url[0] if url else builder.info.homepage).rstrip('.')}, then name their folder with "
            "--manual-dir."
        )
    for name in names:
        with (manual / name).open("rb") as file:
            file.seek(-min(_END_OF_TAR, (manual / name).stat().st_size), os.SEEK_END)
            end = file.read()
        if end != bytes(_END_OF_TAR):
            raise ValueError(_damaged(f"{manual / name}", "its end is missing."))
    return [path for path in manual.iterdir() if path.is_file() and (not names or path.name in names)]


def _needed_bytes(builder: Any, archives: list[Path]) -> int:  # noqa: ANN401 - has no types
    """Bytes of disk that a set needs, from the sizes of what is downloaded, or of archives that are there."""
    infos: Mapping[str, Any] = {} if archives else builder.url_infos or {}
    downloads = sum(int(info.size) for info in infos.values())
    return DISK_FACTOR * downloads + sum(path.stat().st_size for path in archives)


def _explained(error: Exception, set_name: str, root: Path, manual: Path) -> Exception:
    """The error that says how to go on after one that the library raised while it prepared a set."""
    what, kind, reason = f"{PREFIX}{set_name}", type(error).__name__, _first_line(error)
    if isinstance(error, ImportError):
        return ImportError(
            f"Preparing {what} needs another package: {reason} Install it, and prepare the set again."
        )
    if isinstance(error, OSError) and is_disk_full(error):
        return ValueError(
            f"{what} needs more disk than {root} has: it is full. Free some space, and prepare it again."
        )
    if kind == "NonMatchingChecksumError":
        return ValueError(
            f"{what} needs archives with the checksums that TensorFlow Datasets knows, got another one. {reason} The "
            f"file is damaged or was changed at its source: delete it from {root / 'downloads'}, and prepare the set "
            "again."
        )
    if kind == "DownloadError" or type(error).__module__.startswith(("requests", "urllib")):
        return ValueError(
            f"{what} needs files from the network, got {kind}: {reason} What was downloaded whole is kept: prepare the "
            "set again when the network is there."
        )
    if kind in _DAMAGES:
        return ValueError(_damaged(f"each archive of {what} in {manual} or {root / 'downloads'}", reason))
    return ValueError(
        f"{what} needs what TensorFlow Datasets prepares it from, which failed with {kind}: {reason} If archives were "
        f"fetched by hand, see that those in {manual} are the right and whole ones."
    )


def _damaged(what: str, reason: str) -> str:
    """The message about an archive that cannot be read to its end."""
    return f"{what} needs to be a whole archive, got a damaged one: {reason} Fetch it again, and compare its size."


def _first_line(error: Exception) -> str:
    """The first line of an error's message, as a sentence."""
    text = (str(error).strip().splitlines() or [type(error).__name__])[0][:300].rstrip(".:")
    return f"{text}."

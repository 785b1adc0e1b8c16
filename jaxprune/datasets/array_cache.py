"""Arrays that took time to read are kept in a file, and read anew where that file is missing or damaged."""

from __future__ import annotations

import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from jaxprune.files import atomic_file

DAMAGES = (
    OSError, ValueError, EOFError, KeyError, TypeError, RuntimeError, SyntaxError, struct.error, zlib.error,
    zipfile.BadZipFile,
)  # fmt: skip
"""What NumPy and zipfile raise for a file that is no archive, or a damaged one."""

Arrays = Mapping[str, np.ndarray]
"""Name -> array."""


def cached_arrays(
    file: Path, make: Callable[[], Arrays], dtypes: Mapping[str, type[np.generic]], *, length: int
) -> Arrays:
    """Reads arrays from a file, or makes them and writes the file for the next time.

    The archive carries a checksum of each array, so that a damaged one is noticed, and replaced. Where the file cannot
    be written, a warning says so.

    Args:
      file: an `.npz` file whose name says all that the arrays depend on.
      make: computes the arrays.
      dtypes: name -> dtype of each array; a file with others counts as damaged.
      length: number of rows of each array; likewise.

    Returns:
      Name -> read-only array.

    Example:
      >>> import tempfile
      >>> file = Path(tempfile.mkdtemp()) / "cache" / "squares.npz"
      >>> first = cached_arrays(file, lambda: {"x": np.arange(3) ** 2}, {"x": np.int64}, length=3)
      >>> again = cached_arrays(file, lambda: {}, {"x": np.int64}, length=3)
      >>> again["x"].tolist()
      [0, 1, 4]
    """
    arrays = _read(file, dtypes, length)
    if arrays is None:
        arrays = dict(make())
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            with atomic_file(file) as temporary, temporary.open("wb") as stream:
                np.savez(stream, allow_pickle=False, **arrays)
        except OSError as error:
            warnings.warn(
                f"{file} needs to be writable to keep what was read, got {error.strerror or error}. It will be read "
                "anew each time: free some space, or change the permissions of the folder.",
                stacklevel=2,
            )
    for array in arrays.values():
        array.flags.writeable = False
    return arrays


def _read(file: Path, dtypes: Mapping[str, type[np.generic]], length: int) -> dict[str, np.ndarray] | None:
    """The arrays of a file; None if it is missing, damaged, or holds something else."""
    try:
        with np.load(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except DAMAGES:
        return None
    shapes = {name: (array.dtype.type, len(array) if array.ndim else 0) for name, array in arrays.items()}
    return arrays if shapes == {name: (dtype, length) for name, dtype in dtypes.items()} else None

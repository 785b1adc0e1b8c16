"""Files of named arrays (safetensors): one array at a time is read, and files are written completely or not at all."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import NamedTuple, Protocol

import jax.numpy as jnp
import numpy as np

from jaxprune.files import atomic_file

DTYPES = tuple(
    np.dtype(each)
    for each in ("float64", "float32", "float16", jnp.bfloat16, "complex64", "bool")
    + tuple(f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64))
)
"""Types of arrays that come back from a file as they were."""

_PICKLED = (b"PK\x03\x04", b"\x80\x02", b"\x80\x04")
"""How files of PyTorch begin: archives, and older ones."""


class TensorShape(NamedTuple):
    """What the header of a file says of one array."""

    shape: tuple[int, ...]
    dtype: str
    """In the words of the format, such as "F32" or "BF16"."""


class TensorFile(Protocol):
    """An open file of named arrays."""

    def metadata(self) -> dict[str, str] | None:
        """Returns the texts that the file holds beside its arrays."""

    def get_tensor(self, name: str) -> np.ndarray:
        """Returns one array."""


def import_safetensors() -> ModuleType:
    """Imports the library that reads and writes these files.

    Raises:
      ImportError: if it is not installed.
    """
    try:
        import safetensors.numpy
    except ImportError as error:
        raise ImportError(
            "Files of weights need safetensors, which is not installed. Run pip install 'jaxprune[deploy]'."
        ) from error
    module: ModuleType = safetensors
    return module


@contextlib.contextmanager
def open_tensors(path: str | os.PathLike[str]) -> Iterator[tuple[TensorFile, dict[str, TensorShape]]]:
    """Opens a file of named arrays; arrays are read when they are asked for.

    Args:
      path: the file.

    Yields:
      The open file, and shape and type of each array by name.

    Raises:
      ImportError: if safetensors is not installed.
      OSError: if there is no such file, or it cannot be read.
      ValueError: if it is of another kind, or damaged.
    """
    library = import_safetensors()
    path = Path(path)
    with path.open("rb") as file:  # raises what Python raises for a file that is missing or a folder
        start = file.read(4)
    try:
        opened = library.safe_open(path, framework="np")
    except library.SafetensorError as error:
        hint = (
            "It looks like a file of PyTorch: convert it as docs/pretrained.md shows."
            if start.startswith(_PICKLED)
            else "Get the file again; it is damaged or of another kind."
        )
        raise ValueError(f"{path} needs to be a whole safetensors file, but {error}. {hint}") from error
    with opened as tensors:
        slices = {name: tensors.get_slice(name) for name in tensors.keys()}  # noqa: SIM118 - no mapping
        yield (
            tensors,
            {name: TensorShape(tuple(each.get_shape()), each.get_dtype()) for name, each in slices.items()},
        )


def read_tensors(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Reads all arrays of a file.

    Args:
      path: the file.

    Returns:
      Name -> array.

    Raises:
      ImportError, OSError, ValueError: as `open_tensors` does.
    """
    with open_tensors(path) as (file, shapes):
        return {name: file.get_tensor(name) for name in shapes}


def write_tensors(
    path: str | os.PathLike[str], arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None
) -> None:
    """Writes named arrays to a file; a reader sees either the old file or the complete new one.

    Args:
      path: the file; its folder must exist.
      arrays: name -> array.
      metadata: texts to hold beside the arrays.

    Raises:
      ImportError: if safetensors is not installed.
      OSError: if the file cannot be written; nothing is left behind.
      ValueError: for arrays of types that the library does not read back; names all of them.
    """
    library = import_safetensors()
    if strange := [f"{name} ({array.dtype})" for name, array in arrays.items() if array.dtype not in DTYPES]:
        raise ValueError(
            f"safetensors needs arrays of {', '.join(map(str, DTYPES))}, got {', '.join(strange)}. Convert them, or "
            'save with weights="orbax".'
        )
    # The library writes the memory of an array as it lies, whatever its strides are.
    content = library.numpy.save(
        {name: np.asarray(array, order="C") for name, array in arrays.items()}, dict(metadata or {})
    )
    with atomic_file(Path(path)) as temporary:
        temporary.write_bytes(content)

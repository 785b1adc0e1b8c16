"""Files of named arrays in the safetensors format, written and read with NumPy alone: names and bytes, no code.

A file is eight bytes with the length of its header, the header (JSON: name -> dtype, shape, place of the bytes) and the
bytes of all arrays, in C order and little-endian. Reading checks everything that the header says against the file.

Source:
  https://github.com/huggingface/safetensors, its README describes the format.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxprune.files import parse_json, to_text
from jaxprune.types import is_whole

DTYPES: Mapping[str, np.dtype[Any]] = MappingProxyType(
    {
        "F64": np.dtype(np.float64),
        "F32": np.dtype(np.float32),
        "F16": np.dtype(np.float16),
        "BF16": np.dtype(jnp.bfloat16),
        "F8_E4M3": np.dtype(jnp.float8_e4m3fn),
        "F8_E5M2": np.dtype(jnp.float8_e5m2),
        "C64": np.dtype(np.complex64),
        **{
            f"{letter}{8 * size}": np.dtype(f"{letter.lower()}{size}")
            for letter in "IU"
            for size in (1, 2, 4, 8)
        },
        "BOOL": np.dtype(np.bool_),
    }
)
"""Name in the format -> dtype of NumPy."""

_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_METADATA = "__metadata__"
_LENGTH_BYTES = 8
_ALIGNMENT = 8
_MAX_HEADER_BYTES = 100_000_000
"""As in the library of that name."""


def write_tensors(
    path: str | os.PathLike[str], arrays: Mapping[str, np.ndarray], notes: Mapping[str, str] | None = None
) -> None:
    """Writes named arrays as a safetensors file.

    Args:
      path: the file; one that is there is overwritten. Write to `jaxprune.files.atomic_file` to replace it in one step.
      arrays: name -> array.
      notes: texts to store with them.

    Raises:
      ValueError: if the format has no name for an array's dtype; names all such arrays.
      OSError: if the file cannot be written.

    Example:
      >>> import tempfile
      >>> path = Path(tempfile.mkdtemp()) / "weights.safetensors"
      >>> write_tensors(path, {"scale": np.ones(2, np.float32)})
      >>> read_tensors(path)
      {'scale': array([1., 1.], dtype=float32)}
    """
    strange = [f"{name} ({array.dtype})" for name, array in arrays.items() if array.dtype not in _NAMES]
    if strange:
        raise ValueError(
            f"safetensors needs arrays of {', '.join(map(str, DTYPES.values()))}, got {', '.join(strange)}. "
            "Convert them, or choose another format."
        )
    if _METADATA in arrays:
        raise ValueError(f"safetensors needs other names of arrays than {_METADATA}, which it uses itself.")
    # Wide types first, so that every array begins at a multiple of its type's size.
    ordered = sorted(arrays.items(), key=lambda item: (-item[1].dtype.itemsize, item[0]))
    header: dict[str, Any] = {_METADATA: dict(notes)} if notes else {}
    end = 0
    for name, array in ordered:
        header[name] = {
            "dtype": _NAMES[array.dtype],
            "shape": list(array.shape),
            "data_offsets": [end, end + array.nbytes],
        }
        end += array.nbytes
    text = to_text(header).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    with Path(path).open("wb") as file:
        file.write(len(text).to_bytes(_LENGTH_BYTES, "little"))
        file.write(text)
        for _, array in ordered:
            file.write(np.ascontiguousarray(array).tobytes())


def read_tensors(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Reads all arrays of a safetensors file.

    Args:
      path: the file.

    Returns:
      Name -> array, in the order of the header. The arrays share the memory that the file was read into.

    Raises:
      ValueError: if it is no such file, or was cut or damaged; says what is wrong.
      OSError: if it cannot be read.
    """
    content = np.fromfile(path, np.uint8)
    try:
        header, start = _read_header(content)
        return _read_arrays(header, content[start:])
    except ValueError as error:
        raise ValueError(
            f"needs a whole safetensors file, got {os.fspath(path)}, but {error}. Write or download it again."
        ) from error


def _read_header(content: np.ndarray) -> tuple[dict[str, Any], int]:
    """Returns the header, and where the bytes of the arrays begin."""
    length = int.from_bytes(content[:_LENGTH_BYTES].tobytes(), "little")
    start = _LENGTH_BYTES + length
    if len(content) < _LENGTH_BYTES or length > _MAX_HEADER_BYTES or len(content) < start:
        raise ValueError(f"its header would take {length} bytes and the file has {len(content)}")
    header = parse_json(content[_LENGTH_BYTES:start].tobytes())
    if not isinstance(header, dict):
        raise ValueError("its header is no object")
    header.pop(_METADATA, None)
    return header, start


def _read_arrays(header: Mapping[str, Any], data: np.ndarray) -> dict[str, np.ndarray]:
    """Returns the arrays that a header describes."""
    arrays, places = {}, []
    for name, entry in header.items():
        dtype, shape, (begin, end) = _checked_entry(name, entry)
        if end - begin != math.prod(shape) * dtype.itemsize or end > len(data):
            raise ValueError(f"{name} of shape {shape} and type {dtype} is not at bytes {begin} to {end}")
        arrays[name] = np.frombuffer(data, dtype, math.prod(shape), offset=begin).reshape(shape)
        places.append((begin, end))
    ends = [0, *(end for _, end in sorted(places))]
    if [begin for begin, _ in sorted(places)] != ends[:-1] or ends[-1] != len(data):
        raise ValueError("its arrays overlap or leave gaps")
    return arrays


def _checked_entry(name: str, entry: object) -> tuple[np.dtype[Any], tuple[int, ...], tuple[int, int]]:
    """Returns dtype, shape and place of one array."""
    if isinstance(entry, dict):
        dtype = DTYPES.get(str(entry.get("dtype")))
        shape, place = entry.get("shape"), entry.get("data_offsets")
        if (
            dtype is not None
            and isinstance(shape, list)
            and isinstance(place, list)
            and len(place) == 2
            and all(is_whole(number, smallest=0) for number in (*shape, *place))
        ):
            return dtype, tuple(shape), (place[0], place[1])
    raise ValueError(f"its header does not say type, shape and place of {name}: {entry!r:.80}")

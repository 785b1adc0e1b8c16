"""Plain data and arrays as bytes, for messages between processes; every bit comes back."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

_HEAD_BYTES = 8


def with_head(plain: object, content: bytes) -> bytes:
    """Returns bytes with plain data in front of them.

    Args:
      plain: what JSON gives back as it is; floats come back exactly.
      content: any bytes.

    Example:
      >>> without_head(with_head({"a": 0.1}, b"rest"))
      ({'a': 0.1}, b'rest')
    """
    head = json.dumps(plain).encode()
    return len(head).to_bytes(_HEAD_BYTES, "big") + head + content


def without_head(message: bytes) -> tuple[Any, bytes]:
    """Returns the plain data and the bytes that `with_head` joined.

    Args:
      message: the bytes.
    """
    end = _HEAD_BYTES + int.from_bytes(message[:_HEAD_BYTES], "big")
    return json.loads(message[_HEAD_BYTES:end]), message[end:]


def pack(plain: object, arrays: Sequence[np.ndarray] = ()) -> bytes:
    """Returns plain data and arrays as bytes.

    Args:
      plain: as for `with_head`.
      arrays: of any dtype with a name, those of JAX among them.

    Example:
      >>> plain, (array,) = unpack(pack({"a": 0.1}, [np.arange(2)]))
      >>> plain, array.tolist()
      ({'a': 0.1}, [0, 1])
    """
    kinds = [[array.dtype.name, list(array.shape)] for array in arrays]
    contents = [np.ascontiguousarray(array).tobytes() for array in arrays]
    return with_head([plain, kinds], b"".join(contents))


def pack_state(plain: object, state: Mapping[tuple[Any, ...], Any]) -> bytes:
    """Returns plain data and the arrays of a network as bytes.

    Args:
      plain: as for `pack`.
      state: path of strings and numbers -> array.

    Example:
      >>> unpack_state(pack_state(1, {("a", 0): np.ones(1)}))
      (1, {('a', 0): array([1.])})
    """
    return pack([plain, [list(path) for path in state]], [np.asarray(array) for array in state.values()])


def unpack_state(content: bytes) -> tuple[Any, dict[tuple[Any, ...], Any]]:
    """Returns the plain data and the arrays that `pack_state` packed.

    Args:
      content: the bytes.
    """
    (plain, paths), arrays = unpack(content)
    return plain, {tuple(path): array for path, array in zip(paths, arrays, strict=True)}


def unpack(content: bytes) -> tuple[Any, list[np.ndarray]]:
    """Returns the plain data and the arrays that `pack` packed.

    Args:
      content: the bytes.
    """
    (plain, kinds), contents = without_head(content)
    arrays, start = [], 0
    for name, shape in kinds:
        array = np.zeros(shape, np.dtype(name))  # a copy, so that it is aligned
        array.reshape(-1).view(np.uint8)[:] = np.frombuffer(contents[start : start + array.nbytes], np.uint8)
        arrays.append(array)
        start += array.nbytes
    return plain, arrays

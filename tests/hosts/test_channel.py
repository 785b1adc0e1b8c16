"""Messages of any length through a store of limited values."""

from __future__ import annotations

import jax
import ml_dtypes
import numpy as np
import pytest
from threads_as_hosts import MemoryStore

from jaxprune.hosts import channel as module
from jaxprune.hosts.channel import Channel, JaxStore
from jaxprune.hosts.encoding import pack, unpack


def test_a_message_comes_whole_in_pieces_and_is_removed_when_it_is_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "PIECE_BYTES", 4)
    store = MemoryStore()
    channel = Channel(store)
    for content in (b"", b"four", b"a message of 5 pieces"):
        channel.send("name", content)
        assert all(len(value) <= 4 + 8 for value in store.values.values())
        assert channel.receive("name") == content
        assert channel.take("name") == content
        assert not store.values


def test_a_wait_ends_by_its_time_or_by_what_is_looked_for() -> None:
    with pytest.raises(TimeoutError, match=r"no message 'name/0' came within 0.01 s"):
        Channel(MemoryStore()).receive("name", seconds=0.01)

    def look() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Channel(MemoryStore(), look).receive("name")


def test_every_bit_of_plain_data_and_arrays_comes_back() -> None:
    arrays = [
        np.array([[0.1, np.nan, -0.0]], np.float32),
        np.array(3, np.int64),
        np.array([1.5, 2], ml_dtypes.bfloat16),
        np.zeros((0, 2), bool),
    ]
    plain, found = unpack(pack({"a": [0.1 + 0.2, None]}, arrays))
    assert plain == {"a": [0.1 + 0.2, None]}
    for array, expected in zip(found, arrays, strict=True):
        assert (array.dtype, array.shape, array.tobytes()) == (
            expected.dtype,
            expected.shape,
            expected.tobytes(),
        )


class Client:
    """A client of JAX's coordination service that always answers with one error."""

    def __init__(self, text: str) -> None:
        self.text = text

    def blocking_key_value_get_bytes(self, key: str, limit: int = 0) -> bytes:
        raise jax.errors.JaxRuntimeError(self.text)

    key_value_try_get_bytes = blocking_key_value_get_bytes


def lost() -> None:
    raise SystemExit("lost")


def test_what_is_not_there_is_none_and_no_answer_means_that_process_0_is_gone() -> None:
    assert JaxStore(Client("DEADLINE_EXCEEDED: timed out"), lost).get("key", 1) is None
    with pytest.raises(SystemExit, match="lost"):
        JaxStore(Client("UNAVAILABLE: Socket closed"), lost).get("key", 1)
    with pytest.raises(jax.errors.JaxRuntimeError, match="RESOURCE_EXHAUSTED"):
        JaxStore(Client("RESOURCE_EXHAUSTED: too large"), lost).get("key", 0)

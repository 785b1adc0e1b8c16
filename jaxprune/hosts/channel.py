"""Messages between processes, as named values in the key-value store of JAX's coordination service.

Names and numbers in keys say what a message is, so that nothing can pair wrongly, as collectives of devices do that
pair by their order alone. A message is bytes of any length, cut into pieces that the store can take.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NoReturn, Protocol

import jax

PIECE_BYTES = 4 * 1024 * 1024
"""The largest value that is put into the store; its messages are limited by gRPC."""

SLICE_SECONDS = 1.0
"""How long a wait goes on before it looks whether there is still somebody to wait for."""

_LOST = ("UNAVAILABLE", "CANCELLED", "ABORTED", "FAILED_PRECONDITION", "INTERNAL", "UNKNOWN")
"""How errors begin that say that the service does not answer."""

_COUNT_BYTES = 8
_ROOT = "jaxprune/"


class Store(Protocol):
    """Named values that all processes see."""

    def set(self, key: str, value: bytes) -> None:
        """Stores a value, in the place of an earlier one."""
        ...

    def get(self, key: str, seconds: float) -> bytes | None:
        """Returns a value as soon as there is one; None if there is none after so many seconds."""
        ...

    def delete(self, key: str) -> None:
        """Removes a value, and all whose keys go on with a slash."""
        ...

    def below(self, key: str) -> dict[str, bytes]:
        """Returns the values whose keys go on with a slash, by what follows it."""
        ...


class JaxStore:
    """The store of JAX's coordination service, which process 0 holds.

    Args:
      client: the service's client, of `jax.distributed`.
      on_lost: called if process 0 is gone; does not return.
    """

    def __init__(self, client: Any, on_lost: Callable[[], NoReturn]) -> None:  # noqa: ANN401 - has no public type
        self._client, self._on_lost = client, on_lost

    def set(self, key: str, value: bytes) -> None:
        """Stores a value, see `Store`."""
        self._ask(lambda: self._client.key_value_set_bytes(_ROOT + key, value, allow_overwrite=True))

    def get(self, key: str, seconds: float) -> bytes | None:
        """Returns a value, see `Store`."""
        if seconds <= 0:
            return self._ask(lambda: self._client.key_value_try_get_bytes(_ROOT + key))
        limit = max(1, round(1000 * seconds))
        return self._ask(lambda: self._client.blocking_key_value_get_bytes(_ROOT + key, limit))

    def delete(self, key: str) -> None:
        """Removes values, see `Store`."""
        self._ask(lambda: self._client.key_value_delete(_ROOT + key))

    def below(self, key: str) -> dict[str, bytes]:
        """Returns the values of a folder, see `Store`."""
        folder = f"{_ROOT}{key}/"
        found = self._ask(lambda: self._client.key_value_dir_get_bytes(folder)) or []
        return {name.removeprefix(folder): bytes(value) for name, value in found}

    def _ask(self, question: Callable[[], Any]) -> Any:  # noqa: ANN401 - as the client answers
        """Asks the service; returns None if it has no such value, or not in time."""
        try:
            return question()
        except jax.errors.JaxRuntimeError as error:
            if str(error).startswith(("NOT_FOUND", "DEADLINE_EXCEEDED")):
                return None
            if not str(error).startswith(_LOST):
                raise
            self._on_lost()


class Channel:
    """Sends and receives messages of any length.

    Args:
      store: where they are put.
      look: called again and again while a message is waited for; raises an exception if the wait is to end.

    Example:
      >>> store: dict[str, bytes] = {}
      >>> class InMemory:
      ...     def set(self, key, value): store[key] = value
      ...     def get(self, key, seconds): return store.get(key)
      >>> channel = Channel(InMemory())
      >>> channel.send("greeting", b"hello")
      >>> channel.receive("greeting")
      b'hello'
    """

    def __init__(self, store: Store, look: Callable[[], None] = lambda: None) -> None:
        self._store, self._look = store, look

    def send(self, name: str, content: bytes) -> None:
        """Puts a message into the store; the first piece comes last, so that a reader finds it whole.

        Args:
          name: no other message may have it.
          content: the message.
        """
        pieces = [content[i : i + PIECE_BYTES] for i in range(0, len(content), PIECE_BYTES)] or [b""]
        for number, piece in reversed(list(enumerate(pieces))):
            head = len(pieces).to_bytes(_COUNT_BYTES, "big") if number == 0 else b""
            self._store.set(f"{name}/{number}", head + piece)

    def receive(self, name: str, *, seconds: float | None = None) -> bytes:
        """Waits for a message; it stays in the store.

        Args:
          name: the message's name.
          seconds: how long to wait; None for as long as it takes.

        Raises:
          TimeoutError: if there is none after so many seconds.
        """
        first = self._wait(f"{name}/0", seconds)
        count = int.from_bytes(first[:_COUNT_BYTES], "big")
        rest = [self._wait(f"{name}/{number}", seconds) for number in range(1, count)]
        return b"".join([first[_COUNT_BYTES:], *rest])

    def take(self, name: str) -> bytes:
        """Waits for a message, and removes it from the store."""
        content = self.receive(name)
        self._store.delete(name)
        return content

    def wait(self, key: str) -> None:
        """Waits until a value is there that is no message, but a mark.

        Args:
          key: its key.
        """
        self._wait(key, None)

    def _wait(self, key: str, seconds: float | None) -> bytes:
        """Waits for one value."""
        deadline = None if seconds is None else time.monotonic() + seconds
        while True:
            self._look()
            left = SLICE_SECONDS if deadline is None else min(SLICE_SECONDS, deadline - time.monotonic())
            if (value := self._store.get(key, left)) is not None:
                return value
            if deadline is not None and time.monotonic() >= deadline:
                raise TimeoutError(f"no message {key!r} came within {seconds:g} s.")

"""How the members of one compiled program are batched: the choices, and what a run keeps of them.

A batching may be asked for with parts left open ("auto", no chunk); what is in use is settled in all three parts (see
`Trainer.batching`), and is part of the result of a run, because it decides how sums are rounded.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, get_args

Strategy = Literal["auto", "scan", "loop", "vmap"]
Convolution = Literal["auto", "library", "patches"]

DEFAULT_CHUNK = 16
"""Members on each device with "vmap", where nobody asked for another number or measured one."""


class Batching(NamedTuple):
    """A way to batch members, asked for or in use.

    Example:
      >>> Batching("vmap", 8).checked()
      Batching(strategy='vmap', chunk=8, convolution='auto')
    """

    strategy: Strategy = "auto"
    """"scan", "loop" or "vmap", see `Trainer`; "auto" chooses by backend and network."""
    chunk: int | None = None
    """Members on each device with "vmap", where None stands for `DEFAULT_CHUNK`; in use it is 1 for the others."""
    convolution: Convolution = "auto"
    """"patches" computes convolutions as patches and one matrix product where it can; "auto" chooses by backend."""

    def checked(self) -> Batching:
        """Returns itself.

        Raises:
          ValueError: if a part is none of its choices, or there is a chunk for members that are trained one by one.
        """
        if self.strategy not in get_args(Strategy):
            raise ValueError(f'strategy must be "auto", "scan", "loop" or "vmap", got {self.strategy!r}.')
        if self.convolution not in get_args(Convolution):
            raise ValueError(f'convolution must be "auto", "library" or "patches", got {self.convolution!r}.')
        if self.chunk is not None and self.chunk < 1:
            raise ValueError(f"chunk must be at least 1, got {self.chunk}.")
        if self.strategy in ("scan", "loop") and self.chunk not in (None, 1):
            raise ValueError(
                f"chunk is for vmap, got {self.chunk} with {self.strategy!r}, which trains members one by one. Leave "
                'it out, or use strategy="vmap" (--batching vmap).'
            )
        return self

    def or_else(self, other: Batching) -> Batching:
        """Returns itself, with what it leaves open taken from another; so is a chunk of "auto" that chose no rows.

        Example:
          >>> Batching(chunk=4).or_else(Batching("vmap", 8, "patches"))
          Batching(strategy='vmap', chunk=4, convolution='patches')
        """
        has_no_rows = self.strategy == "auto" and other.strategy in ("scan", "loop")
        return Batching(
            other.strategy if self.strategy == "auto" else self.strategy,
            other.chunk if self.chunk is None or has_no_rows else self.chunk,
            other.convolution if self.convolution == "auto" else self.convolution,
        )

    def __str__(self) -> str:
        """Returns it in words.

        Example:
          >>> str(Batching("vmap", 8, "patches")), str(Batching("scan", 1, "patches"))
          ('vmap of 8, convolutions as patches', 'scan, convolutions as patches')
        """
        chunk = f" of {self.chunk}" if self.strategy == "vmap" else ""
        return f"{self.strategy}{chunk}, {_WORDS[self.convolution]}"

    @staticmethod
    def from_json(plain: Mapping[str, Any]) -> Batching:
        """Reads the batching of a task from the `config.json` of a run, where it is its `_asdict()`."""
        return Batching(plain["strategy"], plain["chunk"], plain["convolution"]).checked()


_WORDS: Mapping[Convolution, str] = {
    "auto": "convolutions by backend",
    "library": "convolutions of the library",
    "patches": "convolutions as patches",
}

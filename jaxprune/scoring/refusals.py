"""In words: why a function has no scores on a network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from jaxprune.scoring.metrics import PruningFunction, name_of

_ORIGINS: Mapping[str, str] = {
    "WO": "no layer with weights reads its channels",
    "gamma": "no learned normalisation scale follows it",
    "beta": "no learned normalisation shift follows it",
    "GW": "observe fills it, Operands.from_arrays takes weight_gradient=",
    "GX": "observe fills it, Operands.from_arrays takes feature_gradient=",
    "GW2": "observe fills it, Operands.from_arrays takes squared_weight_gradient=",
}
"""Why an operand is absent, or how to give it."""


def some_of(paths: Sequence[str]) -> str:
    """The first of some producers, and how many more there are.

    Example:
      >>> some_of(["conv1", "conv2"]), some_of(["a", "b", "c", "d", "e"])
      ('conv1, conv2', 'a, b, c and 2 more')
    """
    shown = paths if len(paths) <= 4 else paths[:3]
    return ", ".join(shown) + (f" and {len(paths) - 3} more" if len(paths) > 4 else "")


def say_absent(f: PruningFunction, absent: Mapping[str, tuple[str, ...]]) -> str:
    """What `f` needs and which producers do not have it."""
    parts = []
    for name in dict.fromkeys(name for names in absent.values() for name in names):
        paths = [path for path, names in absent.items() if name in names]
        who = f"producers {', '.join(paths)} do" if len(paths) > 1 else f"producer {paths[0]} does"
        why = _ORIGINS.get(name, "what was registered to read it gave None")
        parts.append(f"operand {name}, which {who} not have: {why}")
    return f"{name_of(f)} needs {'; '.join(parts)}. Use a function without it, or give it to the operands."


def say_refused(f: PruningFunction, reasons: Sequence[str]) -> str:
    """Why `f` is not evaluated, from what single layers say."""
    return f"{name_of(f)} must be evaluated on every layer, but {'; '.join(reasons)}. Use another function."

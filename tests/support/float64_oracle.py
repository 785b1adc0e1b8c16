"""A plain reading of the language: one channel and one class at a time, float64 NumPy, nothing of the package's.

Written from the design's section on the language alone. It takes an expression as a tree (`operator`, `children`,
`params`, `name`, `value`) and the raw arrays of a layer, and is as slow and as obvious as possible.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

RIDGE = 1e-4


class Oracle(NamedTuple):
    """[C] float64 scores, and per channel the largest absolute number on the way, over all classes.

    Numbers on the way are the entries of all values and the partial sums of `sum`.
    """

    scores: np.ndarray
    largest: np.ndarray


def oracle(f, layer: Mapping[str, np.ndarray], shake: int = 0) -> Oracle:
    """The mean over classes of `f` for every channel of a layer.

    Args:
      f: an expression of type ().
      layer: arrays as for `Operands.from_arrays`.
      shake: a seed other than 0 moves every number, of operands and on the way, by about 1e-7 of itself.
    """
    classes = np.unique(layer["labels"])
    channels = layer["features"].shape[-1]
    scores, largest = np.zeros(channels), np.zeros(channels)
    with np.errstate(all="ignore"):
        for channel in range(channels):
            values = []
            for label in classes:
                known = {}
                values.append(float(_value(f, operands(layer, channel, label), known, shake)))
                sizes = [np.abs(value).max() for value in known.values()]
                sizes += [
                    np.abs(np.cumsum(known[node.children[0]])).max()
                    for node in known
                    if node.operator == "sum"
                ]
                largest[channel] = np.max([largest[channel], *sizes])  # NaN stays
            scores[channel] = np.mean(values)
    return Oracle(scores, largest)


def operands(layer: Mapping[str, np.ndarray], channel: int, label: object) -> dict[str, np.ndarray]:
    """Name -> what a function reads about one channel and one class; without what the layer does not have."""
    wide = {name: np.asarray(array, np.float64) for name, array in layer.items() if name != "labels"}
    X = wide["features"][..., channel].reshape(len(wide["features"]), -1)
    is_class = np.asarray(layer["labels"]) == label
    P, Q = X[is_class], X[~is_class]
    found = {
        "X": X,
        "P": P,
        "Q": Q,
        "mX": np.mean(X, axis=0),
        "mP": np.mean(P, axis=0),
        "mQ": np.mean(Q, axis=0),
        "N": np.float64(len(P)),
        "NQ": np.float64(len(Q)),
        "NX": np.float64(len(X)),
        "WI": wide["kernel"][..., channel].ravel(),
        "W": wide["kernel"].reshape(-1, wide["kernel"].shape[-1]),
    }
    if "outgoing" in wide:
        found["WO"] = wide["outgoing"][..., channel, :].ravel()
    for name in ("gamma", "beta"):
        if name in wide:
            found[name] = wide[name][channel]
    if "weight_gradient" in wide:
        found["GW"] = wide["weight_gradient"][..., channel].ravel()
    if "feature_gradient" in wide:
        found["GX"] = wide["feature_gradient"][..., channel].reshape(len(X), -1)
    return found


def _value(node, read: Mapping[str, np.ndarray], known: dict, shake: int) -> np.ndarray:
    if node not in known:
        if node.is_operand:
            value = read[node.name]
        elif node.is_literal:
            value = np.float64(node.value)
        else:
            arguments = [_value(child, read, known, shake) for child in node.children]
            value = OPERATIONS[node.operator](*arguments, *node.params)
        known[node] = shaken(value, shake) if shake else value
    return known[node]


def shaken(value: np.ndarray, seed: int) -> np.ndarray:
    """Every number replaced by a neighbouring float32: which one, depends on the number and the seed alone.

    So equal numbers stay equal, and what is constant stays exactly constant. What is too small for a float32 becomes 0,
    what is too large stays.
    """
    single = np.asarray(value).astype(np.float32)
    mixed = single.view(np.uint32) * np.uint32(2654435761) + np.uint32(seed) * np.uint32(40503)
    is_up = (mixed ^ (mixed >> np.uint32(15))) >> np.uint32(9) & 1
    near = np.nextafter(single, np.where(is_up, np.inf, -np.inf).astype(np.float32))
    moved = np.where(np.isfinite(single), near.astype(np.float64), value)
    return np.where(np.abs(single) < np.finfo(np.float32).tiny, 0.0, moved)


def rbf(A, *more):
    """exp(-|a - b|^2/(2 sigma^2)) for all pairs of rows; of A with itself when only the width is given."""
    B, sigma = more if len(more) == 2 else (A, more[0])
    return np.array([[np.exp(-np.sum((a - b) ** 2) / (2 * sigma**2)) for b in B] for a in A])


def medoid(A):
    """The column with the least sum of distances to the others, the first of equals."""
    columns = A.T
    sums = [sum(np.sqrt(np.sum((one - other) ** 2)) for other in columns) for one in columns]
    return columns[int(np.argmin(sums))]


def position_slice(A, first, last):
    """The positions from floor(first D/8) to floor(last D/8), but at least one."""
    size = A.shape[-1]
    start = int(first) * size // 8
    return A[..., start : max(int(last) * size // 8, start + 1)]


OPERATIONS = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "/": lambda a, b: np.true_divide(a, b),
    "abs": np.abs,
    "square": lambda a: a * a,
    "sqrt": np.sqrt,
    "sum": np.sum,
    "product": np.prod,
    "mean": np.mean,
    "std": lambda a: np.sqrt(np.mean((a - np.mean(a)) ** 2)),
    "var": lambda a: np.mean((a - np.mean(a)) ** 2),
    "count": lambda a: np.float64(np.size(a)),
    "mean_samples": lambda a: np.mean(a, axis=0),
    "transpose": np.transpose,
    "matmul": lambda a, b: a @ b,
    "inner": lambda a, b: np.sum(a * b),
    "outer": lambda a, b: a[:, None] * b[None, :],
    "trace": np.trace,
    "inverse": lambda a: np.linalg.inv(a + RIDGE * np.eye(len(a))),
    "rbf": rbf,
    "geometric_median": medoid,
    "slice": position_slice,
}

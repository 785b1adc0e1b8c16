"""How similarly functions rank the channels of a network: Spearman's rank correlation, by layer and overall."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from jaxprune.scoring.ranking import Scored, is_constant


@dataclass(frozen=True, eq=False)
class Correlations:
    """Rank correlations of one function with M others on a network of G groups."""

    names: tuple[str, ...]
    """The others, those with the largest mean magnitude over groups first."""
    groups: tuple[str, ...]
    """Group names, in program order."""
    by_group: np.ndarray
    """[M, G] in [-1, 1]; NaN where the scores of either are all equal, or the group has none."""
    mean: np.ndarray
    """[M] mean over the groups that are not NaN."""
    together: np.ndarray
    """[M] over all channels of groups that both score at once, by relative scores."""
    left_out: Mapping[str, str]
    """Name -> why one of the others has no scores to compare."""


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Computes Spearman's rank correlation of two vectors, with ties at their mean rank; NaN if either is constant.

    Args:
      a: [C] finite numbers.
      b: [C] finite numbers.

    Returns:
      A number in [-1, 1], or NaN.

    Example:
      >>> rank_correlation(np.array([1.0, 2.0, 9.0]), np.array([0.1, 0.2, 0.3]))
      1.0
      >>> rank_correlation(np.array([1.0, 2.0, 9.0]), np.ones(3))
      nan

    Source:
      Spearman, The Proof and Measurement of Association between Two Things, 1904.
    """
    return float(rank_correlations([a, b])[0, 1])


def rank_correlations(scores: Sequence[np.ndarray] | np.ndarray) -> np.ndarray:
    """Computes Spearman's rank correlation of each of P score vectors with each other one.

    Args:
      scores: [P, C] finite numbers.

    Returns:
      [P, P] in [-1, 1], with rows and columns of NaN for scores that are all equal.

    Example:
      >>> rank_correlations(np.array([[1.0, 2.0, 3.0], [3.0, 2.0, 1.0]])).tolist()
      [[1.0, -1.0], [-1.0, 1.0]]
    """
    from scipy.stats import rankdata  # importing it takes most of a second

    table = np.asarray(scores, np.float64)
    ranks = rankdata(table, axis=1)
    ranks[[is_constant(row) for row in table]] = np.nan
    centred = ranks - ranks.mean(axis=1, keepdims=True)
    unit = centred / np.sqrt(np.sum(centred**2, axis=1, keepdims=True))
    return np.round(unit @ unit.T, 12)  # so that equal orders are 1 exactly


def correlate(f: Scored, others: Mapping[str, Scored]) -> Correlations:
    """Compares how one function and some others rank the channels of a network.

    Args:
      f: the scores of the one, finite or NaN in a whole group, from `score_functions`.
      others: name -> scores of each of the others on the same network.

    Returns:
      The correlations, the others sorted by mean magnitude.

    Raises:
      ValueError: if `f` has no scores that differ.

    Example:
      >>> ours = Scored({"a": np.array([1.0, 2.0, 4.0])}, "ok", "", ())
      >>> other = Scored({"a": np.array([3.0, 2.0, 1.0])}, "ok", "", ())
      >>> found = correlate(ours, {"other": other, "none": Scored({}, "refused", "too large", ())})
      >>> found.by_group.round(9).tolist(), dict(found.left_out)
      ([[-1.0]], {'none': 'refused: too large'})
    """
    if f.status != "ok":
        raise ValueError(
            f"rank correlations need finite scores that differ, got a function that is {f.status}: {f.detail}."
        )
    groups = tuple(f.scores)
    left_out = {
        name: f"{other.status}: {other.detail}" for name, other in others.items() if other.status != "ok"
    }
    compared = {name: other.scores for name, other in others.items() if name not in left_out}
    table = np.array(
        [[rank_correlation(f.scores[g], scores[g]) for g in groups] for scores in compared.values()]
    ).reshape(len(compared), len(groups))
    together = [rank_correlation(*_joined(f.scores, scores)) for scores in compared.values()]
    with np.errstate(invalid="ignore"):
        counts = np.sum(np.isfinite(table), axis=1)
        mean = np.nansum(table, axis=1) / np.where(counts > 0, counts, np.nan)
    order = np.argsort(np.where(np.isfinite(mean), -np.abs(mean), np.inf), kind="stable")
    names = tuple(np.array([*compared], object)[order])
    return Correlations(names, groups, table[order], mean[order], np.array(together)[order], left_out)


def _joined(
    ours: Mapping[str, np.ndarray], others: Mapping[str, np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the scores of all groups that both functions score, as one vector each."""
    pairs = [(values, others[group]) for group, values in ours.items()]
    shared = [pair for pair in pairs if np.isfinite(pair).all()] or [(np.zeros(1), np.zeros(1))]
    left, right = zip(*shared, strict=True)
    return np.concatenate(left), np.concatenate(right)

"""The value of every channel on every base network, fitted to fine-tuned plans: predicts the accuracy of any plan.

The accuracy of a plan on a base is taken as an offset plus the values of the channels that it keeps. A value has two
parts. One is linear in features of the channel, with weights that all bases of a task share; the other is the
channel's own. Both come from ridge regressions. So every fine-tuning says something about every plan, and a formula
can be tried on many bases without any fine-tuning of its own.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Booleans = npt.NDArray[np.bool_]

SHARED_RIDGE = 100.0
"""Penalty of the weights of features, which all bases share."""

OWN_RIDGE = 30.0
"""Penalty of what each channel adds of its own."""

MIN_PLANS = 5
"""Plans per base that a landscape is fitted to, at least."""

NUM_FOLDS = 3
"""Parts of the plans that are held out in turn."""


@dataclass(frozen=True, eq=False)
class Bank:
    """M fine-tuned plans of each of B base networks."""

    widths: Mapping[str, int]
    """Group name -> C, in the order of the channels in `is_kept`."""
    counts: Mapping[str, int]
    """Group name -> number of kept channels, groups in the same order."""
    is_kept: Booleans
    """[B, M, sum C] which channels the plans keep."""
    accuracies: Floats
    """[B, M] validation accuracies in percent."""

    def part(self, *, bases: Booleans | slice = slice(None), plans: Booleans | slice = slice(None)) -> Bank:
        """Returns the plans chosen by masks over bases and plans.

        Example:
          >>> bank = Bank({"conv": 2}, {"conv": 1}, np.eye(2, dtype=bool)[None], np.array([[80.0, 70.0]]))
          >>> bank.part(plans=np.array([False, True])).accuracies.tolist()
          [[70.0]]
        """
        return replace(
            self, is_kept=self.is_kept[bases][:, plans], accuracies=self.accuracies[bases][:, plans]
        )


@dataclass(frozen=True, eq=False)
class Landscape:
    """What each channel of a network is worth on each of B base networks, in percent of accuracy."""

    widths: Mapping[str, int]
    """Group name -> C, in the order of the channels in `values`."""
    offsets: Floats
    """[B] accuracies in percent of a plan that keeps nothing."""
    values: Floats
    """[B, sum C] percent that a channel adds where it is kept."""

    def predict(self, is_kept: Booleans) -> Floats:
        """Predicts the accuracies of plans.

        Args:
          is_kept: [..., B, sum C] which channels are kept on each base.

        Returns:
          [..., B] accuracies in percent.

        Raises:
          ValueError: for another number of bases or channels.

        Example:
          >>> landscape = Landscape({"conv": 2}, np.array([50.0]), np.array([[30.0, 10.0]]))
          >>> landscape.predict(np.array([[[True, False]], [[False, True]]])).tolist()
          [[80.0], [60.0]]
        """
        if is_kept.shape[-2:] != self.values.shape:
            raise ValueError(
                f"the landscape needs plans of shape [..., {self.values.shape[0]} bases, {self.values.shape[1]} "
                f"channels], got {list(is_kept.shape)}. Join the groups {', '.join(self.widths)} in this order."
            )
        return self.offsets + np.einsum("...c,...c->...", is_kept, self.values)


def channel_features(scores: Mapping[str, npt.ArrayLike]) -> dict[str, Floats]:
    """Turns scores of known functions into features of channels: logarithms, standardised within group and base.

    A function with a score that is not finite, in any group on any base, is left out.

    Args:
      scores: group name -> [F, B, C] scores of F functions on B bases.

    Returns:
      Group name -> [B, C, F] features, without those left out.

    Raises:
      ValueError: if groups have other functions or bases than the first one.

    Example:
      >>> channel_features({"conv": [[[1.0, 10.0]], [[np.nan, 1.0]]]})["conv"].round(2).tolist()
      [[[-1.0], [1.0]]]
    """
    arrays = {group: np.asarray(values, np.float64) for group, values in scores.items()}
    shapes = {group: array.shape for group, array in arrays.items()}
    if len({shape[:2] for shape in shapes.values()}) != 1 or {len(shape) for shape in shapes.values()} != {3}:
        raise ValueError(f"features need scores [F, B, C] of equal F and B in all groups, got {shapes}.")
    is_finite = np.all([np.isfinite(array).all(axis=(1, 2)) for array in arrays.values()], axis=0)
    return {group: _standardised(np.abs(array[is_finite])) for group, array in arrays.items()}


def fit_landscape(
    bank: Bank,
    features: Mapping[str, Floats],
    *,
    shared_ridge: float = SHARED_RIDGE,
    own_ridge: float = OWN_RIDGE,
) -> Landscape:
    """Fits the values of channels to the accuracies of fine-tuned plans.

    First the weights of the features: accuracies against the features' means over the kept channels of each group,
    all bases together, both relative to their means on the base. Then, on each base, what the channels add of their
    own: what is left of the accuracies against which channels are kept.

    Args:
      bank: the plans of B bases and their accuracies.
      features: group name -> [B, C, F], as `channel_features` returns them; F may be 0.
      shared_ridge: penalty of the squared weights of the features, > 0.
      own_ridge: penalty of the squared values that channels have of their own, > 0.

    Returns:
      The landscape.

    Raises:
      ValueError: if shapes do not fit, there are fewer than `MIN_PLANS` plans, plans do not keep `counts`, numbers are
        not finite, or a penalty is not positive.

    Example:
      >>> plans = np.array([[[1, 0], [0, 1], [1, 0], [0, 1], [1, 0]]], bool)
      >>> bank = Bank({"conv": 2}, {"conv": 1}, plans, np.array([[80.0, 70.0, 80.0, 70.0, 80.0]]))
      >>> landscape = fit_landscape(bank, {"conv": np.zeros((1, 2, 0))}, own_ridge=1e-6)
      >>> landscape.predict(np.eye(2, dtype=bool)[:, None]).round(3).tolist()
      [[80.0], [70.0]]
    """
    _check(bank, features)
    if not (shared_ridge > 0 and own_ridge > 0):
        raise ValueError(f"the penalties need to be > 0, got {shared_ridge=} and {own_ridge=}.")
    bits = bank.is_kept.astype(np.float64)
    means, offsets = bits.mean(axis=1, keepdims=True), bank.accuracies.mean(axis=1, keepdims=True)
    bits, targets = bits - means, bank.accuracies - offsets
    # A group's features are divided by its kept channels, so that sums over these are means.
    tables = [features[group] / bank.counts[group] for group in bank.widths]
    ends = np.cumsum([0, *bank.widths.values()])
    sums = [
        bits[..., first:last] @ table
        for (first, last), table in zip(itertools.pairwise(ends), tables, strict=True)
    ]
    shared = np.concatenate(sums, axis=2)
    weights = _ridge(shared.reshape(targets.size, shared.shape[2]), targets.ravel(), shared_ridge)
    by_group = weights.reshape(len(tables), tables[0].shape[2])
    values = np.concatenate([table @ own for table, own in zip(tables, by_group, strict=True)], axis=1)
    values += _ridge(bits, targets - np.einsum("bmc,bc->bm", bits, values), own_ridge)
    return Landscape(dict(bank.widths), offsets[:, 0] - np.sum(means[:, 0] * values, axis=1), values)


def held_out_correlation(
    bank: Bank,
    features: Mapping[str, Floats],
    *,
    shared_ridge: float = SHARED_RIDGE,
    own_ridge: float = OWN_RIDGE,
) -> float:
    """Computes how well a landscape predicts plans that it was not fitted to.

    Every third plan is held out in turn, and the landscape is fitted to the others.

    Args:
      bank: as for `fit_landscape`, here and below.
      features: group name -> [B, C, F].
      shared_ridge: penalty of the weights of the features.
      own_ridge: penalty of the channels' own values.

    Returns:
      Pearson's correlation of predicted and measured accuracies of the plans held out, the mean over bases and parts;
      0 counts where either is constant.

    Raises:
      ValueError: as `fit_landscape`, and if there are too few plans to hold some out.
    """
    _check(bank, features, min_plans=NUM_FOLDS * MIN_PLANS // (NUM_FOLDS - 1) + 1)
    numbers = np.arange(bank.accuracies.shape[1]) % NUM_FOLDS
    correlations = []
    for fold in range(NUM_FOLDS):
        fitted, held_out = bank.part(plans=numbers != fold), bank.part(plans=numbers == fold)
        landscape = fit_landscape(fitted, features, shared_ridge=shared_ridge, own_ridge=own_ridge)
        predicted = landscape.predict(held_out.is_kept.swapaxes(0, 1)).T
        correlations.append(_correlations(predicted, held_out.accuracies))
    return float(np.mean(correlations))


def _standardised(magnitudes: Floats) -> Floats:
    """Returns [B, C, F] features of [F, B, C] magnitudes of scores."""
    scale = magnitudes.mean(axis=2, keepdims=True)
    logs = np.log(magnitudes + 1e-3 * scale + 1e-20)
    centred = logs - logs.mean(axis=2, keepdims=True)
    return np.moveaxis(centred / (logs.std(axis=2, keepdims=True) + 1e-6), 0, 2)


def _ridge(inputs: Floats, targets: Floats, ridge: float) -> Floats:
    """Returns the weights [..., P] of inputs [..., N, P] that fit targets [..., N], with penalised squares.

    By singular values, which serves more inputs than examples (wide networks) as well as fewer.
    """
    left, singular, right = np.linalg.svd(inputs, full_matrices=False)
    along = np.einsum("...nr,...n->...r", left, targets) * singular / (np.square(singular) + ridge)
    weights: Floats = np.einsum("...rp,...r->...p", right, along)
    return weights


def _correlations(first: Floats, second: Floats) -> Floats:
    """Returns Pearson's correlation of each row; 0 for rows that are constant."""
    first, second = (rows - rows.mean(axis=1, keepdims=True) for rows in (first, second))
    scale = np.sqrt(np.square(first).sum(axis=1) * np.square(second).sum(axis=1))
    is_constant = scale < 1e-9  # a spread of rounding
    return np.where(is_constant, 0.0, (first * second).sum(axis=1) / np.where(is_constant, 1.0, scale))


def _check(bank: Bank, features: Mapping[str, Floats], min_plans: int = MIN_PLANS) -> None:
    """Raises a `ValueError` unless plans, accuracies and features fit together."""
    is_kept, accuracies, widths, counts = bank.is_kept, bank.accuracies, bank.widths, bank.counts
    if is_kept.dtype != bool or is_kept.ndim != 3 or is_kept.shape[:2] != accuracies.shape:
        raise ValueError(
            "a landscape needs boolean plans [bases, plans, channels] and accuracies [bases, plans], got "
            f"{is_kept.dtype} {list(is_kept.shape)} and {list(accuracies.shape)}."
        )
    if is_kept.shape[2] != sum(widths.values()) or list(counts) != list(widths):
        raise ValueError(
            f"a landscape needs plans of all channels of the groups {dict(widths)}, and kept counts of the same groups "
            f"in the same order, got {is_kept.shape[2]} channels and counts {dict(counts)}."
        )
    num_bases, num_plans = accuracies.shape
    if not num_bases or num_plans < min_plans:
        raise ValueError(
            f"this needs at least {min_plans} plans on at least 1 base, got {num_plans} on {num_bases}. Fine-tune more "
            "plans of each base."
        )
    if not np.isfinite(accuracies).all():
        base, plan = np.argwhere(~np.isfinite(accuracies))[0]
        raise ValueError(
            f"accuracies need to be finite, got {accuracies[base, plan]} for base {base}, plan {plan}. Count a "
            "diverged network's wrong answers instead."
        )
    shapes = {group: features[group].shape if group in features else None for group in widths}
    num_features = {shape[-1] for shape in shapes.values() if shape}
    fitting = {group: (num_bases, width, *num_features) for group, width in widths.items()}
    if shapes != fitting or not all(np.isfinite(features[group]).all() for group in widths):
        raise ValueError(
            f"a landscape needs finite features [bases, channels, F] of equal F in all groups, {num_bases} bases and "
            f"widths {dict(widths)}, got {shapes}. Make them with channel_features()."
        )
    sizes = np.add.reduceat(is_kept, np.cumsum([0, *widths.values()])[:-1], axis=2, dtype=np.int64)
    if (sizes != list(counts.values())).any():
        base, plan = np.argwhere((sizes != list(counts.values())).any(axis=2))[0]
        raise ValueError(
            f"plans need to keep {dict(counts)} channels, got {sizes[base, plan].tolist()} in plan {plan} of base "
            f"{base}. Plans of another schedule do not fit."
        )

r"""Metrics that the language of formulas cannot say, as plain functions from `Operands` to [C] scores.

They compare a channel with the others of its layer, read the shape of feature maps, or draw random numbers. Each takes
one layer (not stacked), is jittable, and gives higher scores to more important channels. `metrics` names them and also
takes stacked operands.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.keys import derive
from jaxprune.observation.gradients import Gradients
from jaxprune.observation.moments import HIGHEST
from jaxprune.observation.operands import Operands

MetricFunction = Callable[[Operands], jax.Array]
"""From the operands of one layer to [C] scores."""

_BLOCK_ENTRIES = 1 << 20  # of all arrays that are computed side by side


@lru_cache(maxsize=1024)
def random_numbers(seed: int) -> MetricFunction:
    """Returns a function that gives every channel a number from [0, 1): the control that every metric has to beat.

    The number follows from the seed and from the channel's producing and consuming weights in float32. So it is the
    same in every run, does not depend on where the channel is in its layer, and differs between layers, between
    networks and between rounds of pruning. Channels with equal weights get equal numbers.

    Args:
      seed: which draw, in [0, 2**32).

    Returns:
      The function; the same one for the same seed.

    Raises:
      ValueError: if the seed is out of range.

    Example:
      >>> ops = Operands.from_arrays(features=np.eye(4), labels=[0, 0, 1, 1], kernel=np.eye(4))
      >>> scores = random_numbers(0)(ops)
      >>> bool(jnp.all(scores == random_numbers(0)(ops))), bool(jnp.any(scores == random_numbers(1)(ops)))
      (True, False)
    """
    if not 0 <= seed < 2**32:
        raise ValueError(f"random needs a seed in 0 .. 2**32 - 1, got {seed}. Take seed % 2**32.")

    def scores(operands: Operands) -> jax.Array:
        key = derive(jax.random.key(0), "random metric", seed)
        parts = [array for array in (operands.filters, operands.outgoing) if array is not None]
        numbers = _column_hash(key, jnp.concatenate(parts))

        def draw(number: jax.Array) -> jax.Array:
            return jax.random.uniform(jax.random.fold_in(key, number), dtype=jnp.float32)

        return jax.vmap(draw)(numbers).astype(operands.dtype)

    scores.__name__ = f"random({seed})"
    return scores


def fpgm(operands: Operands) -> jax.Array:
    r"""Sums the distances of a filter to all others of its layer: \(\sum_j \lVert w - w_j \rVert_2\).

    The filter nearest to the geometric median of the layer can be replaced by the others, so it scores lowest.
    Distances are computed from differences of weights. The layer is all columns of the bank `W`, also after `take`.

    Returns:
      [C] scores >= 0.

    Example:
      >>> ops = Operands.from_arrays(features=np.eye(3), labels=[0, 1, 1], kernel=[[0.0, 3.0, 0.0], [0.0, 4.0, 1.0]])
      >>> [round(float(score), 3) for score in fpgm(ops)]
      [6.0, 9.243, 5.243]

    Source:
      He et al., Filter Pruning via Geometric Median for Deep CNNs Acceleration, CVPR 2019, sec. 3.3,
      which looks for the filters nearest to the geometric median by this sum.
    """
    bank = operands.bank

    def total_distance(column: jax.Array) -> jax.Array:
        return jnp.sum(jnp.sqrt(jnp.sum(jnp.square(bank - column[:, None]), axis=0)))

    return jax.lax.map(
        total_distance, operands.filters.T, batch_size=_batch(bank.size, operands.num_channels)
    )


def lamp(operands: Operands) -> jax.Array:
    r"""Divides a filter's squared norm by the sum of the layer's squared norms that are not smaller.

    \(\lVert w \rVert^2 / \sum_{j: \lVert w_j \rVert \ge \lVert w \rVert} \lVert w_j \rVert^2\). Scores of different
    layers can be compared: the largest filter of each has 1. In the paper every weight is scored; here the weights of
    a channel are one group. Equal norms are not smaller than each other (the paper orders them by index), even if
    they differ by rounding.

    Returns:
      [C] scores in [0, 1]; 0 for a filter of zeros.

    Example:
      >>> ops = Operands.from_arrays(features=np.eye(3), labels=[0, 1, 1], kernel=[[1.0, 2.0, 3.0]])
      >>> [round(float(score), 3) for score in lamp(ops)]
      [0.071, 0.308, 1.0]

    Source:
      Lee et al., Layer-adaptive Sparsity for the Magnitude-based Pruning, ICLR 2021, sec. 2 (the LAMP score).
    """
    norms = jnp.sum(jnp.square(operands.filters), axis=0)
    layer_norms = jnp.sum(jnp.square(operands.bank), axis=0)
    rounding = 32 * jnp.finfo(operands.dtype).eps
    is_counted = layer_norms[None] >= norms[:, None] * (1 - rounding)
    total = jnp.sum(jnp.where(is_counted, layer_norms[None], 0), axis=1)
    return jnp.minimum(norms / jnp.where(total > 0, total, 1), 1)


def apoz(operands: Operands) -> jax.Array:
    r"""Computes the share of activations that are not zero: \(\operatorname{mean}(X \ne 0)\).

    This is one minus the paper's average percentage of zeros: the paper removes the channels with the *most* zeros,
    while the lowest scores are pruned here. It is meant for activations that are often exactly zero, as after ReLU. All
    calibration examples and positions count, before any pooling of the sample.

    Returns:
      [C] scores in [0, 1].

    Example:
      >>> features = np.array([[1.0, 0.0], [2.0, 0.0], [0.0, 3.0], [4.0, 0.0]])
      >>> apoz(Operands.from_arrays(features=features, labels=[0, 0, 1, 1], kernel=np.eye(2))).tolist()
      [0.75, 0.25]

    Source:
      Hu et al., Network Trimming: A Data-Driven Neuron Pruning Approach, 2016 (arXiv 1607.03250), sec. 3.1 (APoZ).
    """
    moments = operands.moments
    weights = moments.count / jnp.sum(moments.count)
    return jnp.sum(moments.active * weights[:, None], axis=0)


def hrank(operands: Operands) -> jax.Array:
    r"""Averages the rank of the channel's H x W feature maps: \(\operatorname{mean}_n \operatorname{rank}(X_n)\).

    The rank counts singular values that exceed max(H, W) times the rounding unit times the largest. It is that of the
    maps of the sample, which `observe` and `Operands.from_batches` average-pool to at most `max_positions` positions,
    64 by default: 32 x 32 becomes 8 x 8, whose rank cannot exceed 8. The paper's ranks are those of whole maps: pass
    `max_positions=H * W` (or more) there; `Operands.from_arrays` does not pool. Maps of one axis or none (1-D and dense
    layers) have rank 1, or 0 if they are zero. Maps of more than two axes become matrices with the first axis as rows.

    Returns:
      [C] scores in [0, min(H, W)].

    Example:
      >>> maps = np.stack([np.eye(3), np.ones((3, 3))], axis=-1)
      >>> ops = Operands.from_arrays(features=np.stack([maps, maps]), labels=[0, 1], kernel=np.eye(2))
      >>> hrank(ops).tolist()
      [3.0, 1.0]

    Source:
      Lin et al., HRank: Filter Pruning using High-Rank Feature Map, CVPR 2020, sec. 3.3.
    """
    num_examples, num_positions, channels = operands.samples.shape
    rows = operands.space[0] if len(operands.space) > 1 else 1
    maps = jnp.moveaxis(operands.samples, -1, 0).reshape(channels, num_examples, rows, -1)

    def mean_rank(of_channel: jax.Array) -> jax.Array:
        return jnp.mean(jnp.linalg.matrix_rank(of_channel).astype(of_channel.dtype))

    return jax.lax.map(mean_rank, maps, batch_size=_batch(num_examples * num_positions, channels))


def chip(operands: Operands) -> jax.Array:
    r"""Averages over examples by how much the nuclear norm of the feature maps falls without the channel.

    \(\operatorname{mean}_n (\lVert A_n \rVert_* - \lVert M_c \circ A_n \rVert_*)\), with A_n the C x HW maps and M_c
    zero in row c. A channel whose maps are nearly combinations of the others' scores low. The others are the channels
    in `operands` (after `take`, only these). This takes one singular value decomposition per example, not one per
    channel. Maps of the sample are average-pooled to 64 positions by default; as
    for `hrank`, `max_positions=H * W` in `observe` or `Operands.from_batches` keeps them whole.

    Returns:
      [C] scores >= 0.

    Example:
      >>> maps = np.array([[[3.0, 0.0, 0.0], [0.0, 1.0, 1.0]]])  # two positions, three channels
      >>> ops = Operands.from_arrays(features=np.repeat(maps, 2, 0), labels=[0, 1], kernel=np.eye(3))
      >>> [round(float(score), 3) for score in chip(ops)]
      [3.0, 0.414, 0.414]

    Source:
      Sui et al., CHIP: Channel Independence-based Pruning for Compact Neural Networks, NeurIPS 2021, sec. 3
      (the channel independence of one channel).
    """
    return jnp.mean(jax.lax.map(_lost_norms, operands.samples), axis=0)


def fisher(operands: Operands) -> jax.Array:
    r"""Averages over examples the squared first-order effect of the channel on the example's own loss.

    \(\operatorname{mean}_n \left(\sum_d X_{nd} \, \partial \ell_n / \partial X_{nd}\right)^2\): the empirical Fisher
    information of a gate on the channel, which at a minimum is twice the second-order increase of the loss without the
    channel. All calibration examples and positions count, each with its own gradient (the square of a batch's mean
    gradient is something else).

    Returns:
      [C] scores >= 0.

    Example:
      >>> ops = Operands.from_arrays(
      ...     features=[[1.0], [3.0]], labels=[0, 1], kernel=[[1.0]], feature_gradient=[[2.0], [-1.0]]
      ... )
      >>> fisher(ops).tolist()  # (2^2 + 3^2) / 2
      [6.5]

    Source:
      Theis et al., Faster gaze prediction with dense networks and Fisher pruning, 2018 (arXiv 1801.05787), sec. 2.1,
      eq. 9, without the factor 1/2.
    """
    scores = (operands.gradients or Gradients()).fisher
    assert scores is not None  # it is there with GX, which the metric reads
    return scores


def taylor_activations(operands: Operands) -> jax.Array:
    r"""Averages over examples the magnitude of the first-order effect of the channel's activations on the loss.

    \(\operatorname{mean}_n \left|\operatorname{mean}_d X_{nd} \, \partial \ell_n / \partial X_{nd}\right|\), over all
    calibration examples and positions. The magnitude is taken per example, so that effects do not cancel. The paper
    also divides by the layer's l2 norm; `score` divides by the layer's mean magnitude.

    Returns:
      [C] scores >= 0.

    Example:
      >>> ops = Operands.from_arrays(
      ...     features=[[1.0], [3.0]], labels=[0, 1], kernel=[[1.0]], feature_gradient=[[2.0], [-1.0]]
      ... )
      >>> taylor_activations(ops).tolist()  # (2 + 3) / 2
      [2.5]

    Source:
      Molchanov et al., Pruning Convolutional Neural Networks for Resource Efficient Inference, ICLR 2017, eq. 8.
    """
    scores = (operands.gradients or Gradients()).first_order
    assert scores is not None  # it is there with GX, which the metric reads
    return scores


def _lost_norms(maps: jax.Array) -> jax.Array:
    """Returns [C] by how much the nuclear norm of [D, C] maps falls without each channel.

    The trace of sqrt(M) is an integral over t of log(1 + M / t^2) / pi, and without the row that is u in A = U S V' the
    determinant of S^2 + t^2 shrinks by f = 1 - |u|^2 + sum_i u_i^2 t^2 / (s_i^2 + t^2). So the fall is the integral of
    -log(f) / pi: on a grid of log(t) the trapezoid rule is exact up to exp(-pi^2 / spacing), and all channels are one
    matrix product. No difference of norms is computed.
    """
    left, values, _ = jnp.linalg.svd(maps.T, full_matrices=False)
    largest = values[0]
    relative = values / jnp.where(largest > 0, largest, 1)
    digits = -math.log(jnp.finfo(maps.dtype).eps)
    spacing = math.pi**2 / (digits + 2)
    logs = np.arange(-digits - 3, digits + 3, spacing)
    grid = jnp.asarray(np.exp(logs), maps.dtype)
    sums = jnp.square(relative)[:, None] + jnp.square(grid)[None]
    shares = jnp.square(left)
    shrunk = jnp.matmul(shares, jnp.square(relative)[:, None] / sums, precision=HIGHEST)  # 1 - f, [C, grid]
    rest = jnp.matmul(shares, jnp.square(grid)[None] / sums, precision=HIGHEST)
    rest += _rests(left)[:, None]  # f
    is_small = shrunk < 0.5
    integrand = jnp.where(
        is_small, -jnp.log1p(-jnp.where(is_small, shrunk, 0)), -jnp.log(jnp.where(is_small, 1, rest))
    )
    return largest * jnp.maximum(jnp.sum(integrand * grid[None], axis=1), 0) * spacing / math.pi


def _rests(left: jax.Array) -> jax.Array:
    """Returns [C] 1 - |u|^2 of the rows u of a [C, r] matrix with orthonormal columns.

    It is computed from u's products with the other rows: a small difference would have no correct digits.
    """
    products = jnp.matmul(left, left.T, precision=HIGHEST)
    others = jnp.sum(jnp.square(products) * (1 - jnp.eye(len(left), dtype=left.dtype)), axis=1)
    norms = jnp.diagonal(products)
    return jnp.where(norms > 0, jnp.minimum(others / jnp.where(norms > 0, norms, 1), 1), 1)


def _batch(entries: int, count: int) -> int:
    """Returns how many of `count` arrays with this many entries to compute side by side."""
    return max(1, min(count, _BLOCK_ENTRIES // max(entries, 1)))


def _column_hash(key: jax.Array, columns: jax.Array) -> jax.Array:
    """Hashes the columns of [F, C] numbers, in float32, to 32 bits each."""
    numbers = columns.astype(jnp.float32) + 0.0  # -0.0 and 0.0 are one number
    bits = jax.lax.bitcast_convert_type(numbers, jnp.uint32)
    salt = jax.random.bits(key, (bits.shape[0], 1), jnp.uint32)
    return jnp.sum(_mix(bits ^ salt), axis=0, dtype=jnp.uint32)


def _mix(words: jax.Array) -> jax.Array:
    """Applies the finaliser of MurmurHash3: every bit of a word changes half of the bits of the result."""
    words = (words ^ (words >> np.uint32(16))) * np.uint32(0x85EBCA6B)
    words = (words ^ (words >> np.uint32(13))) * np.uint32(0xC2B2AE35)
    return words ^ (words >> np.uint32(16))

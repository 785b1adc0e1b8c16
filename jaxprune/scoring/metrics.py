r"""The zoo: every hand-made metric of the field by name, each with its formula, its paper and what it reads.

A higher score means a more important channel, and the lowest are pruned first; where a paper ranks the other way, the
sign is changed and `about` says so. Metrics that the language of formulas can say are expressions, the others are the
functions of `metric_functions`. Scores are defined up to a positive factor: sums over classes or examples are means
here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType

import jax
import numpy as np

from jaxprune.language.expression import Expression
from jaxprune.language.library import library, own_seeds, sources
from jaxprune.language.parsing import parse
from jaxprune.observation.operands import Operands
from jaxprune.scoring import metric_functions
from jaxprune.scoring.compiled import check_operands, compile, explain_missing, missing_operands
from jaxprune.scoring.metric_functions import MetricFunction
from jaxprune.types import Array


@dataclass(frozen=True)
class Metric:
    """A named pruning function. Call it on the operands of one layer, or give it to `score`.

    Attributes:
      name: its key in `metrics`.
      function: an expression, or a jittable function from the operands of one layer to [C] scores.
      about: what a score is, and what to know about it.
      latex: the formula, for people.
      source: paper, and place in it.
      reads: the operands it reads, by their names in formulas.
    """

    name: str
    function: Expression | MetricFunction
    about: str
    latex: str
    source: str
    reads: tuple[str, ...]

    @property
    def expression(self) -> Expression | None:
        """The formula, if the language can say the metric."""
        return self.function if isinstance(self.function, Expression) else None

    @property
    def formula(self) -> str:
        """Text of the formula that can be parsed, or LaTeX where the language cannot say it."""
        return self.latex if self.expression is None else str(self.expression)

    @property
    def operands(self) -> frozenset[str]:
        """The operands it reads, as for an expression."""
        return frozenset(self.reads)

    def __call__(self, operands: Operands) -> jax.Array:
        """Returns [C] scores of one layer; [B, C] for B stacked members, which are scored one after another.

        Args:
          operands: of the layer.

        Raises:
          TypeError: if `operands` is not one layer.
          ValueError: if an operand that it reads is missing.
        """
        if self.expression is not None:
            return compile(self.expression)(operands)
        check_operands(operands)
        absent = missing_operands(self.reads, operands)
        if absent:
            raise ValueError(
                f"{self.name}: {explain_missing(absent, operands)}. Give it to the operands, or use another metric."
            )
        return _jitted(self.function)(operands)

    def __str__(self) -> str:
        return self.name


PruningFunction = Expression | Metric | Callable[[Operands], Array]
"""What can score channels: a formula, a metric, or any function from the operands of one layer to [C] scores."""


def name_of(f: PruningFunction) -> str:
    """Returns what messages call a function: its formula, the metric's name, or the function's name.

    Example:
      >>> name_of(parse("mean(X)")), name_of(metrics["l1"]), name_of(len)
      ('mean(X)', 'l1', 'len')
    """
    return str(f) if isinstance(f, Expression | Metric) else getattr(f, "__name__", repr(f))


def layer_scores(f: Metric | Callable[[Operands], Array], operands: Operands) -> np.ndarray:
    """Scores one layer by a metric, or by any function, which gets one member after another.

    Args:
      f: the metric or function.
      operands: of the layer.

    Returns:
      [B, C] scores; B is 1 if `operands` are not stacked.

    Raises:
      ValueError: if the function does not give [C] numbers, or a metric's operand is missing.

    Example:
      >>> ops = Operands.from_arrays(features=np.eye(2), labels=[0, 1], kernel=np.eye(2))
      >>> layer_scores(lambda operands: operands.filters.sum(0), ops).tolist()
      [[1.0, 1.0]]
    """
    if isinstance(f, Metric):
        scores = np.asarray(f(operands))
        return scores if operands.is_stacked else scores[None]
    rows = [np.asarray(f(member)) for member in operands.members()]
    for row in rows:
        if row.shape != (operands.num_channels,) or not np.issubdtype(row.dtype, np.number):
            raise ValueError(
                f"{name_of(f)} must give one number per channel, shape ({operands.num_channels},), got "
                f"{row.dtype} of shape {row.shape}. Sum or average over everything but the channels, the last axis."
            )
    return np.stack(rows)


@lru_cache(maxsize=1024)
def random(seed: int) -> Metric:
    """Returns random scores as a metric; `metric_functions.random_numbers` says what they follow from.

    Args:
      seed: which draw, in [0, 2**32).

    Raises:
      ValueError: if the seed is not in [0, 2**32).

    Example:
      >>> random(3).name
      'random(3)'
    """
    return _random(f"random({seed})", seed)


@lru_cache(maxsize=1024)
def _jitted(function: MetricFunction) -> Callable[[Operands], jax.Array]:
    def scores(operands: Operands) -> jax.Array:
        return jax.lax.map(function, operands) if operands.is_stacked else function(operands)

    return jax.jit(scores)


def _random(name: str, seed: int) -> Metric:
    return Metric(
        name,
        metric_functions.random_numbers(seed),
        "Uniform numbers that follow from a seed and the channel's weights: the control that a metric has to beat.",
        r"u \sim \mathcal{U}[0, 1)",
        "the control of every comparison",
        ("WI",),
    )


def _function(function: MetricFunction, reads: str, latex: str, about: str, source: str) -> Metric:
    return Metric(function.__name__, function, about, latex, source, tuple(reads.split()))


def _formula(name: str, about: str, text: str = "", source: str = "") -> Metric:
    known = {**library, **own_seeds}
    f = parse(text) if text else known[name]
    return Metric(name, f, about, f.latex(), source or sources[name], tuple(sorted(f.operands)))


_WANDA = "Sun et al., A Simple and Effective Pruning Approach for Large Language Models (Wanda), ICLR 2024"
_FLAP = "An et al., Fluctuation-based Adaptive Structured Pruning for Large Language Models, AAAI 2024"
_SCALED = "(std(X)*sqrt(count(mX)) + 1e-4)"

_METRICS = (
    _random("random", 0),
    _formula("l1", "Sum of the magnitudes of the producing weights."),
    _formula("l2", "Euclidean norm of the producing weights."),
    _function(
        metric_functions.fpgm,
        "W WI",
        r"\sum_j \left\| w - w_j \right\|_2",
        "Sum of the Euclidean distances of a filter to all others of its layer; the most replaceable is pruned first.",
        "He et al., Filter Pruning via Geometric Median, CVPR 2019, sec. 3.3",
    ),
    _formula(
        "geometric_median", "Distance of a filter to the one with the least sum of distances (the medoid)."
    ),
    _formula("bn_scale", "Magnitude of the scale of the normalisation that follows."),
    _function(
        metric_functions.lamp,
        "W WI",
        r"\|w\|^2 \,/ \sum_{j:\, \|w_j\| \geq \|w\|} \|w_j\|^2",
        "Squared norm over the sum of the layer's squared norms that are not smaller; comparable between layers. The"
        " paper scores single weights, this scores channels.",
        "Lee et al., Layer-adaptive Sparsity for the Magnitude-based Pruning, ICLR 2021, sec. 2",
    ),
    _formula(
        "taylor",
        "Squared first-order change of the mean loss without the filter (a gate on it); gradients of all images.",
    ),
    _function(
        metric_functions.taylor_activations,
        "GX X",
        r"\operatorname{mean}_n\left(\left|\operatorname{mean}_d\left(X_{nd} \nabla_{\!X_{nd}}\right)\right|\right)",
        "Magnitude of the first-order change of each example's own loss without the channel's activations, on average.",
        "Molchanov et al., Pruning Convolutional Neural Networks for Resource Efficient Inference, ICLR 2017, eq. 8",
    ),
    _function(
        metric_functions.fisher,
        "GX X",
        r"\operatorname{mean}_n\left(\left(\sum_d X_{nd} \nabla_{\!X_{nd}}\right)^2\right)",
        "Mean over all examples of the squared first-order change of the example's own loss without the channel.",
        "Theis et al., Faster gaze prediction with dense networks and Fisher pruning, 2018, sec. 2.1, eq. 9 (twice)",
    ),
    _formula(
        "obd",
        "Optimal brain damage, summed over the filter: half the curvature times the squared weight. For the curvature"
        " stands the empirical Fisher diagonal, the mean over all images of each one's own squared gradient.",
        "sum(square(WI)*GW2)/2",
        "LeCun et al., Optimal Brain Damage, NeurIPS 1989: saliency h_kk w_k^2 / 2; the empirical Fisher diagonal as h",
    ),
    _formula(
        "obd_activations",
        "Optimal brain damage of the channel's activations: the diagonal of the empirical Fisher matrix over positions,"
        " from each sampled example's own gradient. Of pooled maps it is that of windows that move together.",
        "mean(square(X*GX))*count(mX)/2",
        "LeCun et al., Optimal Brain Damage, NeurIPS 1989, the saliency of weights taken over to activations",
    ),
    _function(
        metric_functions.apoz,
        "X",
        r"\operatorname{mean}\left(\left[X \neq 0\right]\right)",
        "Share of activations that are not zero. The paper prunes the largest share of zeros first: sign turned.",
        "Hu et al., Network Trimming, 2016 (arXiv 1607.03250), sec. 3.1",
    ),
    _formula(
        "mean_activation",
        "Mean activation, as the next layer sees it.",
        source="Molchanov et al., Pruning Convolutional Neural Networks for Resource Efficient Inference, ICLR 2017,"
        " sec. 2.2 (activation)",
    ),
    _function(
        metric_functions.hrank,
        "X",
        r"\operatorname{mean}_n\left(\operatorname{rank}\left(X_n\right)\right)",
        "Mean rank of the channel's feature maps in the sample. Maps of more than 64 positions are average-pooled"
        " unless they are observed whole: observe(..., max_positions=H*W), the paper's reading.",
        "Lin et al., HRank: Filter Pruning using High-Rank Feature Map, CVPR 2020, sec. 3.3",
    ),
    _function(
        metric_functions.chip,
        "X",
        r"\operatorname{mean}_n\left(\left\|A_n\right\|_* - \left\|M_c \circ A_n\right\|_*\right)",
        "What the nuclear norm of the layer's feature maps loses without the channel (its independence). Maps of the"
        " sample, of more than 64 positions average-pooled unless observed whole: observe(..., max_positions=H*W).",
        "Sui et al., CHIP: Channel Independence-based Pruning for Compact Neural Networks, NeurIPS 2021, sec. 3",
    ),
    _formula(
        "thinet",
        "What the next layer's output loses in mean square without the channel, its taps taken as uncorrelated (exact"
        " for consumers of one tap). The paper chooses greedily; this is the first step of that choice.",
        "(var(X) + square(mean(X)))*sum(square(WO))",
        "Luo et al., ThiNet, ICCV 2017, sec. 3.2; one channel at a time",
    ),
    _formula(
        "wanda",
        "Magnitude of the consuming weights times the root mean square of the channel: Wanda summed over the outputs"
        " (Wanda-sp), so that whole channels are scored.",
        "sum(abs(WO))*sqrt(var(X) + square(mean(X)))",
        f"{_WANDA}, sec. 3, in the structured form of {_FLAP}",
    ),
    _formula(
        "flap",
        "Variance of the channel times the squared norm of the consuming weights: what a bias cannot make good.",
        "var(X)*sum(square(WO))",
        f"{_FLAP}, the weighted input feature variance",
    ),
    _formula("abs_snr", "Distance of the means of a class and the others, over the sum of their deviations."),
    _formula("fdr", "Fisher's discriminant ratio of a class against the others."),
    _formula("t_stat", "Welch's t between a class and the others."),
    _formula("sym_div", "Symmetric divergence of two normal distributions, a class against the others."),
    _formula(
        "di", "Discriminant information: how well the channel's map tells a class, with a ridge of 1e-4."
    ),
    _formula(
        "mmd", "Squared maximum mean discrepancy of a class and the others; Gaussian kernel of bandwidth 1."
    ),
    _formula(
        "hsic",
        "Hilbert-Schmidt independence criterion of activations and labels, the biased estimator: a Gaussian kernel on X"
        " of bandwidth std(X) sqrt(D) + 1e-4, the kernel [same class] on labels; the mean over classes, not the sum.",
        f"square(N/NX)*(mean(rbf(P/{_SCALED}, 1)) - 2*mean(rbf(P/{_SCALED}, X/{_SCALED}, 1))"
        f" + mean(rbf(X/{_SCALED}, 1)))",
        "Gretton et al., Measuring Statistical Dependence with Hilbert-Schmidt Norms, ALT 2005, def. 2; with labels:"
        " Song et al., Supervised Feature Selection via Dependence Estimation, ICML 2007",
    ),
    *(
        _formula(name, "Found by evolution on LeNet-5 and VGG-16.")
        for name in library
        if name.startswith("evolved")
    ),
    _formula("inspired_1", "Written by hand after evolved functions."),
    _formula(
        "evolved_gradient_shift",
        "How far class means lie from the overall mean, times the spreads of the gradients of the producing weights and"
        " of the consuming weights. Found by our evolution.",
    ),
    _formula(
        "evolved_taylor_shift",
        "How far class means lie from the overall mean, times the root of a product of the first-order change of the"
        " loss, the spread of its gradients and the magnitude of the consuming weights. Found by our evolution.",
    ),
)

metrics: Mapping[str, Metric] = MappingProxyType({metric.name: metric for metric in _METRICS})
"""Name -> metric, hand-made and published ones."""

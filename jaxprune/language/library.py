"""The library: named pruning functions from the literature, and our own seeds for evolution.

Evolution starts from them, and every comparison has rows for them. Scores are means over classes (the papers often
sum, which ranks the same).
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from jaxprune.language.expression import Expression
from jaxprune.language.parsing import NAMED_FUNCTIONS, parse


class Published(NamedTuple):
    """A named function and where it comes from.

    Attributes:
      expression: the formula, of type ().
      source: paper and equation, or what it measures if it is ours.
    """

    expression: Expression
    source: str


_EVOLVED = "Liu, Kung, Wentzlaff, Evolving Transferable Neural Pruning Functions, GECCO 2022"
_SEED_METRICS = f"{_EVOLVED}, seed metrics"

_LIBRARY = {
    "l1": ("sum(abs(WI))", "Li et al., Pruning Filters for Efficient ConvNets, ICLR 2017, sec. 3.1"),
    "l2": ("sqrt(sum(square(WI)))", "He et al., Soft Filter Pruning, IJCAI 2018, eq. 2 with p = 2"),
    "geometric_median": (
        "sqrt(sum(square(WI - geometric_median(W))))",
        "He et al., Filter Pruning via Geometric Median, CVPR 2019, eq. 4, with the medoid as the median",
    ),
    "abs_snr": (
        "abs(mean(P) - mean(Q))/(std(P) + std(Q) + 1e-4)",
        f"Golub et al., Science 1999; {_SEED_METRICS}",
    ),
    "fdr": (
        "square(mean(P) - mean(Q))/(var(P) + var(Q) + 1e-4)",
        f"Pavlidis et al., Gene Functional Classification, RECOMB 2001; {_SEED_METRICS}",
    ),
    "t_stat": (
        "abs(mean(P) - mean(Q))/sqrt(var(P)/N + var(Q)/NQ + 1e-4)",
        f"Welch, Biometrika 1947; {_SEED_METRICS}",
    ),
    "sym_div": (
        "var(P)/(var(Q) + 0.05) + var(Q)/(var(P) + 0.05) + square(mean(P) - mean(Q))/(var(P) + var(Q) + 0.05)",
        f"symmetric divergence, Mak and Kung, Solving the Small-Sample Problem, 2006; {_SEED_METRICS}",
    ),
    "di": (
        "N*inner(mP - mX, matmul(inverse(matmul(transpose(X - mX), X - mX)), mP - mX))",
        "Kung et al., Methodical Design and Trimming of Deep Learning Networks, ICASSP 2019: discriminant information",
    ),
    "mmd": (
        "mean(rbf(P, 1)) + mean(rbf(Q, 1)) - 2*mean(rbf(P, Q, 1))",
        "Gretton et al., A Kernel Two-Sample Test, JMLR 2012, eq. 5, one class against the others",
    ),
    "evolved_eq3": (
        "sum(var(P)/(var(Q) + 0.05) + var(Q)/(var(P) + 0.05)"
        " + square(std(mX)*var(Q)*mX + var(P) - mean(Q))/(var(P) + var(Q) + 0.05))",
        f"{_EVOLVED}, eq. 3",
    ),
    "evolved_1": (
        "sum(var(P) + square(var(Q) - mX)/(var(Q) + var(P) + 0.05))",
        f"{_EVOLVED}, evolved functions, no. 1 of the reference implementation",
    ),
    "evolved_3": (
        "sum(square(mX - var(Q))/sqrt(var(P)/N + var(Q)/NQ + 1e-4))",
        f"{_EVOLVED}, evolved functions, no. 3 of the reference implementation",
    ),
    "evolved_4": (
        "sum(var(P)/(var(Q)/NQ + 0.05) + abs(mean(P) - mean(Q)) + 0.05 + mQ)",
        f"{_EVOLVED}, evolved functions, no. 4 of the reference implementation",
    ),
    "inspired_1": (
        "std(P)/(std(Q) + 0.2) + std(Q)/(std(P) + 0.2)"
        " + (sum(square(mX - mP)) + sum(square(mX - mQ)))/(std(P) + std(Q) + 0.2)",
        f"{_EVOLVED}, functions inspired by evolution, no. 1 of the reference implementation",
    ),
    "bn_scale": (
        "abs(gamma)",
        "Liu et al., Learning Efficient Convolutional Networks through Network Slimming, ICCV 2017; a control",
    ),
}

_OWN_SEEDS = {
    "mean_shift": ("sum(square(mP - mX))", "ours: how far class means lie from the overall mean"),
    "mean_shift_outgoing": (
        "sum(square(mP - mX))*sum(square(WO))",
        "ours: class separation, weighted by what consumes the channel",
    ),
    "spread_outgoing": (
        "sqrt(var(X))*sqrt(sum(square(WO)))",
        "ours: what removing the channel takes from the next layer",
    ),
    "norm_in_out": (
        "sqrt(sum(square(WI)))*sqrt(sum(square(WO)))",
        "ours: norm of producing times consuming weights",
    ),
    "taylor": (
        "square(inner(GW, WI))",
        "Molchanov et al., Importance Estimation for Neural Network Pruning, CVPR 2019, eq. 8 (a gate on the channel): "
        "squared first-order change of the loss without the filter, of the mean loss rather than of each batch's",
    ),
    "mean_activation": ("mean(X)", "ours: average activation, a control"),
    "evolved_gradient_shift": (
        "std(GW)*std(WO)*sum(square(mP - mX))",
        "ours, evolved on digits and digits-deep: +.20 ± .07 over mean_shift_outgoing, our best formula by hand, in "
        "standard deviations of the known functions, pooled over five tasks (320 fresh base networks), three of them "
        "unseen by the search",
    ),
    "evolved_taylor_shift": (
        "sqrt(sqrt(abs(inner(GW, WI)))*std(GW)*sum(abs(WO)))*sum(square(mP - mX))",
        "ours, evolved on digits, digits-deep and digits-dw, a runner-up: +.21 ± .06 over mean_shift_outgoing, pooled "
        "likewise, two of the five tasks unseen by the search",
    ),
}

PUBLISHED: Mapping[str, Published] = MappingProxyType(
    {name: Published(parse(text), source) for name, (text, source) in _LIBRARY.items()}
)
"""Library name -> formula and source."""

library: Mapping[str, Expression] = MappingProxyType(
    {name: published.expression for name, published in PUBLISHED.items()}
)
"""Library name -> formula."""

own_seeds: Mapping[str, Expression] = MappingProxyType(
    {name: parse(text) for name, (text, _) in _OWN_SEEDS.items()}
)
"""Name -> formula that a population also starts from; all our own, by hand or evolved, except `taylor`."""

sources: Mapping[str, str] = MappingProxyType(
    {name: source for name, (_, source) in (_LIBRARY | _OWN_SEEDS).items()}
)
"""Name -> paper and equation, for `library` and `own_seeds`."""

NAMED_FUNCTIONS.update({**dict.fromkeys(own_seeds, "own_seeds"), **dict.fromkeys(library, "library")})

FOUND_BY_US: tuple[str, ...] = ("evolved_gradient_shift", "evolved_taylor_shift")
"""The seeds that searches of ours have found."""

PAPER_SEEDS: tuple[str, ...] = ("abs_snr", "fdr", "sym_div", "t_stat", "l1", "l2", "geometric_median")
"""The seven metrics that the paper's population starts from."""

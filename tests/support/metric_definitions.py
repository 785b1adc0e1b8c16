"""Every metric of the zoo from its definition alone: float64 NumPy, one channel and one class at a time."""

import math
from types import SimpleNamespace

import numpy as np


def channels_of(
    features, labels, kernel, outgoing, gamma, weight_gradient, feature_gradient, squared_weight_gradient
):
    """What a definition may read, one record per channel, everything float64."""
    num_examples, *space, num_channels = features.shape
    arrays = {"features": features, "kernel": kernel, "outgoing": outgoing, "gamma": gamma}
    arrays |= {"weight_gradient": weight_gradient, "feature_gradient": feature_gradient}
    arrays |= {"squared_weight_gradient": squared_weight_gradient}
    wide = SimpleNamespace(**{name: np.asarray(value, np.float64) for name, value in arrays.items()})
    filters = wide.kernel.reshape(-1, num_channels)
    for c in range(num_channels):
        yield SimpleNamespace(
            index=c,
            maps=wide.features,
            space=space,
            X=wide.features[..., c].reshape(num_examples, -1),
            labels=np.asarray(labels),
            w=filters[:, c],
            bank=filters,
            out=wide.outgoing[..., c, :].reshape(-1),
            gamma=wide.gamma[c],
            gw=wide.weight_gradient[..., c].reshape(-1),
            gw2=wide.squared_weight_gradient[..., c].reshape(-1),
            gx=wide.feature_gradient[..., c].reshape(num_examples, -1),
        )


def classes_of(channel):
    for k in np.unique(channel.labels):
        own = channel.labels == k
        P, Q = channel.X[own], channel.X[~own]
        yield SimpleNamespace(
            X=channel.X, P=P, Q=Q, mX=channel.X.mean(0), mP=P.mean(0), mQ=Q.mean(0), N=len(P), NQ=len(Q)
        )


def norm(vector):
    return math.sqrt(sum(float(entry) ** 2 for entry in np.ravel(vector)))


def by_class(function):
    return lambda channel: np.mean([function(turn) for turn in classes_of(channel)])


def fpgm(channel):
    return sum(norm(channel.w - other) for other in channel.bank.T)


def geometric_median(channel):
    columns = list(channel.bank.T)
    totals = [sum(norm(one - other) for other in columns) for one in columns]
    return norm(channel.w - columns[int(np.argmin(totals))])


def lamp(channel):
    squares = [norm(column) ** 2 for column in channel.bank.T]
    own = squares[channel.index]
    return own / sum(square for square in squares if square >= own) if own else 0.0


def hrank(channel):
    maps = [channel.maps[n, ..., channel.index] for n in range(len(channel.maps))]
    return np.mean([np.linalg.matrix_rank(image) for image in maps])


def nuclear_norm(matrix):
    return np.linalg.svd(matrix, compute_uv=False).sum()


def chip(channel):
    losses = []
    for image in channel.maps:
        matrix = image.reshape(-1, image.shape[-1]).T
        without = matrix.copy()
        without[channel.index] = 0
        losses.append(nuclear_norm(matrix) - nuclear_norm(without))
    return np.mean(losses)


def mean_kernel(A, B, sigma=1.0):
    return np.mean([[math.exp(-(norm(a - b) ** 2) / (2 * sigma**2)) for b in B] for a in A])


def hsic(channel):
    """Gretton et al. 2005: tr(K H L H) / n^2 with the full label kernel; divided by the number of classes."""
    n, positions = channel.X.shape
    sigma = channel.X.std() * math.sqrt(positions) + 1e-4
    K = np.array([[math.exp(-(norm(a - b) ** 2) / (2 * sigma**2)) for b in channel.X] for a in channel.X])
    L = (channel.labels[:, None] == channel.labels[None]).astype(float)
    H = np.eye(n) - np.full((n, n), 1 / n)
    return np.trace(K @ H @ L @ H) / n**2 / len(np.unique(channel.labels))


def discriminant_information(turn):
    centred = turn.X - turn.mX
    inverse = np.linalg.inv(centred.T @ centred + 1e-4 * np.eye(len(turn.mX)))
    return turn.N * (turn.mP - turn.mX) @ inverse @ (turn.mP - turn.mX)


def sym_div(t):
    p, q = t.P.var(), t.Q.var()
    return p / (q + 0.05) + q / (p + 0.05) + (t.P.mean() - t.Q.mean()) ** 2 / (p + q + 0.05)


def evolved_eq3(t):
    p, q = t.P.var(), t.Q.var()
    squares = (t.mX.std() * q * t.mX + p - t.Q.mean()) ** 2
    return sum(p / (q + 0.05) + q / (p + 0.05) + square / (p + q + 0.05) for square in squares)


def inspired_1(t):
    p, q = t.P.std(), t.Q.std()
    distances = norm(t.mX - t.mP) ** 2 + norm(t.mX - t.mQ) ** 2
    return p / (q + 0.2) + q / (p + 0.2) + distances / (p + q + 0.2)


def class_shift(channel):
    return np.mean([sum((m - x) ** 2 for m, x in zip(t.mP, t.mX, strict=True)) for t in classes_of(channel)])


def evolved_taylor_shift(channel):
    taylor = abs(sum(w * g for w, g in zip(channel.w, channel.gw, strict=True)))
    outgoing = sum(abs(entry) for entry in channel.out)
    return math.sqrt(math.sqrt(taylor) * channel.gw.std() * outgoing) * class_shift(channel)


def root_mean_square(channel):
    return math.sqrt(np.mean(channel.X**2))


DEFINITIONS = {
    "l1": lambda c: sum(abs(entry) for entry in c.w),
    "l2": lambda c: norm(c.w),
    "fpgm": fpgm,
    "geometric_median": geometric_median,
    "bn_scale": lambda c: abs(c.gamma),
    "lamp": lamp,
    "taylor": lambda c: sum(w * g for w, g in zip(c.w, c.gw, strict=True)) ** 2,
    "taylor_activations": lambda c: np.mean([abs(np.mean(x * g)) for x, g in zip(c.X, c.gx, strict=True)]),
    "fisher": lambda c: np.mean([np.sum(x * g) ** 2 for x, g in zip(c.X, c.gx, strict=True)]),
    "obd": lambda c: 0.5 * sum(h * w**2 for w, h in zip(c.w, c.gw2, strict=True)),
    "obd_activations": lambda c: np.mean([0.5 * np.sum(x**2 * g**2) for x, g in zip(c.X, c.gx, strict=True)]),
    "apoz": lambda c: 1 - np.mean(c.X == 0),
    "mean_activation": lambda c: np.mean(c.X),
    "hrank": hrank,
    "chip": chip,
    "thinet": lambda c: sum(float(w) ** 2 * np.mean(c.X**2) for w in c.out),
    "wanda": lambda c: sum(abs(float(w)) * root_mean_square(c) for w in c.out),
    "flap": lambda c: c.X.var() * norm(c.out) ** 2,
    "abs_snr": by_class(lambda t: abs(t.P.mean() - t.Q.mean()) / (t.P.std() + t.Q.std() + 1e-4)),
    "fdr": by_class(lambda t: (t.P.mean() - t.Q.mean()) ** 2 / (t.P.var() + t.Q.var() + 1e-4)),
    "t_stat": by_class(
        lambda t: abs(t.P.mean() - t.Q.mean()) / math.sqrt(t.P.var() / t.N + t.Q.var() / t.NQ + 1e-4)
    ),
    "sym_div": by_class(sym_div),
    "di": by_class(discriminant_information),
    "mmd": by_class(lambda t: mean_kernel(t.P, t.P) + mean_kernel(t.Q, t.Q) - 2 * mean_kernel(t.P, t.Q)),
    "hsic": hsic,
    "evolved_eq3": by_class(evolved_eq3),
    "evolved_1": by_class(
        lambda t: sum(t.P.var() + (t.Q.var() - m) ** 2 / (t.Q.var() + t.P.var() + 0.05) for m in t.mX)
    ),
    "evolved_3": by_class(
        lambda t: sum(
            (m - t.Q.var()) ** 2 / math.sqrt(t.P.var() / t.N + t.Q.var() / t.NQ + 1e-4) for m in t.mX
        )
    ),
    "evolved_4": by_class(
        lambda t: sum(
            t.P.var() / (t.Q.var() / t.NQ + 0.05) + abs(t.P.mean() - t.Q.mean()) + 0.05 + m for m in t.mQ
        )
    ),
    "inspired_1": by_class(inspired_1),
    "evolved_gradient_shift": lambda c: c.gw.std() * c.out.std() * class_shift(c),
    "evolved_taylor_shift": evolved_taylor_shift,
}
"""Name -> function from a channel to its score; `random` has none."""


def score_by_definition(name, **arrays):
    return np.array([DEFINITIONS[name](channel) for channel in channels_of(**arrays)])

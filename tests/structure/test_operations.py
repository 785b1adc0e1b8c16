"""Everyday operations between two convolutions: which of them let the channels between be pruned, and exactly so."""

import functools

import jax
import jax.ad_checkpoint
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax
from pruned_nets import Net, conv, relative_error

from jaxprune.pruning.masking import mask
from jaxprune.pruning.planning import make_plan
from jaxprune.pruning.slimming import slim
from jaxprune.structure.tracing import trace_structure

IMAGES = np.random.default_rng(0).normal(size=(2, 4, 4, 3)).astype(np.float32)
KEPT = (0, 2, 3, 6, 7)
MESH = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("x",))


def pad(mode, **options):
    return lambda h: jnp.pad(h, ((0, 0), (1, 2), (0, 0), (0, 0)), mode, **options)


def unused(function):
    return lambda h: (h, function(h))[0]


@jax.vmap
def added_at_places(h):
    """What a mixture of experts does: rows are sent to places, and brought back."""
    rows = h.reshape(-1, h.shape[-1])
    places = np.arange(len(rows)) * 7 % len(rows)
    return jnp.zeros_like(rows).at[places].add(rows)[places].reshape(h.shape)


def largest_place(h):
    """What a pooling with indices does: the largest entry of each channel, looked up again."""
    rows = h.reshape(h.shape[0], -1, h.shape[-1])
    place = jnp.argmax(rows, 1, keepdims=True)
    return h + jnp.take_along_axis(rows, place, 1)[:, :, None]


@functools.partial(jax.vmap, in_axes=3, out_axes=3)
@jax.vmap
def written_back(h):
    """The largest entry of each channel alone, at its place."""
    entries = h.reshape(-1)
    return jnp.zeros_like(entries).at[entries.argmax()].set(entries.max()).reshape(h.shape)


def doubled_or_not(h):
    return lax.cond(h.shape[1] > 2, lambda h: h * 2, lambda h: h, h)


@jax.custom_jvp
def own_derivative(h):
    return jnp.sin(h)


own_derivative.defjvp(lambda primals, tangents: (own_derivative(*primals), tangents[0]))

PRUNABLE = {
    # identities
    "sharding constraint": lambda h: lax.with_sharding_constraint(
        h, jax.sharding.SingleDeviceSharding(jax.devices()[0])
    ),
    "name": lambda h: jax.ad_checkpoint.checkpoint_name(h, "hidden"),
    "put on a device": lambda h: jax.device_put(h, jax.devices()[0]),
    "optimization barrier": lambda h: lax.optimization_barrier((h, h * 2))[1],
    "copy": lambda h: jnp.array(h, copy=True),
    "stop gradient": lax.stop_gradient,
    "reduced precision": lambda h: lax.reduce_precision(h, 8, 10),
    "checkpoint": jax.checkpoint(jnp.sin),
    "own derivative": own_derivative,
    "jit": jax.jit(jnp.sin),
    "printed": lambda h: (h, jax.debug.callback(lambda h: None, h))[0],
    # elementwise
    "bfloat16 and back": lambda h: h.astype(jnp.bfloat16).astype(jnp.float32),
    "rounded": lambda h: jnp.round(h * 8) / 8,
    "compared": lambda h: (h > 0.1).astype(jnp.float32),
    "where": lambda h: jnp.where(h > 0, h, -0.1 * h),
    "select": lambda h: jnp.select([h > 1, h < -1], [h, -h], 0.5 * h),
    "piecewise": lambda h: jnp.piecewise(h, [h < 0, h >= 0], [lambda h: 0 * h, lambda h: h**2]),
    "clip": lambda h: jnp.clip(h, -1, 1),
    "remainder": lambda h: jnp.mod(h, 0.7),
    "real and imaginary": lambda h: jnp.abs(lax.complex(h, 0.5 * h)) + jnp.conj(lax.complex(h, h)).imag,
    "gammas": lambda h: lax.igamma(h**2 + 1, h**2 + 2),
    "bits": lambda h: lax.bitcast_convert_type(lax.bitcast_convert_type(h, jnp.int32) & -1024, jnp.float32),
    "logical": lambda h: jnp.logical_xor(h > 0, h > 1).astype(h.dtype),
    "log sum exp of two": lambda h: jnp.logaddexp(h, -h),
    "hypot": lambda h: jnp.hypot(h, 2 * h),
    # parts of other axes
    "stack and largest": lambda h: jnp.stack([h, -h]).max(0),
    "stack at the end": lambda h: jnp.stack([h, 2 * h, -h], -1).sum(-1),
    "unstack": lambda h: sum(row[:, None] * (at + 1) for at, row in enumerate(jnp.unstack(h, axis=1))),
    "taken apart": lambda h: (lambda a, b, *_: (a - b)[:, None])(*jnp.moveaxis(h, 1, 0)),
    "split": lambda h: functools.reduce(jnp.maximum, jnp.split(h, 2, 1)),
    "array of arrays": lambda h: jnp.array([h, h * h]).mean(0),
    "rolled": lambda h: jnp.roll(h, 1, 1) - h,
    "shifted windows": lambda h: jnp.roll(h, (-1, -1), (1, 2)),
    "flipped": lambda h: jnp.flip(h, (1, 2)),
    "turned": lambda h: jnp.rot90(h, axes=(1, 2)),
    "repeated": lambda h: jnp.repeat(h, 2, 1),
    "tiled": lambda h: jnp.tile(h, (1, 2, 1, 1)),
    "differences": lambda h: jnp.diff(h, axis=1),
    "empty slice joined": lambda h: jnp.concatenate([h[:, :0], h], 1),
    "upsampled": lambda h: jax.image.resize(h, (h.shape[0], 8, 8, h.shape[3]), "nearest"),
    "bilinear": lambda h: jax.image.resize(h, (h.shape[0], 8, 8, h.shape[3]), "bilinear"),
    "depth to space of places": lambda h: (
        h.reshape(h.shape[0], 2, 2, 4, -1).transpose(0, 2, 1, 3, 4).reshape(h.shape)
    ),
    **{
        f"pad by {mode}": pad(mode)
        for mode in (
            "constant",
            "edge",
            "reflect",
            "symmetric",
            "wrap",
            "mean",
            "maximum",
            "minimum",
            "median",
        )
    },
    "pad by linear_ramp": pad("linear_ramp", end_values=1.0),
    # along other axes
    "sum so far": lambda h: jnp.cumsum(h, 1),
    "largest so far": lambda h: lax.cummax(h, 2),
    "sorted": lambda h: jnp.sort(h, 1),
    "ranks": lambda h: jnp.argsort(jnp.argsort(h, 1), 1).astype(h.dtype),
    "top entries": lambda h: jnp.moveaxis(lax.top_k(jnp.moveaxis(h, 1, 3), 2)[0], 3, 1),
    "about the top entries": lambda h: lax.approx_max_k(h, 2, reduction_dimension=1)[0],
    "median": lambda h: h - jnp.median(h, (1, 2), keepdims=True),
    "quantile": lambda h: h - jnp.quantile(h, 0.3, 1, keepdims=True),
    "softmax over places": lambda h: jax.nn.softmax(h, 1),
    "standardised": lambda h: jax.nn.standardize(h, (1, 2)),
    "norm over places": lambda h: h / (1 + jnp.linalg.norm(h, axis=(1, 2), keepdims=True)),
    "place of the largest": largest_place,
    "fourier": lambda h: jnp.abs(jnp.fft.fft(h, axis=1)),
    "real fourier": lambda h: jnp.fft.irfft(jnp.fft.rfft(h, axis=2) * 0.5, axis=2),
    "fourier in two dimensions": lambda h: jnp.fft.fft2(h, axes=(1, 2)).real,
    "matrix over places": lambda h: jnp.einsum("nhwc,hg->ngwc", h, jnp.asarray(np.eye(4, k=1), h.dtype)),
    "attention over channels' maps": lambda h: jnp.einsum("nhwc,nhvc->nwvc", h, h),
    "pooling": lambda h: nnx.max_pool(h, (2, 2), (2, 2)) + nnx.avg_pool(h, (2, 2), (2, 2)),
    # places that are computed
    "border set": lambda h: h.at[:, 0].set(0).at[:, :, -1].set(1),
    "rows added": lambda h: h.at[:, jnp.array([0, 2])].add(h[:, :2]),
    "rows multiplied": lambda h: h.at[:, 1:3].multiply(0.5).at[:, 0].max(0.1),
    "looked up": lambda h: h[:, jnp.array([3, 1, 0])],
    "taken": lambda h: jnp.take(h, jnp.array([0, 0, 2]), axis=2),
    "dynamic slice": lambda h: lax.dynamic_slice_in_dim(h, jnp.argmax(h[0, :2, 0, :].sum(-1) * 0), 2, 1),
    "dynamic update": lambda h: lax.dynamic_update_slice_in_dim(h, h[:, :1] * 2, 1, 1),
    "added at places": added_at_places,
    "sums of segments": lambda h: jax.ops.segment_sum(h[0], jnp.array([0, 1, 1, 0]), 2)[None] + 0 * h[:, :2],
    "written back": written_back,
    # control flow
    "branch": doubled_or_not,
    "loop": lambda h: lax.fori_loop(0, 3, lambda turn, h: 0.5 * h + turn, h),
    "until": lambda h: lax.while_loop(lambda s: s[0] < 2, lambda s: (s[0] + 1, jnp.sin(s[1])), (0, h))[1],
    "running": lambda h: jnp.moveaxis(
        lax.scan(lambda s, row: (0.5 * s + row, s), 0 * h[:, 0], jnp.moveaxis(h, 1, 0))[1], 0, 1
    ),
    "associative": lambda h: lax.associative_scan(jnp.maximum, h, axis=1),
    "mean over a mapped axis": jax.vmap(
        lambda h: h - lax.pmean(h, "rows"), in_axes=1, out_axes=1, axis_name="rows"
    ),
    "mapped": jax.vmap(jax.vmap(lambda h: h * 2)),
    # unused
    "unused decomposition": unused(jnp.linalg.svd),
    "unused place": unused(lambda h: jnp.argmax(h, -1)),
}

DIFFERENT = {
    "mean of channels": lambda h: h - h.mean(-1, keepdims=True),
    "softmax over channels": lambda h: jax.nn.softmax(h),
    "largest channel": lambda h: h + (-jnp.abs(h)).max(-1, keepdims=True),
    "divided by the root of the width": lambda h: h / h.shape[-1] ** 0.5,
}
"""Prunable too, but zeros in place of channels are seen, as docs/structure.md says."""

FROZEN = {
    "sorted channels": (lambda h: jnp.sort(h), "cut, padded or reordered by sort"),
    "largest channel's place": (lambda h: h + jnp.argmax(h, -1, keepdims=True), "the place of a channel"),
    "sums over channels so far": (lambda h: jnp.cumsum(h, -1), "cut, padded or reordered by cumsum"),
    "fourier over channels": (lambda h: jnp.fft.fft(h).real, "mixed by fft"),
    "one channel written": (lambda h: h.at[..., 2].set(0), "written by number in scatter"),
    "channels looked up": (lambda h: h[..., np.array([1, 0, 2, 3])], "looked up by number in gather"),
    "numbered": (lambda h: h * jnp.arange(h.shape[-1])[None, None, None], "counted by iota"),
    "decomposed": (lambda h: jnp.linalg.qr(h)[0], "which mixes all entries of a matrix"),
    "called back": (
        lambda h: jax.pure_callback(np.sin, jax.ShapeDtypeStruct(h.shape, h.dtype), h),
        "which runs code that JAX does not see",
    ),
    "random": (
        lambda h: h + jax.random.normal(jax.random.key(0), h.shape),
        "random numbers of its own for each",
    ),
    "reduced by a function": (
        lambda h: h + lax.reduce(h, 1.0, lambda a, b: a * b + a, (1,))[:, None],
        "which combines entries by a function of the user's",
    ),
}


def network(between, width=8):
    layers = {"first": conv(3, 8), "second": conv(width, 5, 1, use_bias=False)}
    return Net(layers, lambda net, x: net.second(between(net.first(x))).mean((1, 2)))


@functools.cache
def outputs():
    """What the masked and the slim network of each case return, all from one compiled program."""
    pairs = {}
    for name, between in {**PRUNABLE, **DIFFERENT}.items():
        model = network(between)
        structure = trace_structure(model, IMAGES)
        if structure.widths == {"first.kernel": 8}:
            plan = make_plan(structure, {"first.kernel": KEPT})
            pairs[name] = mask(model, plan), slim(model, plan)
    return jax.jit(lambda x: {name: (masked(x), small(x)) for name, (masked, small) in pairs.items()})(IMAGES)


@pytest.mark.parametrize("case", PRUNABLE)
def test_channels_stay_prunable_and_the_slim_network_is_the_masked_one(case):
    structure = trace_structure(network(PRUNABLE[case]), IMAGES)
    assert structure.widths == {"first.kernel": 8}, structure.why_frozen("first.kernel")
    masked, small = outputs()[case]
    assert np.abs(masked).max() > 1e-3
    assert relative_error(masked, small) < 1e-5


@pytest.mark.parametrize("case", DIFFERENT)
def test_the_slim_network_is_another_one_where_zeros_are_seen(case):
    masked, small = outputs()[case]
    assert np.isfinite(small).all()
    assert relative_error(masked, small) > 1e-3


@pytest.mark.parametrize("case", FROZEN)
def test_what_cannot_be_followed_freezes_and_names_the_line(case):
    between, reason = FROZEN[case]
    width = jax.eval_shape(between, jax.ShapeDtypeStruct((2, 4, 4, 8), "float32")).shape[-1]
    structure = trace_structure(network(between, width), IMAGES)
    assert not structure.groups
    assert reason in structure.frozen["first.kernel[3]"]
    assert "test_operations.py:" in structure.frozen["first.kernel[3]"]

"""The networks of the zoo with attention, recurrence, gates or stacked layers.

The notes say what is special about a network's structure, for those who write the tracer's tests.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from .diffusion import DiffusionUNet
from .entry import Entry, Shapes
from .gated import GatedMLP, MixtureOfExperts
from .language_models import (
    GPT,
    Bert,
    ConfiguredAttention,
    FusedAttention,
    PartialRotary,
    ReadsHeadDim,
    RemembersHeadDim,
    SeparateAttention,
    TiedEmbeddings,
)
from .layered import RematTransformer, ScannedMLP, ScannedTransformer
from .llama import ComputedAngles, HalfTables, Llama, RepeatedHeads, WholeTables
from .pairs import ImageTextPair
from .recurrent import BidirectionalClassifier, RecurrentClassifier
from .routed import RoutedExperts
from .state_space import StateSpaceModel
from .swin import Swin
from .vision_transformers import MLPMixer, VisionTransformer
from .windowed import WindowedViT

Sizes = dict[str, Any]

VOCABULARY = 11


def _floats(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def _tokens(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.int32)


def _entry(
    name: str,
    network: Callable[..., nnx.Module],
    small: Sizes,
    full: Sizes,
    small_input: Shapes,
    full_input: Shapes,
    num_parameters: int | None = None,
    notes: str = "",
    widths: Mapping[str, int] | None = None,
    **both: Any,
) -> Entry:
    """An entry whose two networks differ in `small` and `full` sizes and agree in `both`.

    Both makers take other sizes by keyword: `entry.small(rngs, width=8)`.
    """

    def make(sizes: Sizes, rngs: nnx.Rngs, **changes: Any) -> nnx.Module:
        return network(rngs=rngs, **{**both, **sizes, **changes})

    return Entry(
        name,
        small=partial(make, small),
        full=partial(make, full),
        small_input=small_input,
        full_input=full_input,
        num_parameters=num_parameters,
        notes=notes,
        widths=widths,
    )


def _widths(in_each_block: Mapping[str, int], depth: int = 2, **others: int) -> dict[str, int]:
    """Groups and their channels: alike in each block, and others, whose dots are written as underscores."""
    outside = {name.replace("_", "."): width for name, width in others.items()}
    blocks = {f"blocks.{i}.{name}": width for i in range(depth) for name, width in in_each_block.items()}
    return {**outside, **blocks}


_recurrent = partial(
    _entry,
    small={"features": 5, "hidden": 8, "num_classes": 3},
    full={"features": 40, "hidden": 512, "num_classes": 35},
    small_input=_floats(2, 6, 5),
    full_input=_floats(2, 98, 40),
)

RECURRENT = [
    _recurrent(
        "gru",
        partial(RecurrentClassifier, nnx.GRUCell, num_layers=2),
        notes="three gates in one kernel, split; reads the last step",
    ),
    _recurrent(
        "lstm",
        partial(RecurrentClassifier, nnx.LSTMCell, num_layers=2),
        notes="a kernel for each gate, two carries; reads the last step",
    ),
    _recurrent(
        "optimized_lstm",
        partial(RecurrentClassifier, nnx.OptimizedLSTMCell, num_layers=2),
        notes="four gates in one kernel, split",
        read="mean",
    ),
    _recurrent(
        "simple_rnn",
        partial(RecurrentClassifier, nnx.SimpleCell, num_layers=1),
        notes="the carry is the output",
        read="mean",
    ),
    _recurrent(
        "bidirectional_gru",
        partial(BidirectionalClassifier, nnx.GRUCell),
        notes="a reversed sequence; two recurrent nets concatenated",
    ),
]

_images = partial(_entry, small_input=_floats(2, 8, 8, 3), full_input=_floats(2, 224, 224, 3))

VISION = [
    _images(
        "mlp_mixer_b16",
        MLPMixer,
        {
            "image": 8,
            "patch": 4,
            "width": 16,
            "depth": 2,
            "token_hidden": 12,
            "channel_hidden": 24,
            "num_classes": 5,
        },
        {
            "image": 224,
            "patch": 16,
            "width": 768,
            "depth": 12,
            "token_hidden": 384,
            "channel_hidden": 3072,
            "num_classes": 1000,
        },
        num_parameters=59_880_472,
        notes="dense layers along positions, through transposes; positions themselves cannot be cut",
    ),
    _images(
        "vit_s16",
        VisionTransformer,
        {"image": 8, "patch": 4, "width": 16, "depth": 2, "num_heads": 2, "num_classes": 5},
        {"image": 224, "patch": 16, "width": 384, "depth": 12, "num_heads": 6, "num_classes": 1000},
        num_parameters=22_050_664,
        notes="one projection reshaped to [N, T, 3, heads, d] and indexed; a class token broadcast and concatenated",
    ),
    _images(
        "deit_s16_distilled",
        VisionTransformer,
        {"image": 8, "patch": 4, "width": 16, "depth": 2, "num_heads": 2, "num_classes": 5},
        {"image": 224, "patch": 16, "width": 384, "depth": 12, "num_heads": 6, "num_classes": 1000},
        num_parameters=22_436_432,
        notes="as vit_s16 with a second token and a second head",
        distilled=True,
    ),
    _images(
        "swin_t",
        Swin,
        {
            "image": 8,
            "patch": 2,
            "width": 16,
            "depths": (2, 2),
            "num_heads": (2, 4),
            "window": 2,
            "num_classes": 5,
        },
        {
            "image": 224,
            "patch": 4,
            "width": 96,
            "depths": (2, 2, 6, 2),
            "num_heads": (3, 6, 12, 24),
            "window": 7,
            "num_classes": 1000,
        },
        num_parameters=28_288_354,
        notes="windows by reshape and transpose, shifts by roll, a table of biases per head gathered, "
        "strided slices concatenated along channels",
    ),
    _images(
        "windowed_vit",
        WindowedViT,
        {
            "image": 8,
            "patch": 2,
            "width": 16,
            "depth": 2,
            "num_heads": 2,
            "window": 2,
            "num_classes": 5,
        },
        {
            "image": 224,
            "patch": 16,
            "width": 768,
            "depth": 12,
            "num_heads": 12,
            "window": 7,
            "num_classes": 1000,
        },
        notes="windows, and then heads, merged into the batch axis",
        widths=_widths(
            {
                "attention.query.kernel:outer": 2,
                "attention.query.kernel:inner": 8,
                "attention.value.kernel": 8,
                "mlp.up.kernel": 64,
            },
            patches_kernel=16,
        ),
    ),
    _entry(
        "diffusion_unet",
        DiffusionUNet,
        {"channels": 3, "width": 16, "num_heads": 2, "num_groups": 4},
        {"channels": 3, "width": 128, "num_heads": 4, "num_groups": 32},
        _floats(2, 8, 8, 3),
        _floats(2, 32, 32, 3),
        notes="group norm over a concatenation; attention over positions of a map; nearest-neighbour upsampling",
    ),
]

_SMALL_GPT = {"vocabulary": VOCABULARY, "max_length": 8, "width": 16, "depth": 2, "num_heads": 2}
_GPT2 = {"vocabulary": 50_257, "max_length": 1024, "width": 768, "depth": 12, "num_heads": 12}

_decoder = partial(
    _entry, small=_SMALL_GPT, full=_GPT2, small_input=_tokens(2, 6), full_input=_tokens(1, 1024)
)

_SMALL_LLAMA = {
    "vocabulary": VOCABULARY,
    "max_length": 8,
    "width": 32,
    "hidden": 24,
    "depth": 2,
    "num_heads": 4,
    "num_kv_heads": 2,
}
_LLAMA_2_7B = {
    "vocabulary": 32_000,
    "max_length": 4096,
    "width": 4096,
    "hidden": 11_008,
    "depth": 32,
    "num_heads": 32,
    "num_kv_heads": 32,
}
_TINY_LLAMA = {
    "vocabulary": 32_000,
    "max_length": 2048,
    "width": 2048,
    "hidden": 5632,
    "depth": 22,
    "num_heads": 32,
    "num_kv_heads": 4,
}
_LLAMA_3_8B = {
    "vocabulary": 128_256,
    "max_length": 8192,
    "width": 4096,
    "hidden": 14_336,
    "depth": 32,
    "num_heads": 32,
    "num_kv_heads": 8,
}

_llama = partial(
    _entry, network=Llama, small=_SMALL_LLAMA, small_input=_tokens(2, 6), full_input=_tokens(1, 128)
)

LANGUAGE = [
    _decoder(
        "gpt_fused",
        GPT,
        num_parameters=124_439_808,
        notes="one projection split in three; token table tied to the logits; positions are never cut",
        attention=FusedAttention,
    ),
    _decoder(
        "gpt_separate",
        GPT,
        num_parameters=124_439_808,
        notes="three projections; token table tied to the logits",
        attention=SeparateAttention,
    ),
    _decoder(
        "remembers_head_dim",
        GPT,
        num_parameters=124_439_808,
        notes="attention keeps head_dim as a number: slim must name it, and succeed once it is told the new one",
        attention=RemembersHeadDim,
    ),
    _decoder(
        "partial_rotary",
        GPT,
        num_parameters=124_439_808,
        notes="a half of each head turns, by angles from iota, and stays; the places that are passed on may go",
        attention=PartialRotary,
        widths=_widths(
            {"attention.query.kernel": 4, "attention.value.kernel": 8, "mlp.up.kernel": 64},
            tokens_embedding=16,
        ),
    ),
    _decoder(
        "reads_head_dim",
        GPT,
        num_parameters=124_439_808,
        notes="head_dim is read from the kernel that mixes the heads: places of all three projections go together",
        attention=ReadsHeadDim,
        widths=_widths(
            {
                "attention.query.kernel:outer": 2,
                "attention.query.kernel:inner": 8,
                "mlp.up.kernel": 64,
            },
            tokens_embedding=16,
        ),
    ),
    _decoder(
        "configured_heads",
        GPT,
        num_parameters=124_439_808,
        notes="attention reads its sizes, and a quotient of them, from a configuration object",
        attention=ConfiguredAttention,
        widths=_widths(
            {
                "attention.query.kernel:outer": 2,
                "attention.query.kernel:inner": 8,
                "mlp.up.kernel": 64,
            },
            tokens_embedding=16,
        ),
    ),
    _entry(
        "bert",
        Bert,
        {
            "vocabulary": VOCABULARY,
            "max_length": 8,
            "width": 16,
            "depth": 2,
            "num_heads": 2,
            "num_classes": 3,
        },
        {
            "vocabulary": 30_522,
            "max_length": 512,
            "width": 768,
            "depth": 12,
            "num_heads": 12,
            "num_classes": 2,
        },
        _tokens(2, 6),
        _tokens(1, 512),
        num_parameters=109_483_778,
        notes="nnx.MultiHeadAttention with kernels [C, heads, d]; three tables added; norms after the sums",
    ),
    _llama(
        "llama_half_tables",
        full=_LLAMA_2_7B,
        num_parameters=6_738_415_616,
        notes="grouped queries; rotary buffers [T, d/2] shared by all layers tie pairs (i, i + d/2) of every head",
        rotary=HalfTables,
    ),
    _llama(
        "llama_whole_tables",
        full=_TINY_LLAMA,
        num_parameters=1_100_048_384,
        notes="as llama_half_tables with buffers [T, d] and the halves of a head swapped by concatenation",
        rotary=WholeTables,
    ),
    _llama(
        "llama_computed_angles",
        full=_LLAMA_3_8B,
        num_parameters=8_030_261_248,
        notes="angles from iota at every call: another d gives other angles, so only whole heads of queries and keys "
        "may go; dimensions of values are free",
        rotary=ComputedAngles,
    ),
    _llama(
        "llama_repeated_heads",
        full=_TINY_LLAMA,
        num_parameters=1_100_048_384,
        notes="heads of keys and values repeated by jnp.repeat: they go with the queries that read them",
        attention=RepeatedHeads,
        widths={
            **_widths({"attention.value.kernel": 8, "mlp.gate.kernel": 24}, tokens_embedding=32),
            "blocks.0.attention.query.kernel:inner": 4,
            "blocks.0.attention.query.kernel:outer": 2,
            "blocks.1.attention.query.kernel": 2,
        },
    ),
    _entry(
        "state_space",
        StateSpaceModel,
        {"vocabulary": VOCABULARY, "width": 16, "inner": 12, "state": 4, "rank": 3, "depth": 2},
        {"vocabulary": 50_280, "width": 768, "inner": 1536, "state": 16, "rank": 48, "depth": 24},
        _tokens(2, 6),
        _tokens(1, 128),
        notes="a state for each channel through a scan, its decay an exponential of parameters; steps, inputs and "
        "outputs of the state in one projection, split at sizes read from other arrays",
        widths=_widths(
            {"up.kernel": 12, "scan.select.kernel:0-2": 3, "scan.select.kernel:3-10": 4},
            tokens_embedding=16,
        ),
    ),
    _entry(
        "image_text_pair",
        ImageTextPair,
        {
            "image_widths": (8, 12),
            "vocabulary": VOCABULARY,
            "max_length": 8,
            "width": 16,
            "depth": 1,
            "num_heads": 2,
            "shared": 10,
        },
        {
            "image_widths": (64, 128, 256, 512),
            "vocabulary": 49_408,
            "max_length": 77,
            "width": 512,
            "depth": 12,
            "num_heads": 8,
            "shared": 512,
        },
        (_floats(2, 8, 8, 3), _tokens(2, 6)),
        (_floats(2, 224, 224, 3), _tokens(2, 77)),
        notes="two inputs, whose towers meet in one space of normalised embeddings",
        widths={
            "images.0.conv.kernel": 8,
            "images.1.conv.kernel": 12,
            "image_projection.kernel": 10,
            "texts.tokens.embedding": 16,
            "texts.blocks.0.attention.query.kernel:outer": 2,
            "texts.blocks.0.attention.query.kernel:inner": 8,
            "texts.blocks.0.attention.value.kernel": 8,
            "texts.blocks.0.mlp.up.kernel": 64,
        },
    ),
    _entry(
        "tied_embeddings",
        TiedEmbeddings,
        {"vocabulary": VOCABULARY, "width": 16, "depth": 2},
        {"vocabulary": 50_257, "width": 768, "depth": 12},
        _tokens(2, 6),
        _tokens(1, 1024),
        notes="one table read by rows and as the output kernel",
    ),
]

_features = partial(
    _entry,
    small={"features": 6, "width": 16, "hidden": 12, "depth": 2, "num_classes": 3},
    full={"features": 512, "width": 512, "hidden": 2048, "depth": 12, "num_classes": 1000},
    small_input=_floats(2, 6),
    full_input=_floats(2, 512),
)

LAYERED = [
    _features(
        "scanned_mlp",
        ScannedMLP,
        notes="kernels [L, c_in, c_out] as xs of a scan: hidden channels of all layers fall together",
    ),
    _decoder(
        "scanned_transformer",
        ScannedTransformer,
        notes="decoder blocks as xs of a scan, the residual stream as its carry",
    ),
    _decoder("remat_transformer", RematTransformer, notes="decoder blocks inside remat2"),
    _features("glu_mlp", GatedMLP, notes="gate and value in one kernel, split in halves"),
    _entry(
        "mixture_of_experts",
        MixtureOfExperts,
        {"features": 6, "width": 16, "hidden": 8, "depth": 2, "num_experts": 3, "num_classes": 3},
        {"features": 512, "width": 512, "hidden": 2048, "depth": 6, "num_experts": 8, "num_classes": 1000},
        _floats(2, 5, 6),
        _floats(2, 64, 512),
        notes="kernels [E, c_in, c_out]: hidden channels tied over experts, whole experts tied to the softmax gate",
    ),
    _entry(
        "routed_experts",
        MixtureOfExperts,
        {
            "experts": RoutedExperts,
            "features": 6,
            "width": 16,
            "hidden": 8,
            "depth": 2,
            "num_experts": 3,
            "num_classes": 3,
        },
        {
            "experts": RoutedExperts,
            "features": 512,
            "width": 512,
            "hidden": 2048,
            "depth": 6,
            "num_experts": 8,
            "num_classes": 1000,
        },
        _floats(2, 5, 6),
        _floats(2, 64, 512),
        notes="tokens scattered to places of experts and gathered again: experts are numbered, and stay",
        widths={"stem.kernel": 16, "layers.0.up": 8, "layers.1.up": 8},
    ),
]

ATTENTION: dict[str, Entry] = {entry.name: entry for entry in [*RECURRENT, *VISION, *LANGUAGE, *LAYERED]}

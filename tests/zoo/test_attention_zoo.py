"""The attention half of the zoo runs, has its published sizes, and follows the shapes of its arrays."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.extend import core

from .abstract import abstract, call
from .attention import ATTENTION, VOCABULARY
from .entry import Entry, Shapes
from .llama import ComputedAngles, HalfTables, WholeTables
from .swin import from_windows, relative_index, shift_mask, to_windows

# The outputs of classifiers; language models give logits for every token, the U-Net an image.
NUM_CLASSES = {
    "gru": 3,
    "lstm": 3,
    "optimized_lstm": 3,
    "simple_rnn": 3,
    "bidirectional_gru": 3,
    "mlp_mixer_b16": 5,
    "vit_s16": 5,
    "deit_s16_distilled": 5,
    "swin_t": 5,
    "windowed_vit": 5,
    "routed_experts": 3,
    "bert": 3,
    "scanned_mlp": 3,
    "glu_mlp": 3,
    "mixture_of_experts": 3,
}
every_network = pytest.mark.parametrize("entry", ATTENTION.values(), ids=ATTENTION)

# Other sizes for networks whose layers all follow their arrays. Flax's recurrent cells, GroupNorm and
# MultiHeadAttention remember widths, so recurrent nets, `diffusion_unet` and `bert` are not here.
NARROWER = {
    "mlp_mixer_b16": {"width": 8, "token_hidden": 6, "channel_hidden": 10},
    "vit_s16": {"width": 8},
    "deit_s16_distilled": {"width": 8},
    "swin_t": {"width": 8},
    "gpt_fused": {"width": 8},
    "gpt_separate": {"width": 8},
    "llama_half_tables": {"width": 16, "hidden": 10},
    "llama_whole_tables": {"width": 16, "hidden": 10},
    "llama_computed_angles": {"width": 16, "hidden": 10},
    "reads_head_dim": {"width": 8},
    "tied_embeddings": {"width": 8},
    "scanned_mlp": {"width": 8, "hidden": 10},
    "scanned_transformer": {"width": 8},
    "remat_transformer": {"width": 8},
    "glu_mlp": {"width": 8, "hidden": 10},
    "mixture_of_experts": {"width": 8, "hidden": 6, "num_experts": 2},
}

# What a network is in the zoo for, as it shows in its traced program.
STRUCTURES = {
    "gru": {"scan", "split"},
    "lstm": {"scan"},
    "optimized_lstm": {"scan", "split"},
    "simple_rnn": {"scan"},
    "bidirectional_gru": {"scan", "rev", "concatenate"},
    "mlp_mixer_b16": {"conv_general_dilated", "transpose", "erfc"},
    "vit_s16": {"conv_general_dilated", "concatenate", "slice", "squeeze"},
    "deit_s16_distilled": {"concatenate", "slice"},
    "swin_t": {"conv_general_dilated", "split", "slice", "concatenate", "gather", "select_n"},
    "diffusion_unet": {"conv_general_dilated", "concatenate", "broadcast_in_dim", "exp"},
    "gpt_fused": {"gather", "split", "iota", "select_n"},
    "gpt_separate": {"gather", "iota", "select_n"},
    "remembers_head_dim": {"gather", "reshape"},
    "partial_rotary": {"iota", "cos", "slice", "split", "concatenate"},
    "reads_head_dim": {"gather", "reshape"},
    "configured_heads": {"gather", "reshape"},
    "windowed_vit": {"conv_general_dilated", "transpose", "reshape"},
    "llama_repeated_heads": {"gather", "broadcast_in_dim", "concatenate"},
    "routed_experts": {"scatter-add", "gather", "argmax", "cumsum"},
    "state_space": {"scan", "exp", "split", "conv_general_dilated"},
    "image_text_pair": {"conv_general_dilated", "gather", "sqrt", "dot_general"},
    "bert": {"gather", "slice", "select_n"},
    "llama_half_tables": {"gather", "split", "concatenate", "slice"},
    "llama_whole_tables": {"gather", "split", "concatenate", "neg", "slice"},
    "llama_computed_angles": {"gather", "split", "concatenate", "iota", "cos", "sin"},
    "tied_embeddings": {"gather", "transpose"},
    "scanned_mlp": {"scan"},
    "scanned_transformer": {"scan", "gather"},
    "remat_transformer": {"remat2", "gather"},
    "glu_mlp": {"split", "logistic"},
    "mixture_of_experts": {"custom_jvp_call", "exp"},
}

WITH_DROPOUT = ["vit_s16", "gpt_fused", "scanned_transformer", "remat_transformer"]


def in_evaluation_mode(entry: Entry, **sizes: int) -> tuple[nnx.GraphDef, nnx.State]:
    """The small network, split, with shapes in place of arrays."""
    model = abstract(entry.small, **sizes)
    model.eval()
    return nnx.split(model)


def output_shape(name: str, entry: Entry) -> tuple[int, ...]:
    if name in NUM_CLASSES:
        return entry.small_input.shape[0], NUM_CLASSES[name]
    if name == "image_text_pair":
        return (2,)
    return entry.small_input.shape if name == "diffusion_unet" else (*entry.small_input.shape, VOCABULARY)


def trace(graphdef: nnx.GraphDef, state: nnx.State, x: Shapes) -> core.ClosedJaxpr:
    return jax.make_jaxpr(lambda state, x: call(nnx.merge(graphdef, state), x))(state, x)


def equations(jaxpr: core.Jaxpr) -> Iterator[core.JaxprEqn]:
    """Every equation, those of nested programs too."""
    for eqn in jaxpr.eqns:
        yield eqn
        for inner in jax.tree.leaves(list(eqn.params.values()), is_leaf=is_program):
            if is_program(inner):
                yield from equations(inner.jaxpr if isinstance(inner, core.ClosedJaxpr) else inner)


def is_program(value: object) -> bool:
    return isinstance(value, core.Jaxpr | core.ClosedJaxpr)


def primitives(traced: core.ClosedJaxpr) -> set[str]:
    return {eqn.primitive.name for eqn in equations(traced.jaxpr)}


@functools.cache
def small(name: str) -> tuple[nnx.GraphDef, nnx.State]:
    """The small network in evaluation mode, split; several tests read it."""
    return in_evaluation_mode(ATTENTION[name])


@functools.cache
def program(name: str) -> core.ClosedJaxpr:
    """What the small network computes in evaluation mode."""
    return trace(*small(name), ATTENTION[name].small_input)


@every_network
def test_small_networks_give_what_they_are_for(entry: Entry) -> None:
    """That outputs are finite and depend on the input is seen where `test_zoo_exactness` runs every network."""
    graphdef, state = small(entry.name)
    y = jax.eval_shape(lambda state, x: call(nnx.merge(graphdef, state), x), state, entry.small_input)
    assert (y.shape, y.dtype) == (output_shape(entry.name, entry), jnp.float32)


@pytest.mark.parametrize("name", NARROWER)
def test_narrower_arrays_are_all_that_a_narrower_network_needs(name: str) -> None:
    entry = ATTENTION[name]
    narrow, state = in_evaluation_mode(entry, **NARROWER[name])
    wide, wide_state = small(name)
    assert jax.tree.map(jnp.shape, state) != jax.tree.map(jnp.shape, wide_state)
    assert str(trace(wide, state, entry.small_input)) == str(trace(narrow, state, entry.small_input))


def test_a_remembered_head_dimension_fails_on_narrower_arrays() -> None:
    entry = ATTENTION["remembers_head_dim"]
    wide, _ = small(entry.name)
    _, state = in_evaluation_mode(entry, width=8)
    with pytest.raises(TypeError, match="reshape"):
        trace(wide, state, entry.small_input)


def test_every_network_says_what_it_is_for() -> None:
    assert STRUCTURES.keys() == ATTENTION.keys()
    assert all(entry.notes for entry in ATTENTION.values())


@pytest.mark.parametrize("name", STRUCTURES)
def test_networks_hold_the_structure_they_are_for(name: str) -> None:
    found = primitives(program(name))
    assert found >= STRUCTURES[name]
    assert "random_bits" not in found, "evaluation mode draws nothing"


@pytest.mark.parametrize("name", WITH_DROPOUT)
def test_training_mode_draws_dropout(name: str) -> None:
    model = abstract(ATTENTION[name].small)
    model.train()
    assert "random_bits" in primitives(trace(*nnx.split(model), ATTENTION[name].small_input))


@pytest.mark.parametrize(
    ("name", "num_consts", "num_carry"), [("gru", 3, 1), ("lstm", 12, 2), ("scanned_mlp", 0, 1)]
)
def test_recurrent_weights_are_constants_of_a_scan_and_stacked_ones_its_slices(
    name: str, num_consts: int, num_carry: int
) -> None:
    scans = [eqn.params for eqn in equations(program(name).jaxpr) if eqn.primitive.name == "scan"]
    assert {(scan["num_consts"], scan["num_carry"]) for scan in scans} == {(num_consts, num_carry)}


def test_three_rotary_embeddings_agree() -> None:
    x = np.random.default_rng(0).normal(size=(1, 5, 2, 4)).astype(np.float32)
    half, whole, computed = (
        jax.jit(rotary(8, 4).__call__)(x) for rotary in (HalfTables, WholeTables, ComputedAngles)
    )
    np.testing.assert_allclose(half, whole, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(half, computed, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(half[:, 0], x[:, 0])
    np.testing.assert_allclose(np.linalg.norm(half, axis=-1), np.linalg.norm(x, axis=-1), rtol=1e-5)
    assert np.abs(half[:, 1:] - x[:, 1:]).min() > 1e-4, "later positions turn"


def test_windows_come_back_and_shifted_ones_see_only_their_neighbours() -> None:
    x = np.arange(2 * 4 * 4 * 3).reshape(2, 4, 4, 3)
    np.testing.assert_array_equal(to_windows(x, 2)[0], x[0, :2, :2].reshape(4, 3))
    np.testing.assert_array_equal(from_windows(to_windows(x, 2), 2, 4, 4), x)
    first, right, below, corner = shift_mask(4, 4, 2, 1)
    assert first.all()
    np.testing.assert_array_equal(right[0], [True, False, True, False])
    np.testing.assert_array_equal(below[0], [True, True, False, False])
    np.testing.assert_array_equal(corner, np.eye(4, dtype=bool))


def test_relative_positions_by_hand() -> None:
    # Offsets (rows, columns) from -1 to 1 are numbered row by row; (0, 0) is 4.
    np.testing.assert_array_equal(relative_index(2), [[4, 3, 1, 0], [5, 4, 2, 1], [7, 6, 4, 3], [8, 7, 5, 4]])

"""Every network of the zoo prunes with no hints, and what is left computes what it must."""

from __future__ import annotations

import zlib
from collections.abc import Callable

import jax
import numpy as np
import pytest
from flax import nnx
from zoo import ZOO
from zoo_cases import (
    FRACTIONS,
    QUICK,
    Comparison,
    attributes_of,
    case_of,
    compare,
    fraction_of,
    in_double,
    known_structure,
    quick_comparison,
    scores_of,
)

from jaxprune.nets.cost import count_macs, count_parameters
from jaxprune.pruning.budgets import budget_counts
from jaxprune.pruning.masking import mask
from jaxprune.pruning.planning import plan, select
from jaxprune.pruning.slimming import slim
from jaxprune.structure.model_state import merge_model, split_model, take_apart
from jaxprune.structure.verification import find_misfit

FACTORED = (
    "resnext50",
    "regnet_x",
    "regnet_y",
    "unet_group_norm",
    "diffusion_unet",
    "vit_s16",
    "deit_s16_distilled",
    "swin_t",
    "gpt_fused",
    "gpt_separate",
    "remembers_head_dim",
    "bert",
    "llama_half_tables",
    "scanned_transformer",
    "remat_transformer",
    "mixture_of_experts",
)
"""Networks with two groups on the same indices: whole heads, groups of a norm or of a convolution; and places."""


def arrays_of(model: nnx.Module) -> dict:
    return jax.device_get(split_model(model)[1])


def check(name: str, fraction: float, compare: Callable[[], Comparison]) -> None:
    """The slim network equals the oracle, costs what was foretold, and the caller's network is as it was."""
    model, structure, inputs = case_of(name)
    graphdef, before = split_model(model)[0], arrays_of(model)
    comparison = compare()
    assert comparison.is_exact, f"float32 {comparison.error:.1e}, float64 {comparison.double_error}"
    if fraction >= 0.5:
        assert comparison.is_sensitive  # or nothing was compared
    widths = comparison.plan.kept_counts
    assert widths != structure.widths
    assert count_parameters(comparison.smaller) == structure.count_parameters(widths)
    assert count_macs(comparison.smaller, inputs) == structure.count_macs(widths)
    with known_structure(structure):
        masked = arrays_of(
            mask(model, comparison.plan)
        )  # and if `comparison.is_plain` it equals the slim one
    for path, array in arrays_of(model).items():
        np.testing.assert_array_equal(array, before[path])
        np.testing.assert_array_equal(masked[path], comparison.masked[path])
    assert split_model(model)[0] == graphdef


@pytest.mark.parametrize("name", ZOO)
def test_slim_equals_the_oracle(name):
    check(name, fraction_of(name), lambda: quick_comparison(name))


@pytest.mark.parametrize("name", ZOO)
def test_the_network_fits_at_the_other_fractions(name):
    model, structure, _ = case_of(name)
    for fraction in FRACTIONS:
        if fraction != fraction_of(name):
            counts = budget_counts(structure, kept_fraction=fraction)
            kept = dict(select(scores_of(structure, 0), counts))
            indices = {
                group: np.asarray(channels)
                for group, channels in kept.items()
                if len(channels) < structure.widths[group]
            }
            assert (
                find_misfit(take_apart(model), structure, indices, attributes_of(structure, kept)) is None
            ), fraction


@pytest.mark.parametrize("name", [name for name, entry in ZOO.items() if entry.widths])
def test_groups_are_those_that_the_zoo_expects(name):
    assert case_of(name).structure.widths == ZOO[name].widths


def slim_random_plan(name: str, rng: np.random.Generator) -> None:
    """What `plan` makes of random scores under a random budget is what `slim` does."""
    model, structure, inputs = case_of(name)
    scores = {group: rng.random(width) for group, width in structure.widths.items()}
    budget = {str(rng.choice(["kept_fraction", "params_fraction", "macs_fraction"])): rng.uniform(0.2, 0.9)}
    scope, factor = str(rng.choice(["group", "global"])), str(rng.choice(["inner", "outer", "both"]))
    try:
        chosen = plan(model, scores, inputs, **budget, scope=scope, factor=factor)
    except ValueError as error:
        assert "cannot be met" in str(error)  # by less than a channel of each group
        return
    smaller = slim(model, chosen, attributes=attributes_of(structure, chosen.kept))
    assert count_parameters(smaller) == structure.count_parameters(chosen.kept_counts)


@pytest.mark.filterwarnings("ignore:.*")
@pytest.mark.parametrize("name", ZOO)
def test_what_plan_offers_slim_does(name):
    slim_random_plan(name, np.random.default_rng(zlib.crc32(name.encode())))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*")
@pytest.mark.parametrize("name", ZOO)
def test_what_plan_offers_slim_does_many_times(name):
    for seed in range(15):
        slim_random_plan(name, np.random.default_rng(seed))


@pytest.mark.parametrize("name", ["resnext50", "unet_group_norm", "bert"])
def test_both_of_two_groups_on_the_same_indices_are_exact(name):
    check(name, 0.5, lambda: compare(name, QUICK, kept_fraction=0.5, factor="both"))


@pytest.mark.slow
@pytest.mark.parametrize("fraction", FRACTIONS)
@pytest.mark.parametrize("name", ZOO)
def test_slim_equals_the_oracle_at_every_fraction(name, fraction):
    check(name, fraction, lambda: compare(name, kept_fraction=fraction))


@pytest.mark.slow
@pytest.mark.parametrize("factor", ["outer", "both"])
@pytest.mark.parametrize("fraction", FRACTIONS)
@pytest.mark.parametrize("name", FACTORED)
def test_factors_of_the_same_indices_are_exact_at_every_fraction(name, fraction, factor):
    check(name, fraction, lambda: compare(name, kept_fraction=fraction, factor=factor))


@pytest.mark.parametrize("name", ["bidirectional_gru", "lstm", "gpt_fused", "scanned_transformer"])
def test_in_float64_nothing_is_rounded_to_float32(name):
    """Or what is asked for where float32 does not tell would not tell either."""
    model, _, inputs = case_of(name)
    with jax.enable_x64(True):
        graphdef, *arguments = in_double(*split_model(model, "evaluation"), inputs)
        program = jax.make_jaxpr(lambda flat, rest, x: merge_model(graphdef, flat, rest)(x))(*arguments)
    assert "f64[" in str(program) and "f32[" not in str(program)


@pytest.mark.parametrize("name", ["resnet56_padded", "mobilenet_v2", "densenet121", "shufflenet_v2"])
def test_without_norms_over_channels_masking_is_all(name):
    assert quick_comparison(name).is_plain


@pytest.mark.parametrize("name", ["convnext_t", "vit_s16", "mixture_of_experts"])
def test_norms_and_softmaxes_over_channels_are_more_than_masking(name):
    assert not quick_comparison(name).is_plain

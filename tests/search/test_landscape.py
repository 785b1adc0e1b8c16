"""Values of channels, fitted to fine-tuned plans."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxprune.search.landscape import (
    Bank,
    Landscape,
    channel_features,
    fit_landscape,
    held_out_correlation,
)

WIDTHS, COUNTS = {"conv": 5, "dense": 4}, {"conv": 2, "dense": 3}
TINY = {"shared_ridge": 1e-8, "own_ridge": 1e-8}


def bank_of(is_kept: np.ndarray, accuracies: Any) -> Bank:
    return Bank(WIDTHS, COUNTS, is_kept, np.asarray(accuracies, float))


def draw_plans(rng: np.random.Generator, num_bases: int, num_plans: int) -> np.ndarray:
    """[B, M, sum C] random plans of `COUNTS`."""
    ranks = [
        np.argsort(rng.random((num_bases, num_plans, width)), axis=2) < COUNTS[group]
        for group, width in WIDTHS.items()
    ]
    return np.concatenate(ranks, axis=2)


def draw_features(rng: np.random.Generator, num_bases: int, num_features: int = 2) -> dict[str, np.ndarray]:
    scores = {group: rng.random((num_features, num_bases, width)) for group, width in WIDTHS.items()}
    return channel_features(scores)


def linear(is_kept: np.ndarray, worth: np.ndarray) -> np.ndarray:
    """[B, M] accuracies if every channel is worth what [B, sum C] `worth` says."""
    return 50.0 + np.einsum("bmc,bc->bm", is_kept, worth)


class TestFeatures:
    def test_by_hand(self) -> None:
        found = channel_features({"conv": [[[1.0, -1e3, 1e6]]], "dense": [[[0.0, 0.0]]]})
        scale = (1 + 1e3 + 1e6) / 3e3
        logs = np.log([1 + scale, 1e3 + scale, 1e6 + scale])
        np.testing.assert_allclose(
            found["conv"][0, :, 0], (logs - logs.mean()) / (logs.std() + 1e-6), rtol=1e-12
        )
        np.testing.assert_array_equal(found["dense"], np.zeros((1, 2, 1)))

    def test_a_function_that_is_not_finite_on_one_base_is_left_out_of_all_groups(self) -> None:
        scores = {"conv": np.ones((3, 2, 5)), "dense": np.ones((3, 2, 4))}
        scores["conv"][0, 1, 2] = np.nan
        scores["dense"][2, 0, 0] = np.inf
        assert {group: array.shape for group, array in channel_features(scores).items()} == {
            "conv": (2, 5, 1),
            "dense": (2, 4, 1),
        }

    def test_groups_of_other_functions_are_refused(self) -> None:
        with pytest.raises(ValueError, match=r"need scores \[F, B, C\] of equal F and B in all groups, got "):
            channel_features({"conv": np.ones((3, 2, 5)), "dense": np.ones((2, 2, 4))})


class TestByHand:
    PLANS = np.array([[[1, 1, 0], [1, 0, 1], [0, 1, 1]] * 2], bool)

    def bank(self, accuracies: list[list[float]]) -> Bank:
        plans = np.repeat(self.PLANS, len(accuracies), axis=0)
        return Bank({"conv": 3}, {"conv": 2}, plans, np.array(accuracies))

    def test_channels_worth_1_2_and_6_are_found(self) -> None:
        """Two of three are kept, so that only differences can be seen: the values are those around their mean of 3."""
        accuracies = [[3.0, 7.0, 8.0] * 2]
        none = {"conv": np.zeros((1, 3, 0))}
        landscape = fit_landscape(self.bank(accuracies), none, **TINY)
        np.testing.assert_allclose(landscape.values, [[-2.0, -1.0, 3.0]], atol=1e-6)
        np.testing.assert_allclose(landscape.offsets, [6.0], atol=1e-6)
        np.testing.assert_allclose(
            landscape.predict(self.PLANS.swapaxes(0, 1))[:, 0], accuracies[0], atol=1e-6
        )

    def test_a_ridge_shrinks_what_each_channel_has_of_its_own(self) -> None:
        """Centred bits have X'X = 2 (1 - 1/3) I - ..., which is 2 for values of sum 0: a ridge of 2 halves them."""
        none = {"conv": np.zeros((1, 3, 0))}
        landscape = fit_landscape(self.bank([[3.0, 7.0, 8.0] * 2]), none, own_ridge=2.0)
        np.testing.assert_allclose(landscape.values, [[-1.0, -0.5, 1.5]])

    def test_weights_of_features_are_shared_by_bases(self) -> None:
        """On base 1 all plans are as good, but the two bases together see half of the feature's worth everywhere."""
        table = np.repeat([[[-2.0], [-1.0], [3.0]]], 2, axis=0)
        bank = self.bank([[3.0, 7.0, 8.0] * 2, [6.0] * 6])
        landscape = fit_landscape(bank, {"conv": table}, shared_ridge=1e-8, own_ridge=1e8)
        np.testing.assert_allclose(landscape.values, [[-1.0, -0.5, 1.5]] * 2, rtol=1e-5)


class TestProperties:
    @given(st.integers(0, 2**32 - 1), st.integers(1, 3))
    def test_a_linear_truth_is_predicted_for_plans_that_are_held_out(self, seed: int, num_bases: int) -> None:
        rng = np.random.default_rng(seed)
        plans, worth = draw_plans(rng, num_bases, 60), rng.normal(size=(num_bases, 9))
        found = held_out_correlation(
            bank_of(plans, linear(plans, worth)), draw_features(rng, num_bases), **TINY
        )
        assert found == pytest.approx(1.0, abs=1e-6)

    @given(st.integers(0, 2**32 - 1))
    def test_reordering_channels_reorders_values(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        plans, accuracies, features = draw_plans(rng, 2, 12), rng.normal(size=(2, 12)), draw_features(rng, 2)
        orders = {group: rng.permutation(width) for group, width in WIDTHS.items()}
        order = np.concatenate([orders["conv"], 5 + orders["dense"]])
        moved = {group: array[:, orders[group]] for group, array in features.items()}
        landscape = fit_landscape(bank_of(plans, accuracies), features)
        other = fit_landscape(bank_of(plans[..., order], accuracies), moved)
        np.testing.assert_allclose(other.values, landscape.values[:, order], atol=1e-12)
        np.testing.assert_allclose(other.offsets, landscape.offsets, atol=1e-12)

    @given(st.integers(0, 2**32 - 1))
    def test_equal_bases_have_equal_values(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        plans, accuracies, features = draw_plans(rng, 2, 12), rng.normal(size=(2, 12)), draw_features(rng, 2)
        twice = {group: array[[0, 1, 0]] for group, array in features.items()}
        landscape = fit_landscape(bank_of(plans[[0, 1, 0]], accuracies[[0, 1, 0]]), twice)
        np.testing.assert_allclose(landscape.values[0], landscape.values[2], atol=1e-12)
        assert landscape.offsets[0] == pytest.approx(landscape.offsets[2])

    @given(st.integers(0, 2**32 - 1))
    def test_what_is_added_to_all_accuracies_of_a_base_is_added_to_its_offset(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        plans, accuracies, features = draw_plans(rng, 2, 12), rng.normal(size=(2, 12)), draw_features(rng, 2)
        landscape = fit_landscape(bank_of(plans, accuracies), features)
        other = fit_landscape(bank_of(plans, accuracies + [[7.0], [-3.0]]), features)
        np.testing.assert_allclose(other.offsets - landscape.offsets, [7.0, -3.0], atol=1e-12)
        np.testing.assert_allclose(other.values, landscape.values, atol=1e-12)

    def test_the_fit_minimises_both_penalised_sums_of_squares(self) -> None:
        """Against normal equations, written out."""
        rng = np.random.default_rng(0)
        plans, accuracies, features = draw_plans(rng, 3, 12), rng.normal(size=(3, 12)), draw_features(rng, 3)
        landscape = fit_landscape(bank_of(plans, accuracies), features)
        means = np.concatenate(
            [plans[..., :5] @ features["conv"] / 2, plans[..., 5:] @ features["dense"] / 3], axis=2
        )
        x = (means - means.mean(1, keepdims=True)).reshape(36, 4)
        y = (accuracies - accuracies.mean(1, keepdims=True)).reshape(36)
        w = np.linalg.solve(x.T @ x + 100 * np.eye(4), x.T @ y)
        for base in range(3):
            prior = np.concatenate([features["conv"][base] @ w[:2] / 2, features["dense"][base] @ w[2:] / 3])
            bits = plans[base] - plans[base].mean(0)
            residual = y.reshape(3, 12)[base] - bits @ prior
            own = np.linalg.solve(bits.T @ bits + 30 * np.eye(9), bits.T @ residual)
            np.testing.assert_allclose(landscape.values[base], prior + own, atol=1e-12)
            predicted = landscape.predict(np.repeat(plans[base][:, None], 3, axis=1))[:, base]
            np.testing.assert_allclose(predicted, accuracies[base].mean() + bits @ (prior + own), atol=1e-12)


class TestHeldOutCorrelation:
    def test_chance_correlates_with_nothing(self) -> None:
        rng = np.random.default_rng(0)
        plans, accuracies = draw_plans(rng, 40, 30), rng.normal(size=(40, 30))
        found = held_out_correlation(bank_of(plans, accuracies), draw_features(rng, 40))
        assert abs(found) < 0.1

    def test_equal_accuracies_count_zero(self) -> None:
        """Base 0 is linear and base 1 constant: the mean is one half."""
        rng = np.random.default_rng(0)
        plans = draw_plans(rng, 2, 60)
        worth = np.stack([rng.normal(size=9), np.zeros(9)])
        none = {group: np.zeros((2, width, 0)) for group, width in WIDTHS.items()}
        found = held_out_correlation(bank_of(plans, linear(plans, worth)), none, **TINY)
        assert found == pytest.approx(0.5, abs=1e-6)

    def test_too_few_plans_are_refused(self) -> None:
        rng = np.random.default_rng(0)
        features = draw_features(rng, 2)
        bank = bank_of(draw_plans(rng, 2, 8), rng.normal(size=(2, 8)))
        held_out_correlation(bank, features)
        with pytest.raises(ValueError, match="at least 8 plans on at least 1 base, got 7 on 2"):
            held_out_correlation(bank.part(plans=slice(7)), features)


def test_values_of_a_network_wider_than_there_are_plans_are_finite() -> None:
    rng = np.random.default_rng(0)
    plans = np.argsort(rng.random((2, 10, 300)), axis=2) < 100
    scores = {"conv": rng.random((3, 2, 300))}
    bank = Bank({"conv": 300}, {"conv": 100}, plans, rng.normal(size=(2, 10)))
    landscape = fit_landscape(bank, channel_features(scores))
    assert np.isfinite(landscape.values).all()
    assert landscape.values.shape == (2, 300)


def fit_to(features: dict[str, np.ndarray], own_ridge: float = 1.0, **bank: Any) -> None:
    fit_landscape(Bank(**bank), features, own_ridge=own_ridge)


def _without_accuracy(inputs: dict[str, Any]) -> None:
    inputs["accuracies"][1, 3] = np.nan


def _of_another_size(inputs: dict[str, Any]) -> None:
    inputs["is_kept"][0, 2, 0] ^= True


WRONG: Mapping[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "few plans": (
        lambda inputs: inputs.update(
            is_kept=inputs["is_kept"][:, :4], accuracies=inputs["accuracies"][:, :4]
        ),
        "at least 5 plans on at least 1 base, got 4 on 2",
    ),
    "no bases": (
        lambda inputs: inputs.update(is_kept=inputs["is_kept"][:0], accuracies=inputs["accuracies"][:0]),
        "at least 5 plans on at least 1 base, got 6 on 0",
    ),
    "other plans": (
        lambda inputs: inputs.update(accuracies=inputs["accuracies"][:, :5]),
        r"got bool \[2, 6, 9\] and \[2, 5\]",
    ),
    "indices": (lambda inputs: inputs.update(is_kept=inputs["is_kept"].astype(int)), "boolean plans"),
    "missing channels": (
        lambda inputs: inputs.update(is_kept=inputs["is_kept"][..., :8]),
        "got 8 channels and counts",
    ),
    "groups in another order": (
        lambda inputs: inputs.update(counts={"dense": 3, "conv": 2}),
        "in the same order",
    ),
    "NaN": (_without_accuracy, "need to be finite, got nan for base 1, plan 3"),
    "another schedule": (_of_another_size, r"got \[\d, 3\] in plan 2 of base 0"),
    "a group without features": (
        lambda inputs: inputs["features"].pop("dense"),
        r"finite features \[bases, channels, F\] of equal F in all groups, .*'dense': None",
    ),
    "features that are not finite": (
        lambda inputs: inputs["features"].update(conv=np.full((2, 5, 2), np.nan)),
        "finite features",
    ),
    "features of one base": (
        lambda inputs: inputs["features"].update(conv=inputs["features"]["conv"][:1]),
        r"got .*\(1, 5, 2\)",
    ),
    "no penalty": (lambda inputs: inputs.update(own_ridge=0.0), "need to be > 0, got .*own_ridge=0.0"),
}


@pytest.mark.parametrize(("change", "message"), WRONG.values(), ids=WRONG)
def test_what_does_not_fit_is_refused(change: Callable[[dict[str, Any]], object], message: str) -> None:
    rng = np.random.default_rng(0)
    inputs: dict[str, Any] = {
        "is_kept": draw_plans(rng, 2, 6),
        "accuracies": rng.normal(size=(2, 6)),
        "features": draw_features(rng, 2),
        "widths": WIDTHS,
        "counts": COUNTS,
    }
    fit_to(**inputs)
    change(inputs)
    with pytest.raises(ValueError, match=message):
        fit_to(**inputs)


def test_predicting_for_another_number_of_channels_is_refused() -> None:
    landscape = Landscape({"conv": 2}, np.zeros(1), np.zeros((1, 2)))
    with pytest.raises(
        ValueError, match=r"\[..., 1 bases, 2 channels\], got \[4, 1, 3\]. Join the groups conv"
    ):
        landscape.predict(np.zeros((4, 1, 3), bool))

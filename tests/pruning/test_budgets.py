"""Budgets: what is asked is met as nearly as steps of channels allow, and what cannot be met is said."""

import itertools
import warnings

import jax
import numpy as np
import pytest
from flax import nnx
from pruned_nets import IMAGES, Net, flat, linear, plain, residual, scores_of

from jaxprune.nets.cost import count_macs, count_parameters
from jaxprune.nets.factories import find_network, without_weights
from jaxprune.pruning import latency
from jaxprune.pruning.budget_records import Budget
from jaxprune.pruning.budgets import budget_counts, choose_counts
from jaxprune.pruning.planning import plan
from jaxprune.pruning.repair import nearest_counts, ranked_counts, rounded_counts
from jaxprune.pruning.scopes import Room, RoomLimits, rooms_of, values_by_group
from jaxprune.pruning.slimming import slim
from jaxprune.structure.model_state import merge_model, split_model
from jaxprune.structure.tracing import trace_structure

STRUCTURE = trace_structure(plain(), IMAGES)  # conv1 4, conv2 6, dense 5
SCORES = scores_of(STRUCTURE)


def wide():
    """An encoder and a decoder of dense layers, 24-16-32 and 40-20 wide."""
    widths = {"encoder1": 24, "encoder2": 16, "encoder3": 32, "decoder1": 40, "decoder2": 20}
    inputs = (64, *list(widths.values())[:-1])
    layers = {
        name: linear(a, b, i) for i, (a, (name, b)) in enumerate(zip(inputs, widths.items(), strict=True))
    }
    layers["head"] = linear(20, 3, 9)

    def forward(net, x):
        x = flat(x)
        for name in widths:
            x = nnx.relu(getattr(net, name)(x))
        return net.head(x)

    return Net(layers, forward)


WIDE = trace_structure(wide(), IMAGES)
ENCODER = [f"encoder{number}.kernel" for number in (1, 2, 3)]
DECODER = [f"decoder{number}.kernel" for number in (1, 2)]


@pytest.fixture(scope="module")
def resnet56():
    make = lambda rngs: find_network("resnet56", image_shape=(32, 32, 3), num_classes=10)  # noqa: E731
    return trace_structure(without_weights(make), jax.ShapeDtypeStruct((1, 32, 32, 3), "float32"))


class TestMultiples:
    def test_rounding_alone_would_miss_what_repair_meets_by_hand(self):
        """Four groups of 16 at 0.7: 11.2 channels are nearest to 8, and half of all is not 0.7."""
        rooms = {name: Room(16, (8, 16), False) for name in "abcd"}
        assert nearest_counts(rooms, 0.7, 45) == {"a": 16, "b": 8, "c": 8, "d": 8}
        assert sum(nearest_counts(rooms, 0.7, 64).values()) == 64
        assert nearest_counts(rooms, 0.8, 51) == {"a": 8, "b": 8, "c": 16, "d": 16}

    def test_what_cannot_be_met_is_none(self):
        rooms = {"a": Room(16, (8, 16), False)}
        assert rounded_counts(rooms, 0.5, lambda counts: counts["a"] / 7) is None
        assert ranked_counts(rooms, {"a": np.arange(16.0)}, lambda counts: counts["a"] / 7) is None

    def test_narrow_groups_that_stay_whole_leave_less_to_others(self):
        rooms = {"narrow": Room(4, (4,), False), "a": Room(16, (8, 16), False), "b": Room(16, (8, 16), False)}
        load = lambda counts: sum(counts.values()) / 20  # noqa: E731
        assert rounded_counts(rooms, 0.55, load) == {"narrow": 4, "a": 8, "b": 8}

    @pytest.mark.parametrize("scope", ["group", "global"])
    @pytest.mark.parametrize("budget", ["macs_fraction", "params_fraction"])
    @pytest.mark.parametrize("fraction", [0.75, 0.5, 0.25])
    def test_counts_are_within_a_step_of_the_closest_by_exhaustive_search(self, scope, budget, fraction):
        size_of = WIDE.count_macs if budget == "macs_fraction" else WIDE.count_parameters
        limit = fraction * size_of()
        allowed = [range(8, width + 1, 8) for width in WIDE.widths.values() if width % 8 == 0]
        allowed.append((8, 16, 20) if scope == "global" else (8, 16))
        sizes = [
            size_of(dict(zip(WIDE.widths, counts, strict=True))) for counts in itertools.product(*allowed)
        ]
        closest = max(size for size in sizes if size <= limit)
        counts = budget_counts(WIDE, **{budget: fraction}, multiple_of=8, scope=scope, scores=scores_of(WIDE))
        steps = [
            abs(size_of({**counts, name: steps[0]}) - size_of({**counts, name: steps[1]}))
            for name, steps in zip(WIDE.widths, allowed, strict=True)
        ]
        assert size_of(counts) <= limit
        assert closest - size_of(counts) < min(steps)
        assert all(counts[name] in steps for name, steps in zip(WIDE.widths, allowed, strict=True))

    @pytest.mark.parametrize("multiple_of", [1, 8])
    @pytest.mark.parametrize("fraction", [0.75, 0.5, 0.25])
    def test_a_deep_network_meets_costs_within_a_percent(self, resnet56, multiple_of, fraction):
        for budget in ("macs_fraction", "params_fraction"):
            choice = choose_counts(resnet56, **{budget: fraction}, multiple_of=multiple_of)
            assert fraction - 0.01 < choice.budget.met <= fraction
            assert all(count % multiple_of == 0 for count in choice.counts.values())
            fractions = [count / resnet56.widths[name] for name, count in choice.counts.items()]
            assert (
                multiple_of == 8 or max(fractions) - min(fractions) < 2 / 16
            )  # about the same of every group

    def test_a_few_more_channels_meet_what_one_fraction_misses(self):
        """LeNet-5 at half its multiply-adds: the largest fraction of all three groups that fits leaves .4717."""
        make = lambda rngs: find_network("lenet5", image_shape=(28, 28, 1), num_classes=10)  # noqa: E731
        structure = trace_structure(without_weights(make), jax.ShapeDtypeStruct((1, 28, 28, 1), "float32"))
        for fraction in (0.75, 0.5, 0.25):
            for budget in ("macs_fraction", "params_fraction"):
                assert fraction - 0.01 < choose_counts(structure, **{budget: fraction}).budget.met <= fraction

    def test_groups_that_are_too_narrow_are_named(self):
        with pytest.warns(
            UserWarning, match=r"multiple_of=20 leaves groups whole .*: encoder2\.kernel, decoder2"
        ):
            chosen = plan(wide(), scores_of(WIDE), IMAGES, macs_fraction=0.8, multiple_of=20)
        assert chosen.kept_counts["encoder2.kernel"] == 16

    def test_a_sum_that_rounding_misses_is_told(self):
        with pytest.warns(
            UserWarning, match=r"kept_fraction=0\.3 is met with 0\.4, because groups keep at least"
        ):
            plan(plain(), SCORES, IMAGES, kept_fraction=0.3, multiple_of=2)

    def test_what_prunes_nothing_is_told(self):
        with pytest.warns(
            UserWarning, match=r"kept_fraction=1\.0 prunes nothing; 1\.0 is the fraction that stays"
        ):
            plan(plain(), SCORES, IMAGES, kept_fraction=1)
        with pytest.warns(
            UserWarning, match=r"prunes nothing; multiple_of=8 leaves .* conv1\.kernel, conv2.* is met with 1"
        ):
            plan(plain(), SCORES, IMAGES, kept_fraction=0.5, multiple_of=8)

    def test_a_budget_that_is_met_is_no_warning(self):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            plan(wide(), scores_of(WIDE), IMAGES, macs_fraction=0.5, multiple_of=4)


class TestScopes:
    def test_patterns_give_groups_their_fractions_by_hand(self):
        choice = choose_counts(WIDE, kept_fraction={"encoder*": 0.5, "decoder1*": 0.75})
        assert list(choice.counts.values()) == [12, 8, 16, 30, 20]
        assert choice.budget.met == {"encoder*": 0.5, "decoder1*": 0.75}

    @pytest.mark.parametrize("scope", ["group", "global"])
    @pytest.mark.parametrize("budget", ["macs_fraction", "params_fraction"])
    def test_costs_of_the_layers_in_scope_are_met(self, scope, budget):
        asked = {"decoder*": 0.4, "encoder*": 0.6}
        choice = choose_counts(WIDE, **{budget: asked}, scope=scope, scores=scores_of(WIDE))
        size_of = WIDE.count_macs if budget == "macs_fraction" else WIDE.count_parameters
        for pattern, groups in (("encoder*", ENCODER), ("decoder*", DECODER)):
            met = size_of(choice.counts, groups) / size_of(WIDE.widths, groups)
            assert choice.budget.met[pattern] == met
            assert asked[pattern] - 0.06 < met <= asked[pattern]

    def test_what_layers_in_scope_are_by_hand(self):
        """decoder2 is made by 40 x 20 and read by 20 x 3; the biases of the readers are not in scope."""
        assert WIDE.count_macs(among=["decoder2.kernel"]) == 40 * 20 + 20 * 3
        assert WIDE.count_parameters(among=["decoder2.kernel"]) == 40 * 20 + 20 + 20 * 3
        assert WIDE.count_macs({"decoder2.kernel": 5}, ["decoder2.kernel"]) == 40 * 5 + 5 * 3

    def test_a_name_is_no_pattern(self):
        assert values_by_group("x", {"a[0]": 1}, ["a[0]", "a0"]) == {"a[0]": 1}

    @pytest.mark.parametrize(
        ("budget", "message"),
        [
            (
                {"kept_fraction": {"nope*": 0.5}},
                r"kept_fraction needs names or patterns of groups, .* got \['nope\*'\]",
            ),
            (
                {"kept_fraction": {"encoder*": 0.5, "*1.kernel": 0.75}},
                r"one value for each group, but encoder1\.kernel has 0\.5 by 'encoder\*' and 0\.75 by '\*1\.kernel'",
            ),
            (
                {"macs_fraction": {"encoder*": 1.5}},
                r"macs_fraction\['encoder\*'\] must be in \(0, 1\], got 1\.5",
            ),
            ({"macs_fraction": {"encoder*": 0.001}}, r"macs_fraction\['encoder\*'\]=0\.001 cannot be met"),
            ({"kept_fraction": {}}, "needs a fraction, or fractions by name or pattern of groups, got none"),
            (
                {"kept_fraction": {"encoder*": 0.5}, "ignore": "encoder*"},
                r"needs groups that may lose channels, got 'encoder\*', whose groups stay whole",
            ),
            ({"latency_fraction": {"encoder*": 0.5}}, "latency_fraction is of the whole network, got"),
            ({"latency_fraction": 0.5}, "latency_fraction needs a network to measure"),
        ],
    )
    def test_scopes_that_do_not_fit_are_refused(self, budget, message):
        with pytest.raises(ValueError, match=message):
            choose_counts(WIDE, **budget)


class TestFloorsAndCeilings:
    def test_counts_and_fractions_by_hand(self):
        rooms = rooms_of(WIDE, ENCODER, RoomLimits({"encoder1*": 0.3, "encoder2*": 10}, 0.75), multiple_of=4)
        assert [list(rooms[name].counts) for name in ENCODER] == [[8, 12, 16], [12], [4, 8, 12, 16, 20, 24]]

    def test_other_groups_make_up_for_a_floor(self):
        counts = budget_counts(WIDE, kept_fraction=0.5, min_kept={"decoder1*": 1.0})
        assert counts["decoder1.kernel"] == 40 and sum(counts.values()) == 66
        assert all(counts[name] < WIDE.widths[name] / 2 for name in ENCODER)

    def test_a_floor_that_is_not_felt_changes_nothing(self):
        assert budget_counts(WIDE, kept_fraction=0.5, min_kept=0.2) == budget_counts(WIDE, kept_fraction=0.5)

    @pytest.mark.parametrize("multiple_of", [1, 4])
    @pytest.mark.parametrize("scope", ["group", "global"])
    @pytest.mark.parametrize("budget", ["kept_fraction", "macs_fraction", "params_fraction"])
    def test_floors_and_ceilings_hold_with_every_budget(self, multiple_of, scope, budget):
        choice = choose_counts(
            WIDE,
            **{budget: 0.5},
            multiple_of=multiple_of,
            scope=scope,
            scores=scores_of(WIDE),
            min_kept={"encoder2*": 12},
            max_kept={"decoder*": 0.6},
        )
        counts = choice.counts
        assert counts["encoder2.kernel"] >= 12
        assert counts["decoder1.kernel"] <= 24 and counts["decoder2.kernel"] <= 12
        assert 0.5 - 0.05 < choice.budget.met <= 0.5

    def test_ceilings_hold_in_groups_without_a_fraction_too(self):
        counts = budget_counts(
            WIDE, kept_fraction={"encoder*": 0.5}, max_kept={"decoder1*": 0.5}, multiple_of=4
        )
        assert (counts["decoder1.kernel"], counts["decoder2.kernel"]) == (20, 20)

    def test_a_ceiling_below_the_budget_is_told(self):
        with pytest.warns(
            UserWarning, match=r"kept_fraction=0\.9 is met with 0\.5682, because max_kept allows no more"
        ):
            plan(wide(), scores_of(WIDE), IMAGES, kept_fraction=0.9, max_kept=15)

    def test_a_budget_below_the_floor_says_what_can_be_reached(self):
        with pytest.raises(
            ValueError,
            match=r"kept_fraction=0\.3 cannot be met: the smallest network that keeps what "
            r"min_kept says has 0\.5000 of all channels, the closest that can be reached",
        ):
            choose_counts(WIDE, kept_fraction=0.3, min_kept=0.5)
        assert choose_counts(WIDE, kept_fraction=0.5, min_kept=0.5).budget.met == 0.5

    @pytest.mark.parametrize("scope", ["group", "global"])
    @pytest.mark.parametrize("multiple_of", [1, 2])
    def test_the_closest_that_can_be_reached_can_be_reached(self, scope, multiple_of):
        options = {"scope": scope, "multiple_of": multiple_of, "scores": SCORES}
        with pytest.raises(ValueError, match="cannot be met") as refusal:
            choose_counts(STRUCTURE, macs_fraction=0.01, **options)
        closest = float(str(refusal.value).split(" has ")[1].split()[0])
        assert choose_counts(STRUCTURE, macs_fraction=closest, **options).counts == dict.fromkeys(
            STRUCTURE.widths, multiple_of
        )

    @pytest.mark.parametrize(
        ("limits", "message"),
        [
            (
                {"min_kept": 0},
                r"min_kept needs whole numbers of channels >= 1 or fractions .* got 0 for '\*'",
            ),
            ({"max_kept": {"encoder*": 1.5}}, r"max_kept needs whole numbers .* got 1\.5 for 'encoder\*'"),
            ({"min_kept": True}, r"min_kept needs whole numbers .* got True"),
            ({"min_kept": {"nope": 3}}, r"min_kept needs names or patterns of groups"),
            (
                {"min_kept": {"encoder1.kernel": 25}},
                r"at most the channels of a group, got 25 for encoder1\.kernel, which has 24",
            ),
            (
                {"min_kept": 0.8, "max_kept": 0.5},
                r"contradict each other: encoder1\.kernel keeps at least 20 by min_kept and at most 12",
            ),
            (
                {"max_kept": 5, "multiple_of": 8},
                r"encoder1\.kernel of 24 channels has no multiple of 8 from 1 to 5",
            ),
            (
                {"max_kept": {"encoder1*": 5}, "ignore": ["encoder1*"]},
                r"max_kept needs groups that may lose channels, got 'encoder1\*'",
            ),
            (
                {"min_kept": {"encoder*": 3, "*1.kernel": 4}},
                r"encoder1\.kernel has 3 by 'encoder\*' and 4 by",
            ),
        ],
    )
    def test_limits_that_do_not_fit_are_refused(self, limits, message):
        with pytest.raises(ValueError, match=message):
            choose_counts(WIDE, kept_fraction=0.5, **limits)

    def test_explicit_counts_leave_nothing_to_limits(self):
        with pytest.raises(ValueError, match=r"kept_counts says what each group keeps\. Leave out min_kept"):
            choose_counts(WIDE, kept_counts={}, min_kept=3)


def test_sizes_that_are_foretold_are_those_of_the_slim_network():
    net = residual()
    structure = trace_structure(net, IMAGES)
    chosen = plan(net, scores_of(structure), IMAGES, macs_fraction=0.6, multiple_of=2)
    smaller = slim(net, chosen)
    assert count_macs(smaller, IMAGES[:1]) == structure.count_macs(chosen.kept_counts)
    assert count_parameters(smaller) == structure.count_parameters(chosen.kept_counts)
    assert chosen.budget.met == structure.count_macs(chosen.kept_counts) / structure.count_macs()


def test_multiply_adds_fall_as_xla_counts_them():
    """XLA counts no multiply-adds on padded borders, so the fractions of the two counts are compared."""
    net = find_network("lenet5", image_shape=(28, 28, 1), num_classes=10)
    example = jax.ShapeDtypeStruct((1, 28, 28, 1), "float32")

    def flops(model):
        graphdef, arrays, rest = split_model(model, "evaluation")
        call = jax.jit(lambda arrays, images: merge_model(graphdef, arrays, rest)(images))
        return call.lower(arrays, example).cost_analysis()["flops"]

    scores = scores_of(trace_structure(net, example))
    for fraction in (0.75, 0.25):
        chosen = plan(net, scores, example, macs_fraction=fraction, multiple_of=8)
        assert flops(slim(net, chosen)) / flops(net) == pytest.approx(chosen.budget.met, rel=0.02)


class TestLatency:
    @staticmethod
    def seconds_of(counts):
        """A made-up machine: a start-up time and a nanosecond for each multiply-add."""
        return 1e-6 + 1e-9 * WIDE.count_macs(counts), 1e-6 + 1e-9 * WIDE.count_macs()

    def test_the_largest_network_that_is_fast_enough_is_found(self):
        choice = choose_counts(WIDE, latency_fraction=0.6, seconds_of=self.seconds_of)
        seconds, full = self.seconds_of(choice.counts)
        assert choice.budget.met == seconds / full
        assert 0.6 - 0.05 < choice.budget.met <= 0.6
        assert 4 <= len(choice.budget.table) <= 7
        assert all(row["seconds"] / full == row["latency_fraction"] for row in choice.budget.table)
        assert Budget.from_record(choice.budget.to_record()) == choice.budget

    def test_multiples_floors_and_ranking_count_too(self):
        choice = choose_counts(
            WIDE, latency_fraction=0.6, seconds_of=self.seconds_of, scope="global", scores=scores_of(WIDE),
            multiple_of=4, min_kept={"encoder1*": 20},
        )  # fmt: skip
        assert choice.counts["encoder1.kernel"] >= 20
        assert all(count % 4 == 0 for count in choice.counts.values())

    def test_what_no_network_reaches_is_refused_with_the_closest(self):
        with pytest.raises(
            ValueError,
            match=r"latency_fraction=0\.1 cannot be met: of \d networks down to the "
            r"smallest, the fastest took 0\.\d+ of the full network's 5\.57e-06 s",
        ):
            choose_counts(WIDE, latency_fraction=0.1, seconds_of=self.seconds_of)

    def test_a_real_network_is_timed_on_the_example(self, monkeypatch):
        net, example = plain(), jax.ShapeDtypeStruct((2, 8, 8, 1), "float32")
        monkeypatch.setattr(latency, "SECONDS_OF_CALLS", 0.0)
        with pytest.warns(UserWarning, match="latency_fraction=1.0 prunes nothing"):
            chosen = plan(net, SCORES, example, latency_fraction=1.0)
        assert chosen.kept_counts == STRUCTURE.widths and chosen.budget.met == 1.0
        assert 0 < chosen.budget.table[0]["seconds"] < 1

    def test_a_network_of_several_inputs_is_timed(self, monkeypatch):
        net = Net({"a": linear(4, 6), "b": linear(3, 6, 1), "head": linear(6, 2, 2)}, None)
        net.forward = lambda net, batch: net.head(nnx.relu(net.a(batch["a"]) + net.b(batch["b"])))
        monkeypatch.setattr(latency, "SECONDS_OF_CALLS", 0.0)
        example = {"a": np.ones((2, 4), np.float32), "b": jax.ShapeDtypeStruct((2, 3), "float32")}
        structure = trace_structure(net, example)
        with pytest.warns(UserWarning, match="prunes nothing"):
            chosen = plan(net, scores_of(structure), example, latency_fraction=1.0)
        slim_seconds, full_seconds = latency.make_timer(net, structure, chosen.example)({"a.kernel": 3})
        assert chosen.kept_counts == {"a.kernel": 6} and 0 < slim_seconds < 1 and 0 < full_seconds < 1

    def test_networks_that_cannot_be_timed_are_refused_by_name(self):
        def forward(net, x):
            a = net.a(flat(x))
            if a.shape[-1] == 3:
                raise TypeError("three is no number")
            return net.c(a)

        net = Net({"a": linear(64, 4), "c": linear(4, 3, 2)}, forward)
        timer = latency.make_timer(net, trace_structure(net, IMAGES), IMAGES)
        with pytest.raises(
            ValueError,
            match=r"slim networks that run, but with a\.kernel 4 -> 3 it failed with TypeError: three is no number",
        ):
            timer({"a.kernel": 3})
        bare = without_weights(lambda rngs: plain())
        with pytest.raises(ValueError, match="needs a network with weights to measure, got one of shapes"):
            latency.make_timer(bare, STRUCTURE, IMAGES)

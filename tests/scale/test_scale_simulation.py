"""The simulation of experiments/scale: hand-made times in, seconds and shares of device time out."""

from __future__ import annotations

import itertools
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

sys.path.append(str(Path(__file__).resolve().parents[2] / "experiments" / "scale"))

import run
from advice import TARGET, advise, per_generation
from simulation import Machine, NeverEndsError, Program, Stage, simulate
from stages import Work, dealt_out, generation, row_seconds, search, with_bases, work_of

from jaxprune.search.evaluation import max_fine_tunings
from jaxprune.search.problem import TaskInfo
from jaxprune.search.settings import EvolveConfig, find_preset

TEN = Program("ten", {1: 1.0, 4: 4.0})
"""A member takes a second, in any chunk."""


def stage(members, program=TEN, leader=0.0):
    return Stage("screen", ((program, members),), leader)


class TestSimulate:
    def test_one_device_takes_the_sum_of_all_times(self):
        slow = Program("slow", {1: 10.0})
        stages = [Stage("a", ((TEN, 3), (slow, 2)), leader_seconds=5.0, compile_seconds=6.0), stage(4)]
        assert simulate(stages, Machine(1, chunk=1)).seconds == 3 + 20 + 5 + 6 + 4

    def test_a_perfect_fit_is_the_ideal_speed_up(self):
        alone = simulate([stage(64)], Machine(1, chunk=4))
        for devices in (2, 4, 8, 16):
            account = simulate([stage(64)], Machine(devices, devices_per_host=8, chunk=4))
            assert account.seconds == alone.seconds / devices and account.efficiency == 1.0

    def test_a_padded_row_takes_as_long_as_a_full_one(self):
        account = simulate([stage(9)], Machine(2, chunk=4))
        assert account.seconds == 8.0
        assert account.spent["useful"] == 9.0 and account.spent["padding"] == 7.0
        assert account.largest_loss() == "padding 44%"

    def test_a_slow_chunk_is_a_loss_beside_the_fastest(self):
        gains = Program("gains", {1: 1.0, 4: 2.0})
        account = simulate([stage(4, gains)], Machine(1, chunk=1))
        assert (account.seconds, account.efficiency, account.spent["chunk"]) == (4.0, 0.5, 2.0)
        assert gains.seconds(2) == pytest.approx(4 / 3)

    def test_a_straggler_delays_its_own_barrier_and_no_other(self):
        factors = iter([np.array([[1.0, 1.0], [1.0, 3.0]]), np.ones((2, 2)), np.ones((2, 2))])
        machine = Machine(4, devices_per_host=2, chunk=4)
        account = simulate([stage(32), stage(16)], machine, slowness=lambda hosts, devices: next(factors))
        assert account.seconds == 12.0 + 4.0 + 4.0
        assert account.spent["stragglers"] == 8.0 * 4

    def test_a_host_without_a_share_runs_nothing(self):
        asked = []

        def slowness(hosts, devices):
            asked.append((hosts, devices))
            return np.ones((hosts, devices))

        simulate([stage(33)], Machine(8, devices_per_host=2, chunk=4), slowness=slowness)
        assert asked == [(4, 2), (1, 2)]

    def test_a_death_costs_what_was_done_of_its_block_and_the_restart(self):
        machine = Machine(2, chunk=4, restart_seconds=100.0)
        account = simulate([stage(8), stage(8)], machine, deaths=iter([5.0]))
        assert account.seconds == 4.0 + (1.0 + 100.0) + 4.0
        assert account.deaths == 1 and account.spent["deaths"] == 101.0 * 2

    def test_the_leader_gathers_from_one_host_after_another_and_not_from_itself_alone(self):
        assert simulate([stage(4)], Machine(4, 4, 1, gather_seconds=0.5)).seconds == 1.0
        assert simulate([stage(4)], Machine(4, 1, 1, gather_seconds=0.5)).seconds == 1.0 + 4 * 0.5

    def test_later_plans_are_made_one_after_another_on_their_host(self):
        rounds = Program("rounds", {1: 10.0}, host_seconds=2.0)
        assert simulate([stage(3, rounds)], Machine(4, devices_per_host=2, chunk=1)).seconds == 10.0 + 2 * 2.0

    def test_parts_sum_up_to_all_device_seconds(self):
        machine = Machine(16, 4, 2, 0.01, straggler_sigma=0.3, deaths_per_host_hour=2.0, restart_seconds=3.0)
        gains = Program("gains", {1: 1.0, 4: 2.0}, host_seconds=0.1)
        account = simulate([stage(50, gains, leader=7.0)] * 20, machine, seed=3)
        assert account.deaths > 0
        assert sum(account.shares().values()) == pytest.approx(1.0)
        assert account.seconds == simulate([stage(50, gains, leader=7.0)] * 20, machine, seed=3).seconds

    def test_more_devices_never_take_longer_nor_are_busier(self):
        accounts = [simulate([stage(40, leader=2.0)], Machine(devices, 4, 4)) for devices in (1, 2, 4, 8, 16)]
        for before, after in itertools.pairwise(accounts):
            assert after.seconds <= before.seconds and after.efficiency <= before.efficiency

    def test_hosts_that_always_die_in_a_block_are_told(self):
        machine = Machine(1, chunk=1, deaths_per_host_hour=3600.0)
        with pytest.raises(
            NeverEndsError, match=r"before a host dies, got 1000 deaths in one of 100 s\. Choose a"
        ):
            simulate([stage(1, Program("long", {1: 100.0}))], machine)

    def test_bad_numbers_are_refused(self):
        with pytest.raises(
            ValueError, match=r"needs full hosts, got 12 devices on hosts of 8\. Choose a multiple"
        ):
            Machine(12)
        with pytest.raises(
            ValueError, match=r"needs devices, devices per host and a chunk >= 1, got 0, 8 and 16"
        ):
            Machine(0)
        with pytest.raises(ValueError, match=r"deaths and restart seconds >= 0, got \(0\.0, -1"):
            Machine(1, straggler_sigma=-1)
        with pytest.raises(
            ValueError, match=r"ten needs a chunk from 1 to 4, whose rows have known times, got 8"
        ):
            simulate([stage(1)], Machine(1, chunk=8))
        with pytest.raises(ValueError, match=r"none needs seconds > 0 of rows .* got \{\}"):
            Program("none", {})


# As printed by `python benchmarks/devices.py --chunk CHUNK`, whose rows train real networks.
@pytest.mark.parametrize(
    ("chunk", "rows", "idle"),
    [(1, (38, 19, 10, 5), (0, 0, 0.05, 0.05)), (3, (14, 7, 4, 2), (0.1, 0.1, 0.21, 0.21))],
)
def test_rows_and_idle_shares_are_those_of_the_benchmark(chunk, rows, idle):
    machines = [Machine(devices, chunk=chunk) for devices in (1, 2, 4, 8)]
    batches = (16, 22)  # of 16 candidates on 4 bases, with 2 elites
    blocks = [[machine.num_blocks(members) for members in batches] for machine in machines]
    shares = [[machine.idle_share(members) for members in batches] for machine in machines]
    assert tuple(map(sum, blocks)) == rows
    means = (np.average(own, weights=rows_of) for own, rows_of in zip(shares, blocks, strict=True))
    assert tuple(round(mean, 2) for mean in means) == idle


def work(name="a", bases=4, extra_bases=0, score=0.0):
    return Work(
        TaskInfo(name, bases=bases, extra_bases=extra_bases),
        TEN,
        Program("base", {1: 2.0, 4: 8.0}),
        score,
        3.0,
    )


class TestStages:
    @pytest.mark.parametrize("together", [False, True])
    def test_a_generation_has_as_many_fine_tunings_as_the_search_allows(self, together):
        works = [work("a", bases=4), work("b", bases=2)]
        config = EvolveConfig(fitness="finetune", population=16, elites=3)
        stages = generation(config, works, together=together)
        expected = max_fine_tunings(16, [each.info for each in works], config.promote_fraction, 3)
        assert sum(each.num_members for each in stages) == expected
        assert [each.num_members for each in stages] == ([32, 36] if together else [32, 24, 12])

    def test_the_leader_scores_every_proposal_on_every_base(self):
        config = EvolveConfig(fitness="finetune", population=5, proposals_per_slot=10)
        screen = generation(config, [work(bases=1, extra_bases=3, score=0.5)])[0]
        assert screen.leader_seconds == 5 * 10 * 4 * 0.5
        assert dealt_out([screen], 4)[0].leader_seconds == 25.0

    def test_a_search_of_the_paper_starts_with_seven_formulas(self):
        stages = search(find_preset("paper").config, [work(bases=1, extra_bases=3)])
        assert [(each.purpose, each.num_members) for each in stages[:5]] == [
            ("base networks", 4), ("start", 7), ("screen", 40), ("promote", 0), ("again", 12),
        ]  # fmt: skip
        assert stages[0].compile_seconds == 2 * 3.0, "it compiles one program of each kind"
        assert sum(each.num_members for each in stages[1:]) == 527, "as its README counts"

    def test_a_search_on_landscapes_trains_its_bank_and_the_leaders(self):
        config = find_preset("quick").config
        stages = search(config, [work(bases=16)])
        trained = [(each.purpose, each.num_members) for each in stages if each.num_members]
        assert trained == [("base networks", 16), ("bank", 800), ("verify", 28 * 16)]
        assert sum(each.purpose == "score" for each in stages) == config.generations

    def test_rows_of_base_networks_take_longer_by_their_flops(self):
        costs = {
            "row_seconds": {"1": 2.0}, "finetune_flops": 10.0, "base_flops": 30.0, "rounds": 3, "score_seconds": 0.5,
            "compile_seconds": 1.0,
        }  # fmt: skip
        made = work_of("a", costs, 1, 0)
        assert made.train.seconds(1) == 6.0 and made.finetune.host_seconds == 1.0

    def test_a_chunk_is_as_often_as_fast_as_it_was_said_to_be(self):
        rows = row_seconds(100.0, 10.0, 16, gain=3.0)
        assert rows == {1: 30.0, 16: 160.0}


class TestAdvice:
    config = EvolveConfig(
        fitness="finetune", population=40, elites=6, promote_fraction=1.0, proposals_per_slot=1
    )

    def test_settings_that_keep_devices_busy_stay_as_they_are(self):
        choice = advise(self.config, [work(bases=1)], Machine(1, chunk=4), together=False)
        assert (choice.population, choice.bases, choice.efficiency) == (40, 1, 1.0)

    def test_more_devices_get_more_to_train_but_no_more_than_needed(self):
        machine = Machine(64, chunk=4)
        now = per_generation(self.config, [work(bases=1)], machine, together=False)
        choice = advise(self.config, [work(bases=1)], machine, together=False)
        assert now.efficiency < TARGET <= choice.efficiency
        assert choice.fine_tunings > 52 and choice.fine_tunings < 64 * 20
        again = replace(machine, chunk=choice.chunk)
        changed = self.config.replace(population=choice.population, promote_fraction=choice.promote_fraction)
        tried = with_bases([work(bases=1)], choice.bases)
        assert per_generation(changed, tried, again, together=False).efficiency == choice.efficiency

    def test_scoring_that_takes_too_long_is_dealt_out(self):
        works = [work(bases=1, score=0.5)]
        choice = advise(self.config, works, Machine(32, devices_per_host=1, chunk=4), together=False)
        assert choice.is_dealt


class TestExperiment:
    facts = {
        "finetune_flops": 1e13, "base_flops": 2e13, "rounds": 1, "bases": 16, "extra_bases": 0, "compile_seconds": 8.0,
        "score_seconds": 0.5, "flops_per_second": 1e11,
    }  # fmt: skip

    @pytest.fixture
    def results(self, tmp_path, monkeypatch):
        """A folder of results with made-up measurements, for two numbers of devices."""
        monkeypatch.setattr(run, "RESULTS", tmp_path)
        monkeypatch.setattr(run, "DEVICES", (1, 16))
        tasks = dict.fromkeys(find_preset("quick").tasks, self.facts)
        (tmp_path / "measured.json").write_text(json.dumps({"gather_seconds": 0.001, "tasks": tasks}))
        return tmp_path

    def test_every_number_says_where_it_is_from(self, results, monkeypatch, capsys):
        options = "--flops-per-second 1e12 --gain digits=4 --score-seconds digits-dw=2 --sigma 0 --price 3"
        monkeypatch.setattr(
            sys, "argv", ["run.py", "--preset", "quick", "--name", "made-up", *options.split()]
        )
        run.main()
        found = json.loads((results / "made-up.json").read_text())
        assert found["numbers"] == {
            "gather_ms": [1.0, "measured"], "sigma": [0.0, "given"], "deaths": [1.0, "assumed"],
            "restart": [60.0, "assumed"], "price": [3.0, "given"],
        }  # fmt: skip
        plain, dw = found["tasks"]["digits"], found["tasks"]["digits-dw"]
        assert plain["score_seconds"] == [0.5, "measured"] and dw["score_seconds"] == [2.0, "given"]
        assert plain["gain"] == [4.0, "given"] and dw["gain"] == [1.0, "assumed"]
        assert plain["row_seconds"] == [{"1": 40.0, "16": 160.0}, "computed from the given speed"]
        assert plain["bases"] == [16, "counted"]
        alone, many = found["rows"]
        assert alone["cost"] == pytest.approx(3 * alone["search_seconds"] / 3600)
        assert many["hosts"] == 2 and many["device_hours"] == pytest.approx(
            16 * many["search_seconds"] / 3600
        )
        told = capsys.readouterr().out
        assert told.strip() == (results / "made-up.md").read_text().strip()
        assert (
            "At least 70% of the device time of a search is useful on none of these numbers of devices."
            in told
        )
        assert (results / "made-up.png").stat().st_size < 200_000

    def test_times_that_never_end_are_told_with_the_number_of_devices(self, results, monkeypatch):
        monkeypatch.setattr(sys, "argv", ["run.py", "--preset", "quick", "--deaths", "100000000"])
        with pytest.raises(SystemExit, match=r"on 1 devices a block needs to end before a host dies"):
            run.main()

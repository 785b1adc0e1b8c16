"""The bank of fine-tuned plans: what is drawn, measured once, stored, and used again."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_task import tiny_programs
from toy_problem import noise

from jaxprune.files import RunDirectoryError
from jaxprune.keys import derive
from jaxprune.pruning.planning import select
from jaxprune.scoring.ranking import Ranking
from jaxprune.search import bank as bank_module
from jaxprune.search.bank import REFERENCES, draw_plan, measure_bank, reference_scores
from jaxprune.search.landscape import Bank, channel_features, fit_landscape, held_out_correlation
from jaxprune.tasks.base_networks import BasePool, Entry
from jaxprune.tasks.round_plans import FirstRoundPlan, StackedPlan
from jaxprune.tasks.tasks import Schedule
from jaxprune.types import Invalid, Kept

WIDTHS, COUNTS = {"conv": 6, "dense": 9}, {"conv": 2, "dense": 5}


class FakePool:
    """A pool without networks: scores and accuracies are made up, accuracies are linear in what is kept."""

    def __init__(
        self,
        folder: Path | None = None,
        num_bases: int = 3,
        *,
        widths: dict[str, int] = WIDTHS,
        counts: dict[str, int] = COUNTS,
        fingerprint: str = "0f",
        machine: str = "a",
        invalid: Sequence[tuple[int, int]] = (),
        num_rounds: int = 1,
        fail_at: int | None = None,
    ) -> None:
        first_round = SimpleNamespace(counts=counts, structure=SimpleNamespace(widths=widths))
        self.programs = SimpleNamespace(rounds=[first_round] * num_rounds, fingerprint=fingerprint)
        self.task = SimpleNamespace(name="toy", schedule=Schedule(kept_fraction=0.5))
        self.programs.task = self.task
        self.seed, self.pool, self.num_bases = 0, "search", num_bases
        self.folder = None if folder is None else folder / "toy-0"
        self.key = derive(jax.random.key(0), "toy", "search")
        self.machine, self.invalid, self.fail_at = machine, invalid, fail_at
        self.messages: list[str] = []
        self.finetuned: list[tuple[int, Kept]] = []

    def on_message(self, message: str) -> None:
        self.messages.append(message)

    def plans(self, functions: Sequence[object]) -> list[list[FirstRoundPlan | Invalid]]:
        return [[self._plan(row, base) for base in range(self.num_bases)] for row in range(len(functions))]

    def stacked_plans(self, functions: Sequence[object]) -> list[StackedPlan | Invalid]:
        widths, stacked = self.programs.rounds[0].structure.widths, []
        for by_base in self.plans(functions):
            invalid = [f"base {b}: {p.reason}" for b, p in enumerate(by_base) if isinstance(p, Invalid)]
            kept = [dict(plan.kept) for plan in by_base if isinstance(plan, FirstRoundPlan)]
            bits = [
                np.concatenate([np.isin(np.arange(width), plan[group]) for group, width in widths.items()])
                for plan in kept
            ]
            stacked.append(Invalid(invalid[0]) if invalid else StackedPlan(np.array(bits), 0, 0))
        return stacked

    def _plan(self, row: int, base: int) -> FirstRoundPlan | Invalid:
        if (row, base) in self.invalid:
            return Invalid("a toy reason")
        groups = self.programs.rounds[0].structure.widths.items()
        scores = {
            group: np.array(
                [worth(base, group, c) + noise(self.machine, row, base, group, c) for c in range(width)]
            )
            for group, width in groups
        }
        return FirstRoundPlan(
            select(scores, self.programs.rounds[0].counts),
            Ranking(scores, (), 0),
        )

    def finetune(self, entries: Sequence[Entry]) -> Iterator[SimpleNamespace]:
        for entry in entries:
            if len(self.finetuned) == self.fail_at:
                raise MemoryError("the toy device is full")
            assert entry.kept is not None and entry.repeat == 0
            self.finetuned.append((entry.base, entry.kept))
            yield SimpleNamespace(accuracies=np.array([1.0, accuracy(entry.base, entry.kept)]), seconds=0.5)


def worth(base: int, group: str, channel: int) -> float:
    return noise("worth", group, channel) + 0.5 * noise("worth", base, group, channel)


def accuracy(base: int, kept: Kept) -> float:
    return 60.0 + sum(worth(base, group, channel) for group, channels in kept for channel in channels)


def kept_of(bank: Bank, base: int, number: int) -> Kept:
    first, last = np.split(bank.is_kept[base, number], [WIDTHS["conv"]])
    return (
        ("conv", tuple(np.flatnonzero(first).tolist())),
        ("dense", tuple(np.flatnonzero(last).tolist())),
    )


def assert_equal(one: Bank, other: Bank) -> None:
    np.testing.assert_array_equal(one.is_kept, other.is_kept)
    np.testing.assert_array_equal(one.accuracies, other.accuracies)


def file_of(pool: FakePool) -> Path:
    assert pool.folder is not None
    return pool.folder / "bank-search.jsonl"


def damaged_file_of(pool: FakePool) -> Path:
    return file_of(pool).with_name("bank-search.damaged.jsonl")


class TestDraws:
    @given(st.integers(0, 2**32 - 1), st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1))
    def test_plans_keep_as_many_channels_as_are_scheduled(
        self, seed: int, sizes: list[tuple[int, int]]
    ) -> None:
        widths = {f"g{i}": max(pair) for i, pair in enumerate(sizes)}
        counts = {f"g{i}": min(pair) for i, pair in enumerate(sizes)}
        references = [{group: tuple(range(count)) for group, count in counts.items()}]
        plan = draw_plan(np.random.default_rng(seed), references, widths, counts)
        assert [group for group, _ in plan] == list(counts)
        for group, channels in plan:
            assert len(channels) == counts[group]
            assert sorted(set(channels)) == list(channels)
            assert set(channels) <= set(range(widths[group]))

    def draws(self, count: int = 5, width: int = 20, num: int = 3000) -> np.ndarray:
        """[num, count] channels kept of which a known function keeps the first."""
        rng, reference = np.random.default_rng(0), {"conv": tuple(range(count))}
        return np.array(
            [draw_plan(rng, [reference], {"conv": width}, {"conv": count})[0][1] for _ in range(num)]
        )

    def test_a_quarter_is_random_and_the_others_are_near_a_known_function(self) -> None:
        """Of the function's 5 of 20 channels, 5/4 are kept by chance, else 5 (1 - (0 + .15 + .4)/3)."""
        num_common = (self.draws() < 5).sum(axis=1)
        assert num_common.mean() == pytest.approx(0.25 * 1.25 + 0.75 * 5 * (1 - 0.55 / 3), abs=0.08)
        assert (num_common == 5).mean() == pytest.approx(0.75 * (1 + 0.85**5 + 0.6**5) / 3, abs=0.03)

    def test_random_channels_are_kept_equally_often(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(bank_module, "RANDOM_SHARE", 1.0)
        frequencies = np.bincount(self.draws().ravel(), minlength=20) / 3000
        np.testing.assert_allclose(frequencies, 0.25, atol=0.03)

    def test_all_channels_can_be_exchanged(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(bank_module, "RANDOM_SHARE", 0.0)
        monkeypatch.setattr(bank_module, "EXCHANGED", (1.0,))
        frequencies = np.bincount(self.draws().ravel(), minlength=20) / 3000
        np.testing.assert_allclose(frequencies, [0.0] * 5 + [1 / 3] * 15, atol=0.03)

    def test_no_more_are_exchanged_than_there_are(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(bank_module, "RANDOM_SHARE", 0.0)
        monkeypatch.setattr(bank_module, "EXCHANGED", (1.0,))
        draws = self.draws(count=3, width=4, num=300)
        frequencies = np.bincount(draws.ravel(), minlength=4) / 300
        np.testing.assert_allclose(frequencies, [2 / 3] * 3 + [1.0], atol=0.1)
        np.testing.assert_array_equal(self.draws(count=3, width=3, num=5), [[0, 1, 2]] * 5)


class TestBank:
    def test_accuracies_are_those_of_the_plans(self) -> None:
        bank = measure_bank(FakePool(), 4)
        for base in range(3):
            for number in range(4):
                assert bank.accuracies[base, number] == accuracy(base, kept_of(bank, base, number))
        assert (bank.widths, bank.counts, bank.is_kept.shape) == (WIDTHS, COUNTS, (3, 4, 15))

    def test_more_plans_and_bases_begin_with_those_of_a_smaller_bank(self) -> None:
        small, large = measure_bank(FakePool(num_bases=2), 4), measure_bank(FakePool(num_bases=3), 7)
        np.testing.assert_array_equal(small.is_kept, large.is_kept[:2, :4])
        np.testing.assert_array_equal(small.accuracies, large.accuracies[:2, :4])

    def test_a_function_that_is_invalid_on_one_base_still_counts_on_the_others(self) -> None:
        whole, lacking = (measure_bank(pool, 10) for pool in (FakePool(), FakePool(invalid=[(0, 2), (3, 2)])))
        np.testing.assert_array_equal(lacking.is_kept[:2], whole.is_kept[:2])
        assert not np.array_equal(lacking.is_kept[2], whole.is_kept[2])

    def test_bases_have_plans_of_their_own(self) -> None:
        bank = measure_bank(FakePool(), 4)
        assert not np.array_equal(bank.is_kept[0], bank.is_kept[1])

    def test_equal_plans_are_fine_tuned_once(self) -> None:
        pool = FakePool(num_bases=2, widths={"conv": 3}, counts={"conv": 1})
        bank = measure_bank(pool, 40)
        assert len(pool.finetuned) == len(set(pool.finetuned)) == 6
        for base, kept, measured in zip(
            np.repeat([0, 1], 40), bank.is_kept.reshape(80, 3), bank.accuracies.ravel(), strict=True
        ):
            assert measured == accuracy(int(base), (("conv", tuple(np.flatnonzero(kept).tolist())),))

    def test_progress_counts_plans(self, tmp_path: Path) -> None:
        told: list[tuple[int, int]] = []
        measure_bank(FakePool(tmp_path), 2, on_plan=lambda *numbers: told.append(numbers))
        assert told == [(number, 6) for number in range(1, 7)]
        told.clear()
        measure_bank(FakePool(tmp_path), 3, on_plan=lambda *numbers: told.append(numbers))
        assert told == [(7, 9), (8, 9), (9, 9)]

    def test_landscapes_are_fitted_to_it(self) -> None:
        pool = FakePool()
        bank = measure_bank(pool, 60)
        features = channel_features(reference_scores(pool))
        assert held_out_correlation(bank, features, own_ridge=1e-6) > 0.999  # the accuracies are linear

    def test_scores_of_functions_that_are_invalid_are_nan(self) -> None:
        scores = reference_scores(FakePool(invalid=[(1, 2)]))
        assert {group: array.shape for group, array in scores.items()} == {
            group: (len(REFERENCES), 3, width) for group, width in WIDTHS.items()
        }
        for array in scores.values():
            assert np.argwhere(np.isnan(array).all(axis=2)).tolist() == [[1, 2]]
            assert np.isnan(array).sum() == array.shape[2]

    def test_tasks_of_several_rounds_are_refused(self) -> None:
        with pytest.raises(
            ValueError, match=r"got 2 of task 'toy'.* Use fitness=\"finetune\" \(--fitness finetune\)"
        ):
            measure_bank(FakePool(num_rounds=2), 5)

    def test_a_base_that_no_function_can_rank_is_refused(self) -> None:
        pool = FakePool(invalid=[(row, 1) for row in range(len(REFERENCES))])
        with pytest.raises(ValueError, match="task 'toy', base 1, got none: l2 is invalid: a toy reason"):
            measure_bank(pool, 5)


class TestFile:
    def test_what_is_recorded_is_not_fine_tuned_again(self, tmp_path: Path) -> None:
        first = measure_bank(FakePool(tmp_path), 4)
        pool = FakePool(tmp_path)
        assert_equal(measure_bank(pool, 4), first)
        assert not pool.finetuned and not pool.messages

    def test_without_a_folder_it_is_in_memory_only(self) -> None:
        pool = FakePool()
        first, second = measure_bank(pool, 2), measure_bank(pool, 2)
        assert_equal(first, second)
        assert pool.finetuned[:6] == pool.finetuned[6:]

    def test_an_interrupted_bank_goes_on_from_the_last_result(self, tmp_path: Path) -> None:
        def interrupt(done: int, total: int) -> None:
            if done == 5:
                raise KeyboardInterrupt

        pools = [FakePool(tmp_path), FakePool(tmp_path)]
        with pytest.raises(KeyboardInterrupt):
            measure_bank(pools[0], 4, on_plan=interrupt)
        bank = measure_bank(pools[1], 4)
        alone = FakePool()
        assert_equal(bank, measure_bank(alone, 4))
        assert pools[0].finetuned + pools[1].finetuned == alone.finetuned

    def test_errors_of_the_machine_pass_and_keep_what_was_measured(self, tmp_path: Path) -> None:
        with pytest.raises(MemoryError, match="the toy device is full"):
            measure_bank(FakePool(tmp_path, fail_at=3), 4)
        assert len(file_of(FakePool(tmp_path)).read_text().splitlines()) == 3

    @pytest.mark.parametrize("num_bytes", [1, 2, 40, 100])
    def test_a_last_line_that_was_cut_is_measured_again(self, tmp_path: Path, num_bytes: int) -> None:
        first = measure_bank(FakePool(tmp_path), 4)
        pool = FakePool(tmp_path)
        content = file_of(pool).read_bytes()
        file_of(pool).write_bytes(content[:-num_bytes])
        assert_equal(measure_bank(pool, 4), first)
        assert file_of(pool).read_bytes() == content
        assert len(pool.finetuned) == len(pool.messages) == (num_bytes > 1)  # without its newline it is whole

    @given(st.data())
    def test_a_flipped_bit_is_told_and_measured_again(
        self, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
    ) -> None:
        folder = tmp_path_factory.mktemp("bank")
        first = measure_bank(FakePool(folder, 1), 3)
        pool = FakePool(folder, 1)
        content = bytearray(file_of(pool).read_bytes())
        content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
        file_of(pool).write_bytes(content)
        assert_equal(measure_bank(pool, 3), first)
        (message,) = pool.messages
        assert "line(s) that are damaged" in message and "fine-tuned again" in message
        moved = damaged_file_of(pool).read_bytes().splitlines()
        assert moved and all(line in bytes(content) for line in moved)
        assert not FakePool(folder, 1).messages
        again = FakePool(folder, 1)
        assert_equal(measure_bank(again, 3), first)
        assert not again.finetuned and not again.messages

    @pytest.mark.parametrize("other", ["fingerprint", "seed", "pool", "task"])
    def test_results_of_another_bank_are_not_taken(self, tmp_path: Path, other: str) -> None:
        pool = FakePool(tmp_path, fingerprint="another" if other == "fingerprint" else "0f")
        if other == "task":
            pool.task.name = "another"
        elif other != "fingerprint":
            setattr(pool, other, {"seed": 1, "pool": "final"}[other])
        measure_bank(pool, 2)
        (written,) = tmp_path.glob("toy-0/bank-*.jsonl")
        ours = FakePool(tmp_path)
        written.rename(file_of(ours))
        assert_equal(measure_bank(ours, 2), measure_bank(FakePool(), 2))
        assert len(ours.finetuned) == len(damaged_file_of(ours).read_bytes().splitlines()) == 6
        assert f"{file_of(ours)} had 6 line(s)" in ours.messages[0]

    def test_recorded_plans_count_where_another_machine_would_draw_others(self, tmp_path: Path) -> None:
        first = measure_bank(FakePool(tmp_path), 4)
        pool = FakePool(tmp_path, machine="another")
        assert not np.array_equal(measure_bank(FakePool(machine="another"), 4).is_kept, first.is_kept)
        bank = measure_bank(pool, 6)
        np.testing.assert_array_equal(bank.is_kept[:, :4], first.is_kept)
        np.testing.assert_array_equal(bank.accuracies[:, :4], first.accuracies)
        assert len(pool.finetuned) == 6

    def test_two_searches_may_write_it_at_once(self, tmp_path: Path) -> None:
        others: list[Bank] = []

        def start_another(done: int, total: int) -> None:
            if done == 2:
                others.append(measure_bank(FakePool(tmp_path), 4))

        pool = FakePool(tmp_path)
        first = measure_bank(pool, 4, on_plan=start_another)
        assert len(file_of(pool).read_text().splitlines()) == 12 + 10
        assert_equal(first, others[0])
        third = FakePool(tmp_path)
        assert_equal(measure_bank(third, 4), first)
        assert not third.finetuned and not third.messages

    @pytest.mark.parametrize("num_written", [None, 10])
    def test_a_full_disk_leaves_whole_lines(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_written: int | None
    ) -> None:
        first = measure_bank(FakePool(tmp_path), 2)
        content = file_of(FakePool(tmp_path)).read_bytes()
        write = os.write

        def write_some(descriptor: int, line: bytes) -> int:
            if num_written is None:
                raise OSError(errno.ENOSPC, "No space left on device")
            return write(descriptor, line[:num_written])

        with monkeypatch.context() as patch:
            patch.setattr(os, "write", write_some)
            with pytest.raises(RunDirectoryError, match=r"bank-search\.jsonl: the disk is full"):
                measure_bank(FakePool(tmp_path), 3)
        assert file_of(FakePool(tmp_path)).read_bytes() == content
        pool = FakePool(tmp_path)
        np.testing.assert_array_equal(measure_bank(pool, 3).is_kept[:, :2], first.is_kept)
        assert not pool.messages

    def test_a_folder_in_its_place_is_refused(self, tmp_path: Path) -> None:
        pool = FakePool(tmp_path)
        file_of(pool).mkdir(parents=True)
        with pytest.raises(RunDirectoryError, match=r"could not repair .*bank-search\.jsonl"):
            measure_bank(pool, 2)


def test_on_a_real_task_plans_are_fine_tuned_as_any_others(bases_dir: Path, tmp_path: Path) -> None:
    programs = tiny_programs()
    stored = BasePool(programs, 0, "search", 2, folder=bases_dir)
    assert stored.bases and stored.folder is not None
    shutil.copytree(stored.folder, tmp_path / stored.folder.name)
    pool = BasePool(programs, 0, "search", 2, folder=tmp_path)
    bank = measure_bank(pool, 5)
    assert pool.folder is not None and (pool.folder / "bank-search.jsonl").exists()
    kept = tuple(
        (group, tuple(np.flatnonzero(is_kept).tolist()))
        for group, is_kept in zip(
            bank.widths, np.split(bank.is_kept[1, 3], np.cumsum(list(bank.widths.values()))[:-1]), strict=True
        )
    )
    assert bank.accuracies[1, 3] == float(pool.finetune_one(Entry(1, kept=kept)).accuracies[-1])
    features = channel_features(reference_scores(pool))
    assert {array.shape[2] for array in features.values()} == {len(REFERENCES)}
    landscape = fit_landscape(bank, features)
    assert landscape.values.shape == (2, 18)

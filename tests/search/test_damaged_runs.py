"""Damaged run files: what follows from others is made again, the rest is refused by name, and the advice helps."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from damages import damage_one
from made_up_runs import made_up_finals
from test_search import DyingProblem, Killed, Recorder, contents
from toy_problem import SMALL, TASKS, ToyProblem

from jaxprune.config import read_config
from jaxprune.files import CHECK, RunDirectoryError, sealed, to_text
from jaxprune.report import writing
from jaxprune.search.run_directory import load_run
from jaxprune.search.search import SearchResult, evolve_problem
from jaxprune.search.settings import EvolveConfig


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with everything that a report needs."""
    run_dir = tmp_path_factory.mktemp("runs") / "run"
    state = evolve_problem(ToyProblem(), SMALL, run_dir).state
    (run_dir / "final.json").write_text(made_up_finals(state).to_json())
    for task in TASKS:
        record = {"dataset": task.name, "num_examples": 3, "digest": "ab", "opened": ["2026-01-01"]}
        (run_dir / f"test-{task.name}.json").write_text(to_text(sealed(record)))
    return run_dir


@pytest.fixture
def run_dir(whole: Path, tmp_path: Path) -> Path:
    """A copy of the finished run."""
    return Path(shutil.copytree(whole, tmp_path / "run"))


def resumed(
    run_dir: Path, config: EvolveConfig = SMALL, messages: list[str] | None = None
) -> tuple[int, SearchResult]:
    """Resumes a run; returns how many fine-tunings were run, and the result."""
    problem, recorder = ToyProblem(), Recorder()
    result = evolve_problem(problem, config, run_dir, resume=True, callbacks=[recorder])
    if messages is not None:
        messages += recorder.messages
    return problem.num_calls, result


def edit_line(path: Path, number: int, edit: Callable[[dict[str, Any]], object]) -> None:
    """Edits the object in one line of a journal; line 1 is the first."""
    lines = path.read_text().splitlines()
    plain = json.loads(lines[number - 1])
    edit(plain)
    path.write_text("\n".join([*lines[: number - 1], json.dumps(plain), *lines[number:], ""]))


def first_trial(run_dir: Path) -> int:
    """The number of the journal's first line about a fine-tuning."""
    lines = (run_dir / "journal.jsonl").read_text().splitlines()
    return next(number for number, line in enumerate(lines, start=1) if '"trial"' in line)


# Changes of the journal


@pytest.mark.parametrize(
    "changes",
    [{"accuracy": 99.5}, {"accuracy": 70}, {"digest": "ffff"}, {"base": 1}, {"task": "fashion"}, {"more": 1}],
)
@pytest.mark.parametrize("has_state", [True, False], ids=["in the checkpoint", "after it"])
def test_an_edited_line_is_refused_by_file_and_number(
    run_dir: Path, changes: dict[str, object], has_state: bool
) -> None:
    if not has_state:
        (run_dir / "state.json").unlink()
    number = first_trial(run_dir)
    edit_line(run_dir / "journal.jsonl", number, lambda plain: plain.update(changes))
    with pytest.raises(RunDirectoryError, match=rf"line {number} of .*journal\.jsonl .*its checksum differs"):
        resumed(run_dir)


@pytest.mark.parametrize(
    "change",
    [
        lambda lines: lines.pop(5),
        lambda lines: lines.insert(5, lines[4]),
        lambda lines: lines.insert(5, lines.pop(6)),
        lambda lines: lines.__setitem__(5, lines[20]),
        lambda lines: lines.__setitem__(5, b"{}\n"),
        lambda lines: lines.__setitem__(5, b"[]\n"),
        lambda lines: lines.__setitem__(5, b"null\n"),
        lambda lines: lines.__setitem__(5, b"[" * 100_000 + b"\n"),
    ],
    ids=["removed", "repeated", "swapped", "copied", "object", "list", "null", "deep"],
)
def test_a_line_out_of_place_is_refused_by_number(
    run_dir: Path, change: Callable[[list[bytes]], object]
) -> None:
    path = run_dir / "journal.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    change(lines)
    path.write_bytes(b"".join(lines))
    with pytest.raises(
        RunDirectoryError, match=r"line 6 of .*journal\.jsonl .* is damaged .*cut it off before"
    ):
        resumed(run_dir)


def test_the_journal_of_another_run_is_refused(run_dir: Path, tmp_path: Path) -> None:
    evolve_problem(ToyProblem(), SMALL.replace(seed=7), tmp_path / "other")
    shutil.copy(tmp_path / "other" / "journal.jsonl", run_dir)
    with pytest.raises(RunDirectoryError, match=r"journal\.jsonl needs .*state\.json"):
        resumed(run_dir)


def test_a_file_that_is_no_journal_is_left_alone(run_dir: Path) -> None:
    for name in ("journal.jsonl", "state.json"):
        (run_dir / name).unlink()
    (run_dir / "journal.jsonl").write_bytes(b"\x89PNG and more")
    with pytest.raises(RunDirectoryError, match=r"line 1 of .*it is not the beginning of a line"):
        resumed(run_dir)
    assert (run_dir / "journal.jsonl").read_bytes() == b"\x89PNG and more"


def test_a_lost_last_newline_loses_no_line(whole: Path, run_dir: Path) -> None:
    path = run_dir / "journal.jsonl"
    path.write_bytes(path.read_bytes()[:-1])
    assert resumed(run_dir)[0] == 0
    assert contents(run_dir) == contents(whole)


# The advice of the messages


def test_a_journal_that_is_cut_off_before_a_damaged_line_is_built_again(whole: Path, run_dir: Path) -> None:
    path = run_dir / "journal.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    num_cut = sum(b'"trial"' in line for line in lines[-20:])
    path.write_bytes(b"".join(lines[:-20]))
    with pytest.raises(
        RunDirectoryError, match=r"lines that state\.json accounts for, got .*delete state\.json"
    ):
        resumed(run_dir)
    (run_dir / "state.json").unlink()
    assert resumed(run_dir)[0] == num_cut > 0
    assert contents(run_dir) == contents(whole)


def test_an_emptied_journal_is_said_to_be_run_again(whole: Path, run_dir: Path) -> None:
    (run_dir / "journal.jsonl").write_bytes(b"")
    (run_dir / "state.json").unlink()
    messages: list[str] = []
    assert resumed(run_dir, messages=messages)[0] > 0
    assert "journal.jsonl does not hold it: what is missing is run again" in messages[0]
    assert contents(run_dir) == contents(whole)


@pytest.mark.parametrize(
    ("first", "then"),
    [
        ({"generations": 1}, {"generations": 2}),
        ({"generations": 2, "max_evaluations": 90}, {"generations": 2}),
        pytest.param({"generations": 4}, {"generations": 9}, marks=pytest.mark.slow),
        pytest.param({"max_evaluations": 100}, {"max_evaluations": 120}, marks=pytest.mark.slow),
        pytest.param({"time_limit_seconds": 600.0}, {"time_limit_seconds": 900.0}, marks=pytest.mark.slow),
    ],
)
def test_a_deleted_state_is_built_again_whatever_the_limits_were(
    tmp_path: Path, first: dict[str, Any], then: dict[str, Any]
) -> None:
    evolve_problem(ToyProblem(), SMALL.replace(**first), tmp_path)
    before = resumed(tmp_path, SMALL.replace(**then))[1].state
    files = contents(tmp_path)
    (tmp_path / "state.json").unlink()
    messages: list[str] = []
    num_run, result = resumed(tmp_path, SMALL.replace(**then), messages)
    assert num_run == 0 and contents(tmp_path) == files
    assert (result.state.results, result.state.archive) == (before.results, before.archive)
    assert not [message for message in messages if "did not repeat" in message]
    assert not (tmp_path / "journal.discarded.jsonl").exists()


def test_results_of_a_generation_that_went_another_way_are_used_all_the_same(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        evolve_problem(DyingProblem(82), SMALL.replace(max_evaluations=90), tmp_path)
    messages: list[str] = []
    num_run, _ = resumed(tmp_path, SMALL, messages)
    assert any("did not repeat as recorded" in message for message in messages)
    evolve_problem(other := ToyProblem(), SMALL, tmp_path / "other")
    assert contents(tmp_path)[1:] == contents(tmp_path / "other")[1:]
    assert num_run < other.num_calls - 70


# config.json and state.json


@pytest.mark.parametrize(
    ("key", "name", "value"),
    [
        ("config", "population", 7),
        ("config", "seed", 2),
        ("config", "generations", 9),
        ("config", "fitness", "geometric"),
        ("tasks", "digits", {"name": "digits"}),
        ("settings", "preset", "paper"),
        ("measured", "digits", {}),
    ],
)
def test_an_edited_config_is_refused_by_name(run_dir: Path, key: str, name: str, value: object) -> None:
    path = run_dir / "config.json"
    plain = json.loads(path.read_text())
    plain[key][name] = value
    path.write_text(json.dumps(plain, indent=2))
    for use in (lambda: resumed(run_dir), lambda: read_config(run_dir)):
        with pytest.raises(RunDirectoryError, match=r"config\.json needs .* changed or damaged since"):
            use()


def test_an_edited_config_can_be_the_settings_of_a_new_run(run_dir: Path, tmp_path: Path) -> None:
    lines = (run_dir / "config.json").read_text().replace('"population": 6', '"population": 7').splitlines()
    copy = tmp_path / "config.json"
    copy.write_text("\n".join(line for line in lines if f'"{CHECK}"' not in line))
    assert read_config(copy)["population"] == 7


@pytest.mark.parametrize("changes", [{"population": 7}, {"seed": 2}, {"max_depth": 3}])
def test_a_config_without_checksum_is_compared_with_the_state(run_dir: Path, changes: dict[str, Any]) -> None:
    plain = json.loads((run_dir / "config.json").read_text())
    plain["config"].update(changes)
    del plain[CHECK]
    (run_dir / "config.json").write_text(json.dumps(plain))
    ((name, value),) = changes.items()
    with pytest.raises(RunDirectoryError, match=rf"one run, but they differ: {name} is {value} there and"):
        resumed(run_dir, SMALL.replace(**changes))


def test_any_change_of_the_state_is_refused_with_the_advice_to_build_it_again(run_dir: Path) -> None:
    path = run_dir / "state.json"
    saved = json.loads(path.read_text())
    edits: list[Callable[[dict[str, Any]], object]] = [
        lambda plain: plain.pop("state"),
        lambda plain: plain.pop("journal_lines"),
        lambda plain: plain["state"].pop("results"),
        lambda plain: plain["state"].update(results=[], archive=[999]),
        lambda plain: plain["state"]["results"][3].__setitem__(5, "99.0"),
        lambda plain: plain["state"]["tasks"][0].update(name="fashion"),
        lambda plain: plain["state"].update(candidates=3),
        lambda plain: plain["state"]["scales"].clear(),
        lambda plain: plain.update(format=0),
        lambda plain: plain.update(format=True),
        lambda plain: plain.update(format=None),
        lambda plain: plain.clear(),
    ]
    for edit in edits:
        for is_old in (
            False,
            True,
        ):  # an old file has no checksum, but its values have to be of the right kind
            plain = json.loads(json.dumps(saved))
            edit(plain)
            if is_old:
                plain.pop(CHECK, None)
            path.write_text(json.dumps(plain))
            with pytest.raises(
                RunDirectoryError, match=r"state\.json needs .*delete it and go on with resume"
            ):
                resumed(run_dir)
            with pytest.raises(
                RunDirectoryError, match=r"state\.json needs .*delete it and go on with resume"
            ):
                load_run(run_dir, ToyProblem())


def test_an_edited_result_in_the_state_is_refused(run_dir: Path) -> None:
    path = run_dir / "state.json"
    plain = json.loads(path.read_text())
    plain["state"]["results"][3][5] += 1.0
    path.write_text(json.dumps(plain))
    with pytest.raises(RunDirectoryError, match=r"state\.json needs .*its checksum differs"):
        resumed(run_dir)


def test_a_run_without_config_is_refused_whatever_else_is_there(run_dir: Path) -> None:
    for name in ("config.json", "journal.jsonl"):
        (run_dir / name).unlink()
    with pytest.raises(
        RunDirectoryError, match=r"needs a config\.json beside its journal and state, got none"
    ):
        resumed(run_dir)


# What follows from other files, and old runs


@pytest.mark.parametrize("name", ["archive.json", "hall_of_fame.csv"])
@pytest.mark.parametrize("content", [None, b"", b"\xff\xfe", b"{}", b"rank,id\n1,2\n"])
def test_archive_and_hall_of_fame_are_written_again(
    whole: Path, run_dir: Path, name: str, content: bytes | None
) -> None:
    if content is None:
        (run_dir / name).unlink()
    else:
        (run_dir / name).write_bytes(content)
    assert resumed(run_dir)[0] == 0
    assert (run_dir / name).read_bytes() == (whole / name).read_bytes()


def test_events_are_repaired_and_go_on(run_dir: Path) -> None:
    path = run_dir / "events.jsonl"
    before = path.read_bytes()
    damaged = [b"null", b"[]", b"{}", b'{"event": 3, "message": ""}', b"\xff\xfe", b"[" * 100_000]
    path.write_bytes(before + b"\n".join([*damaged, b'{"time": "2026', b""])[:-1])
    messages: list[str] = []
    assert resumed(run_dir, messages=messages)[0] == 0
    assert messages == ["events.jsonl had 7 damaged line(s), which are now in events.discarded.jsonl"]
    assert path.read_bytes().startswith(before)
    assert all("event" in json.loads(line) for line in path.read_bytes().splitlines())
    assert (run_dir / "events.discarded.jsonl").read_bytes().count(b"\n") == 7


def make_old(run_dir: Path) -> None:
    """Makes the files of a run those of a version without checksums."""
    for name in ("config.json", "state.json", "journal.jsonl"):
        path = run_dir / name
        if not path.exists():
            continue
        documents = path.read_text().splitlines() if name == "journal.jsonl" else [path.read_text()]
        plain = [json.loads(document) for document in documents]
        for one in plain:
            for key in (CHECK, "journal_check", "max_evaluations"):
                one.pop(key, None)
        path.write_text("".join(json.dumps(one) + "\n" for one in plain))


@pytest.mark.parametrize(
    "last", [pytest.param(30, marks=pytest.mark.slow), 70, pytest.param(110, marks=pytest.mark.slow)]
)
def test_a_run_of_a_version_without_checksums_goes_on_in_silence(
    whole: Path, tmp_path: Path, last: int
) -> None:
    with pytest.raises(Killed):
        evolve_problem(DyingProblem(last), SMALL, tmp_path)
    make_old(tmp_path)
    messages: list[str] = []
    resumed(tmp_path, messages=messages)
    assert not messages

    def without_limits(run_dir: Path) -> tuple[list[object], str, str]:
        journal, *others = contents(run_dir)
        lines = [{k: v for k, v in line.items() if k != "max_evaluations"} for line in journal]  # type: ignore[attr-defined]
        return (lines, *others)

    assert without_limits(tmp_path) == without_limits(whole)
    assert resumed(tmp_path)[0] == 0


# All of it


def outcome(use: Callable[[], object]) -> object:
    """What a use of a run gives: its result, or the message with which it was refused."""
    try:
        return use()
    except RunDirectoryError as error:
        return error


@pytest.mark.parametrize("first", [0, *(pytest.param(n, marks=pytest.mark.slow) for n in range(25, 300, 25))])
def test_whatever_is_damaged_results_are_the_same_or_refused_by_name(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: int
) -> None:
    monkeypatch.setattr(writing, "_save_figures", lambda run, folder: None)
    report = writing.render_report(whole).read_text()
    for seed in range(first, first + 25):
        run_dir = Path(shutil.copytree(whole, tmp_path / str(seed) / "run"))
        damage = damage_one(run_dir, seed)
        name = damage.partition(":")[0]
        rendered = outcome(lambda run_dir=run_dir: writing.render_report(run_dir).read_text())  # type: ignore[misc]
        again = outcome(lambda run_dir=run_dir: resumed(run_dir)[0])  # type: ignore[misc]
        if isinstance(rendered, RunDirectoryError):
            assert name in str(rendered), (seed, damage)
        else:
            assert rendered == report, (seed, damage)
        if isinstance(again, RunDirectoryError):
            assert name in str(again), (seed, damage)
        else:
            assert again == 0 and contents(run_dir) == contents(whole), (seed, damage)
        shutil.rmtree(run_dir)

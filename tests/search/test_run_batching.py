"""How a run batches its fine-tunings: chosen once, written, kept on other machines, and refused if asked otherwise."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from cli_tasks import small

from jaxprune.files import CHECK, RunDirectoryError
from jaxprune.search.run_directory import RunDirectory
from jaxprune.search.search import init_search, make_problem
from jaxprune.search.settings import EvolveConfig
from jaxprune.search.task_problem import TaskProblem
from jaxprune.tasks.task_programs import TaskPrograms
from jaxprune.training.batching import Batching

CONFIG = EvolveConfig(fitness="finetune", generations=1, population=16)
CHOSEN = Batching("vmap", 4, "patches")
SCAN = {"strategy": "scan", "chunk": 1, "convolution": "patches"}


def choose(programs: TaskPrograms, sizes: Sequence[int], on_message: Callable[[str], None]) -> Batching:
    on_message(f"chosen for {sizes}")
    return CHOSEN


def never(programs: TaskPrograms, sizes: Sequence[int], on_message: Callable[[str], None]) -> Batching:
    raise AssertionError("a resumed run measures nothing")


def opened(folder: Path, settings: Mapping[str, Any] | None = None, **options: Any) -> TaskProblem:
    """Makes the problem of a run, and starts or resumes the run without training anything."""
    problem = make_problem([small()], CONFIG, folder, **options)
    with RunDirectory(folder) as run:
        run.open_run(init_search(problem, CONFIG), settings or {}, resume=True)
    return problem


def forget(folder: Path) -> None:
    """Takes the batching out of config.json, which earlier versions did not note."""
    path = folder / "config.json"
    plain = json.loads(path.read_text())
    del plain["batching"], plain[CHECK]
    path.write_text(json.dumps(plain))


def written(folder: Path) -> Any:
    return json.loads((folder / "config.json").read_text())["batching"]


def test_what_was_chosen_is_written_and_kept(tmp_path: Path) -> None:
    messages: list[str] = []

    class Listener:
        def on_message(self, message: str) -> None:
            messages.append(message)

    problem = opened(tmp_path, choose=choose, callbacks=[Listener()])
    assert written(tmp_path) == problem.batching == {"small": CHOSEN._asdict()}
    assert messages == ["chosen for (16, 10)"]  # 6 promoted to the other base, 2 elites and l2 beside them
    assert problem.programs["small"].base_trainer.batching == CHOSEN
    again = opened(tmp_path, choose=never)
    assert again.batching == problem.batching
    assert opened(tmp_path, choose=never, chunk=4, strategy="vmap").batching == problem.batching
    assert written(tmp_path) == problem.batching


def test_another_batching_is_refused_with_the_names_of_both(tmp_path: Path) -> None:
    opened(tmp_path, choose=choose)
    before = (tmp_path / "config.json").read_bytes()
    for options, complaint in (
        ({"chunk": 8}, r"other settings: batching.small.chunk was 4 and is now 8\. "),
        ({"convolution": "library"}, "batching.small.convolution was 'patches' and is now 'library'"),
        ({"strategy": "scan", "chunk": 1}, "batching.small.strategy was 'vmap' and is now 'scan'"),
    ):
        with pytest.raises(RunDirectoryError, match=complaint):
            opened(tmp_path, choose=never, **options)
    assert (tmp_path / "config.json").read_bytes() == before


def test_a_run_that_noted_nothing_goes_on_as_before(tmp_path: Path) -> None:
    for name, options, expected in (
        ("auto", {}, SCAN),
        ("vmap", {"strategy": "vmap"}, {"strategy": "vmap", "chunk": 16, "convolution": "patches"}),
    ):
        folder = tmp_path / name
        opened(folder, **options)
        forget(folder)
        with pytest.raises(RunDirectoryError, match=r"chunk was (16|1) and is now 8"):
            opened(folder, strategy="vmap", chunk=8)
        assert opened(folder, choose=never, **options).batching == {"small": expected}
        assert written(folder) == {"small": expected}


def test_the_settings_of_a_run_that_noted_nothing_count(tmp_path: Path) -> None:
    opened(tmp_path, {"batching": "auto"})
    assert opened(tmp_path, {"batching": "scan"}, strategy="scan").batching == {"small": SCAN}  # the same
    forget(tmp_path)
    with pytest.raises(RunDirectoryError, match=r"settings.batching was 'scan' and is now 'vmap'"):
        opened(tmp_path, {"batching": "vmap"}, strategy="vmap")


def test_a_chunk_without_rows_does_not_stop_a_resumed_run(tmp_path: Path) -> None:
    assert opened(tmp_path, chunk=8).batching == {"small": SCAN}
    assert opened(tmp_path, chunk=8).batching == {"small": SCAN}


def test_what_is_trained_cannot_be_batched_otherwise() -> None:
    programs = TaskPrograms(small())
    assert programs.batching.strategy == "scan"
    with pytest.raises(RuntimeError, match="settled before anything is trained"):
        programs.settle(CHOSEN)

"""Going on with a run: whatever shows the output, also one of an earlier version, or words on what has changed."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx
from tiny_task import DATA, tiny_programs, tiny_task
from toy_problem import ToyProblem

from jaxprune.files import RunDirectoryError
from jaxprune.nets import PlainConvNet
from jaxprune.search.resumption import origin_of
from jaxprune.search.run_directory import RunDirectory
from jaxprune.search.search import init_search
from jaxprune.search.settings import EvolveConfig
from jaxprune.search.task_problem import TaskProblem
from jaxprune.tasks.task_programs import TaskPrograms
from jaxprune.tasks.tasks import Schedule, Task

PRINT_FINGERPRINTS = """
import sys
sys.path.insert(0, sys.argv[1])
from tiny_task import tiny_programs
programs = tiny_programs()
print(sys.stdout.isatty(), programs.fingerprint, *programs.earlier_fingerprints)
"""


def test_a_process_on_a_terminal_has_the_fingerprints_of_one_in_a_pipe(root: Path) -> None:
    command = [sys.executable, "-c", PRINT_FINGERPRINTS, str(root / "tests" / "support")]
    ours, theirs = pty.openpty()
    environment = os.environ | {"TERM": "xterm-256color", "COLUMNS": "20"}
    process = subprocess.Popen(command, env=environment, stdin=theirs, stdout=theirs, cwd=root)
    os.close(theirs)
    text = b""
    with contextlib.suppress(OSError):  # raised when the other side has closed the terminal
        while chunk := os.read(ours, 4096):
            text += chunk
    os.close(ours)
    assert process.wait() == 0
    programs = tiny_programs()
    assert text.decode().split() == ["True", programs.fingerprint, *programs.earlier_fingerprints]


@pytest.mark.parametrize("text", ["{ a new way }", "\x1b[1m{ colours }"])
def test_fingerprints_do_not_depend_on_how_jax_prints_programs(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = tiny_programs().fingerprint
    kind = type(jax.make_jaxpr(lambda x: x)(1.0))
    monkeypatch.setattr(kind, "__str__", lambda self: text)
    monkeypatch.setattr(kind, "pretty_print", lambda self, **options: text)
    assert str(jax.make_jaxpr(lambda x: x)(1.0)) == text
    assert TaskPrograms(tiny_task()).fingerprint == expected


def net(rngs: nnx.Rngs, **options: Any) -> PlainConvNet:
    return PlainConvNet(rngs, **({"widths": (4, 6, 8)} | options))


class WithDropout(nnx.Module):
    def __init__(self, rngs: nnx.Rngs, rate: float, scale: float = 1.0, mean: float = 0.0) -> None:
        self.net, self.dropout = net(rngs), nnx.Dropout(rate, rngs=rngs)
        self.scale, self.mean = nnx.static(scale), nnx.static(mean)

    def __call__(self, images: jax.Array) -> jax.Array:
        constant = np.full((8, 8, 1), self.mean, np.float32)  # an array that is built into the code
        return self.net(self.dropout((images - constant[None]) * self.scale))


def test_networks_that_differ_in_one_number_have_different_fingerprints() -> None:
    networks = [
        net,
        lambda rngs: WithDropout(rngs, 0.1),
        lambda rngs: WithDropout(rngs, 0.2),
        lambda rngs: WithDropout(rngs, 0.2, scale=2.0),
        lambda rngs: WithDropout(rngs, 0.2, mean=0.5),
    ]
    found = [TaskPrograms(tiny_task().replace(model=model)).fingerprint for model in networks]
    assert len(set(found)) == len(networks)
    assert found[0] == tiny_programs().fingerprint


def opened(folder: Path, *tasks: Task, seed: int = 0) -> tuple[dict[str, Any], list[str]]:
    """Starts or resumes a run without training anything; returns its config.json and what was told."""
    messages: list[str] = []
    problem = TaskProblem(tasks, seed=seed)
    with RunDirectory(folder, messages.append) as run:
        run.open_run(init_search(problem, EvolveConfig(seed=seed, fitness="finetune")), {}, resume=True)
    return json.loads((folder / "config.json").read_text()), messages


def edited(folder: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    """Changes config.json into one of another version; without a checksum, as in versions that had none."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config.pop("check", None)
    edit(config)
    path.write_text(json.dumps(config))


def test_an_unchanged_task_is_resumed_without_a_word(tmp_path: Path) -> None:
    config, _ = opened(tmp_path, tiny_task())
    assert opened(tmp_path, tiny_task()) == (config, [])
    assert config["origin"]["versions"]["jax"] == jax.__version__


@pytest.mark.parametrize("where", [0, 1], ids=["in a pipe", "on a terminal"])
def test_runs_of_earlier_versions_are_resumed(where: int, tmp_path: Path) -> None:
    opened(tmp_path, tiny_task())
    old = f"{tiny_programs().earlier_fingerprints[where]}-0"

    def make_old(config: dict[str, Any]) -> None:
        del config["origin"]
        config["tasks"]["tiny"]["fingerprint"] = old

    edited(tmp_path, make_old)
    config, messages = opened(tmp_path, tiny_task())
    assert config["tasks"]["tiny"]["fingerprint"] == old  # as in the saved state
    assert config["origin"]["versions"] == {}  # nobody knows with which versions it was started
    assert opened(tmp_path, tiny_task()) == (config, messages) and not messages
    with pytest.raises(
        RunDirectoryError, match=r"settings: recipe.epochs of task tiny was 2 and is now 3\. Res"
    ):
        opened(tmp_path, tiny_task(recipe=tiny_task().recipe.replace(epochs=3)))  # type: ignore[union-attr]


def test_a_lost_fingerprint_is_written_again_if_the_task_is_the_same(tmp_path: Path) -> None:
    config, _ = opened(tmp_path, tiny_task())
    edited(tmp_path, lambda config: config["tasks"]["tiny"].pop("fingerprint"))
    assert opened(tmp_path, tiny_task()) == (config, [])
    edited(tmp_path, lambda config: (config["tasks"]["tiny"].pop("fingerprint"), config.pop("origin")))
    with pytest.raises(RunDirectoryError, match="recipe of task tiny is another, or the version of JAX"):
        opened(tmp_path, tiny_task())


def test_an_old_run_of_another_task_is_refused_in_words(tmp_path: Path) -> None:
    opened(tmp_path, tiny_task())

    def make_old(config: dict[str, Any]) -> None:
        del config["origin"]
        config["tasks"]["tiny"]["fingerprint"] = "0123456789abcdef-0"

    edited(tmp_path, make_old)
    with pytest.raises(
        RunDirectoryError,
        match=r"settings: the data, network, schedule or recipe of task tiny is another, or the version of JAX .the",
    ):
        opened(tmp_path, tiny_task())


IMAGES, LABELS = (np.array(array) for array in DATA.train)
IMAGES[0, 0, 0] += 0.5
RECIPE = tiny_task().recipe
CHANGES: dict[str, tuple[dict[str, Any], str]] = {
    "one pixel": ({"train": (IMAGES, LABELS)}, "the training or validation data of task tiny are others"),
    "a width": (
        {"model": lambda rngs: net(rngs, widths=(4, 6, 9))},
        "the network of task tiny is another",
    ),
    "dropout": ({"model": lambda rngs: WithDropout(rngs, 0.1)}, "the network of task tiny is another"),
    "the recipe": (
        {"recipe": RECIPE.replace(learning_rate=0.5)},  # type: ignore[union-attr]
        r"recipe.learning_rate of task tiny was 0.003 and is now 0.5",
    ),
    "the schedule": (
        {"schedule": Schedule(kept_fraction=0.25)},
        "schedule.kept_fraction of task tiny was 0.5 and is now 0.25",
    ),
    "calibration": ({"calibration": 60}, "calibration of task tiny was 100 and is now 60"),
    "two things": (
        {"finetune": "masked", "train": (IMAGES, LABELS)},
        "the training or validation data of task tiny are others; finetune of task tiny was 'slim' and is now 'masked'",
    ),
    "the number of bases": ({"bases": 3}, "tasks.tiny.bases was 2 and is now 3"),
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    opened(folder, tiny_task())
    return folder


@pytest.mark.parametrize(("changes", "words"), CHANGES.values(), ids=CHANGES)
def test_a_refused_resume_says_what_changed_and_how_to_go_on(
    changes: dict[str, Any], words: str, run: Path
) -> None:
    with pytest.raises(RunDirectoryError) as refused:
        opened(run, tiny_task().replace(**changes))
    assert str(refused.value) == (
        f"{run} holds a run with other settings: {words}. Resume it with the settings it was started with (only "
        "generations, max_evaluations, time_limit_seconds, force may change), or start in another directory."
    )


def test_another_seed_is_told_as_the_seed_alone(run: Path) -> None:
    with pytest.raises(RunDirectoryError, match=r"settings: seed was 0 and is now 1\. Resume"):
        opened(run, tiny_task(), seed=1)


def test_other_versions_of_libraries_are_told(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    edited(tmp_path / "run", lambda config: config["origin"]["versions"].update(jax="0.1.2"))
    config, (message,) = opened(tmp_path / "run", tiny_task())
    assert f"since this run was started (jax was 0.1.2 and is now {jax.__version__})" in message
    assert config["origin"]["versions"]["jax"] == "0.1.2"
    edited(tmp_path / "run", lambda config: config["origin"]["tasks"]["tiny"].update(network="0"))
    edited(tmp_path / "run", lambda config: config["tasks"]["tiny"].update(fingerprint="0"))
    with pytest.raises(
        RunDirectoryError,
        match=r"the network of task tiny is another \(jax was 0.1.2 and is now .*, which may be why\)",
    ):
        opened(tmp_path / "run", tiny_task())


def test_a_problem_without_identities_is_compared_by_its_fingerprints() -> None:
    assert origin_of(ToyProblem())["tasks"] == {}

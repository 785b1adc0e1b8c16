"""The trainer: strategies agree, jobs keep their order, chunks are padded, one compilation serves all."""

from __future__ import annotations

import errno
import threading
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax import nnx

from jaxprune.nets import DepthwiseNet, PlainConvNet
from jaxprune.training.batching import DEFAULT_CHUNK, Strategy
from jaxprune.training.checkpoint import load_network, save_network
from jaxprune.training.loop import Examples, batch_order, split_network
from jaxprune.training.recipes import Recipe
from jaxprune.training.trainer import Job, Trainer, default_workers, map_in_order

RECIPE = Recipe("test", "adam", 1e-2, epochs=2, batch_size=10)


class Grouped(nnx.Module):
    """A network with a convolution that cannot run as patches."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.conv = nnx.Conv(2, 4, (3, 3), feature_group_count=2, rngs=rngs)
        self.output = nnx.Linear(4, 3, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.output(self.conv(jnp.concatenate([x, x], axis=-1)).mean((1, 2)))


@pytest.fixture(scope="module")
def examples() -> Examples:
    rng = np.random.default_rng(1)
    labels = np.arange(40) % 3
    pixels = rng.normal(size=(40, 4, 4, 1)) + labels[:, None, None, None]
    return Examples(jnp.asarray(pixels, jnp.float32), jnp.asarray(labels))


def make_jobs(count: int) -> list[Job]:
    model = PlainConvNet(nnx.Rngs(0), widths=(2, 3, 4), num_classes=3, image_shape=(4, 4, 1))
    weights = split_network(model)[1]
    keys = [jax.random.key(seed) for seed in range(count)]
    return [Job(weights, batch_order(key, 40, RECIPE), key) for key in keys]


def make_trainer(examples: Examples, strategy: Strategy, **settings: Any) -> Trainer:
    model = PlainConvNet(nnx.Rngs(5), widths=(2, 3, 4), num_classes=3, image_shape=(4, 4, 1))
    return Trainer(model, RECIPE, examples, examples, strategy=strategy, **settings)


@pytest.mark.parametrize("strategy", ["loop", "vmap"])
def test_strategies_train_the_same_networks(strategy: Strategy, examples: Examples) -> None:
    jobs = make_jobs(3)
    expected = list(make_trainer(examples, "scan", evaluations=2).run(jobs))
    settings = {"chunk": 2} if strategy == "vmap" else {}
    found = list(make_trainer(examples, strategy, evaluations=2, **settings).run(jobs))
    for one, other in zip(expected, found, strict=True):
        np.testing.assert_allclose(one.accuracies, other.accuracies, atol=2.6)  # one image of forty
        for path, array in one.weights.items():
            np.testing.assert_allclose(array, other.weights[path], atol=2e-3)


def test_auto_scans_patches_and_loops_over_library_convolutions(examples: Examples) -> None:
    assert make_trainer(examples, "auto").chosen == "scan"
    depthwise = DepthwiseNet(nnx.Rngs(0), widths=(2, 3, 3, 4), num_classes=3, image_shape=(4, 4, 1))
    assert Trainer(depthwise, RECIPE, examples, examples).chosen == "scan"
    assert Trainer(Grouped(nnx.Rngs(0)), RECIPE, examples, examples).chosen == "loop"


def test_a_batching_in_use_leaves_nothing_open(examples: Examples) -> None:
    for asked, chunk, convolution, used in (
        ("auto", None, "auto", ("scan", 1, "patches")),
        ("auto", 4, "library", ("loop", 1, "library")),  # which a CPU runs slowly inside a compiled loop
        ("loop", None, "auto", ("loop", 1, "library")),
        ("loop", None, "patches", ("loop", 1, "patches")),
        ("scan", 1, "library", ("scan", 1, "library")),
        ("vmap", None, "auto", ("vmap", DEFAULT_CHUNK, "patches")),
        ("vmap", 3, "library", ("vmap", 3, "library")),
    ):
        trainer = make_trainer(examples, asked, chunk=chunk, convolution=convolution)
        assert trainer.batching == used
        assert make_trainer(examples, **trainer.batching._asdict()).batching == used
        assert trainer._has_library_convolutions() == (used[2] == "library")
    grouped = Trainer(Grouped(nnx.Rngs(0)), RECIPE, examples, examples)
    assert grouped.batching == ("loop", 1, "patches")


def test_more_members_compile_nothing(examples: Examples) -> None:
    trainer = make_trainer(examples, "vmap", chunk=2)
    list(trainer.run(make_jobs(3)))
    list(trainer.run(make_jobs(1)))
    assert trainer._vmapped._cache_size() == 1  # type: ignore[attr-defined]
    scanner = make_trainer(examples, "scan")
    list(map_in_order(lambda job: next(scanner.run([job])), make_jobs(3), workers=2))
    assert scanner._jitted._cache_size() == 1  # type: ignore[attr-defined]


def test_threads_do_not_change_results(examples: Examples) -> None:
    trainer = make_trainer(examples, "scan")
    alone = list(trainer.run(make_jobs(4)))
    together = list(map_in_order(lambda job: next(trainer.run([job])), make_jobs(4), workers=2))
    for one, other in zip(alone, together, strict=True):
        for path, array in one.weights.items():
            np.testing.assert_array_equal(array, other.weights[path])


def test_looping_keeps_the_callers_arrays(examples: Examples) -> None:
    (job,) = make_jobs(1)
    next(make_trainer(examples, "loop").run([job]))
    assert all(np.isfinite(np.asarray(array)).all() for array in job.weights.values())


def test_trainer_refuses_bad_settings(examples: Examples) -> None:
    with pytest.raises(ValueError, match=r'strategy must be "auto", "scan", "loop" or "vmap", got \'pmap\''):
        make_trainer(examples, "pmap")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="chunk must be at least 1, got 0"):
        make_trainer(examples, "vmap", chunk=0)
    with pytest.raises(
        ValueError, match="chunk is for vmap, got 2 with 'loop', which trains members one by one"
    ):
        make_trainer(examples, "loop", chunk=2)
    with pytest.raises(ValueError, match=r'convolution must be "auto", "library" or "patches", got \'fft\''):
        make_trainer(examples, "vmap", convolution="fft")


def test_map_in_order_keeps_the_order_and_uses_threads() -> None:
    seen: set[str] = set()

    def slow(item: int) -> int:
        seen.add(threading.current_thread().name)
        time.sleep(0.02 * (3 - item))
        return item

    assert list(map_in_order(slow, range(3), workers=3)) == [0, 1, 2]
    assert len(seen) > 1
    assert default_workers() >= 1


def test_map_in_order_takes_items_as_needed_and_stops_when_closed() -> None:
    taken: list[int] = []

    def items() -> object:
        for item in range(100):
            taken.append(item)
            yield item

    results = map_in_order(abs, items(), workers=2)  # type: ignore[arg-type]
    next(results)
    results.close()  # type: ignore[attr-defined]
    assert len(taken) <= 6


def test_map_in_order_passes_errors_on_and_checks_workers() -> None:
    with pytest.raises(ZeroDivisionError):
        list(map_in_order(lambda item: 1 // item, [1, 0], workers=2))
    with pytest.raises(ValueError, match="workers must be at least 1, got 0"):
        list(map_in_order(abs, [1], workers=0))


def test_a_saved_network_comes_back(tmp_path) -> None:  # type: ignore[no-untyped-def]
    weights = make_jobs(1)[0].weights
    save_network(tmp_path / "base", weights, {"accuracy": 97.25})
    loaded = load_network(tmp_path / "base", weights)
    assert loaded is not None
    assert loaded[1] == {"accuracy": 97.25}
    for path, array in weights.items():
        np.testing.assert_array_equal(array, loaded[0][path])


def test_a_full_disk_is_an_os_error(tmp_path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    weights = make_jobs(1)[0].weights

    def fail_with(message: str) -> None:
        def save(*_: object, **__: object) -> None:
            raise ValueError(message)

        monkeypatch.setattr(ocp.PyTreeCheckpointer, "save", save)

    fail_with("OUT_OF_RANGE: Failed to write 138423 bytes to file 14: no room [os_error_code='28']")
    with pytest.raises(OSError, match=r"No space left on device.*base") as raised:
        save_network(tmp_path / "base", weights, {})
    assert raised.value.errno == errno.ENOSPC
    fail_with("a mistake")
    with pytest.raises(ValueError, match="a mistake"):
        save_network(tmp_path / "base", weights, {})

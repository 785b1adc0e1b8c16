"""Training at size: interrupted runs go on bit for bit, many devices train as one, bad input is refused first."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax import nnx
from toy_training import IMAGES, LABELS, NUM_STEPS, PIXELS, RECIPE, ToyNet, evaluation_batches, toy_batches

from jaxprune.datasets.input_pipeline import Batch
from jaxprune.training import run_checkpoints
from jaxprune.training.data_parallel import data_mesh
from jaxprune.training.loop import StepState, split_network
from jaxprune.training.network_training import evaluate_network, train_network
from jaxprune.training.run_checkpoints import RunCheckpoints
from jaxprune.training.training_run import TrainingDivergedError, TrainingInterrupted

SCRIPT = Path(__file__).parents[1] / "support" / "toy_training.py"


def train(folder=None, *, batches=toy_batches, recipe=RECIPE, num_steps=NUM_STEPS, **options):
    settings = {**PIXELS, "evaluate": evaluation_batches, "evaluate_every": 10, "save_every": 10, **options}
    return train_network(ToyNet(), batches, recipe, num_steps=num_steps, checkpoint_dir=folder, **settings)


def assert_equal(one, other):
    assert one.history == other.history
    for path, array in one.weights.items():
        np.testing.assert_array_equal(array, other.weights[path])


@pytest.fixture(scope="module")
def reports():
    return []


@pytest.fixture(scope="module")
def whole(reports):
    """A run that nothing interrupts, and that saves nothing."""
    return train(on_progress=reports.append, report_every=4)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a finished run, with checkpoints after 20 and 30 steps; not to be changed."""
    folder = tmp_path_factory.mktemp("finished")
    train(folder)
    return folder


def interrupt_at(number, signal_number):
    def at_step(step):
        if step == number:
            os.kill(os.getpid(), signal_number)

    return lambda start: toy_batches(start, at_step=at_step)


class TestWholeRuns:
    def test_it_learns_and_is_evaluated_along_the_way(self, whole):
        assert [evaluation.num_done for evaluation in whole.history] == [0, 10, 20, 30]
        assert {evaluation.counts.num_examples for evaluation in whole.history} == {64}
        assert whole.history[-1].counts.top1 > 48
        assert whole.history[-1].counts.top5 == 64  # of four classes
        assert evaluate_network(whole.model, evaluation_batches(), **PIXELS) == whole.history[-1].counts

    def test_the_callers_model_stays_as_it_was(self, whole):
        model = ToyNet()
        start = split_network(model)[1]
        assert not np.array_equal(whole.weights["kernel",], start["kernel",])
        np.testing.assert_array_equal(model.kernel[...], start["kernel",])

    def test_reports_name_losses_rates_and_speed(self, whole, reports):
        first, last = reports[0], reports[-1]
        assert (first.num_done, first.loss, first.accuracy, first.learning_rate) == (0, None, None, None)
        assert [report.num_done for report in reports] == [0, 4, 8, 10, 12, 16, 20, 24, 28, 30]
        assert last.loss < reports[1].loss
        assert 0 < last.learning_rate < reports[2].learning_rate <= 0.2
        assert last.evaluation == whole.history[-1]
        assert reports[1].speed.images == 4 * 16

    def test_a_finished_run_is_read_and_not_repeated(self, finished, whole):
        def batches(start):
            raise AssertionError("no step is left")

        assert_equal(train(finished, batches=batches), whole)

    def test_numbers_of_numpy_are_the_same_run(self, finished, whole):
        numbers = {name: tuple(np.float32(value)) for name, value in PIXELS.items()}
        assert_equal(train(finished, num_steps=np.int64(NUM_STEPS), seed=np.int64(0), **numbers), whole)


class TestInterruptedRuns:
    def test_after_a_kill_it_ends_with_the_same_weights(self, tmp_path, whole):
        done = subprocess.run([sys.executable, SCRIPT, tmp_path], capture_output=True, timeout=240)
        assert done.returncode == -signal.SIGKILL, done.stderr.decode()
        assert (tmp_path / "10").is_dir() and not (tmp_path / "20").exists()
        assert_equal(train(tmp_path), whole)

    def test_sigterm_saves_and_leaves(self, tmp_path, whole):
        number = signal.SIGTERM
        before = signal.getsignal(number)
        with pytest.raises(
            TrainingInterrupted, match=r"after 20 of 30 steps and saved in .*Start it again"
        ) as caught:
            train(tmp_path, batches=interrupt_at(19, number), save_every=1000)
        assert caught.value.exit_status == 128 + number
        assert signal.getsignal(number) is before
        assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["20"]
        assert_equal(train(tmp_path), whole)  # also with the evaluation that was due when it had to leave


class TestDamagedCheckpoints:
    def damage(self, folder, tmp_path, *steps, part="state"):
        copy = tmp_path / "copy"
        subprocess.run(["cp", "-r", folder, copy], check=True)
        for step in steps:
            files = [path for path in (copy / step / part).rglob("*") if path.is_file()]
            largest = max(files, key=lambda path: path.stat().st_size)
            content = bytearray(largest.read_bytes())
            content[len(content) // 3 : len(content) // 3 + 40] = bytes(40)
            largest.write_bytes(content)
        return copy

    @pytest.mark.parametrize("part", ["state", "record"])
    def test_the_one_before_is_used_with_a_warning(self, finished, tmp_path, whole, part):
        copy = self.damage(finished, tmp_path, "30", part=part)
        with pytest.warns(
            UserWarning, match=r"after 30 steps in .* is damaged: .* from the one after 20 steps"
        ):
            found = train(copy)
        assert_equal(found, whole)
        assert_equal(train(copy), whole)

    def test_nothing_is_begun_anew_without_being_asked(self, finished, tmp_path):
        copy = self.damage(finished, tmp_path, "20", "30")
        with pytest.raises(
            ValueError, match=r"whole checkpoint, got .* all are damaged: after 30 steps.*Remove this folder"
        ):
            train(copy)
        assert (copy / "30").is_dir()


def test_a_lack_of_memory_is_no_damage(tmp_path, monkeypatch):
    state = StepState({("kernel",): np.zeros(10, np.float32)}, ())
    with RunCheckpoints(tmp_path, {}, state) as checkpoints:
        checkpoints.save(1, jax.tree.map(jax.numpy.asarray, state), [])
        checkpoints.wait()
        restore = ocp.CheckpointManager.restore
        for part in ("record", "state"):

            def fail(self, step, args, part=part):
                if part in args:
                    raise MemoryError
                return restore(self, step, args=args)

            monkeypatch.setattr(ocp.CheckpointManager, "restore", fail)
            with pytest.raises(MemoryError):
                checkpoints.restore()
        monkeypatch.undo()
        assert checkpoints.restore().num_done == 1


def test_room_is_needed_for_the_checkpoints_that_are_not_there_yet(tmp_path, monkeypatch):
    needed: list[int] = []
    monkeypatch.setattr(run_checkpoints, "check_room", lambda folder, num_bytes: needed.append(num_bytes))
    state = StepState({("kernel",): np.zeros(10, np.float32)}, ())
    for name in ("first", "10", "20"):
        (tmp_path / name).mkdir()
        with RunCheckpoints(tmp_path, {}, state):
            pass
    assert needed == [120, 80, 40]


class TestRefusals:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"recipe": RECIPE.replace(learning_rate=0.1)}, "recipe learning_rate was 0.2 and is 0.1"),
            ({"data": "other"}, "data was '' and is 'other'"),
            ({"num_steps": 40}, "num_steps was 30 and is 40"),
            ({"std": (0.5,)}, r"std was \[0.25\] and is \[0.5\]"),
        ],
    )
    def test_a_checkpoint_of_another_run(self, finished, options, message):
        with pytest.raises(ValueError, match=f"of another one: {message}. Choose another folder"):
            train(finished, **options)

    def test_a_checkpoint_of_other_starting_weights(self, finished):
        model = ToyNet()
        model.output[...] = model.output[...] * 2
        with pytest.raises(ValueError, match=r"of another one: starting weights was '\w+' and is '"):
            train_network(model, toy_batches, RECIPE, num_steps=NUM_STEPS, **PIXELS, checkpoint_dir=finished)

    def test_numbers_out_of_range_are_named_at_once(self):
        with pytest.raises(
            ValueError, match=r"num_steps to be .* >= 1, got 0; save_every .* got -1; seed .* got 1.5"
        ):
            train(num_steps=0, save_every=-1, seed=1.5)

    def test_too_few_batches(self):
        with pytest.raises(ValueError, match=r"batches of the steps 0 to 29, got none for step 5"):
            train(batches=lambda start: toy_batches(start, num_steps=5), evaluate=None)

    def test_batches_of_another_size(self):
        with pytest.raises(ValueError, match="batches need 16 images, labels and weights, got 8, 8, 8"):
            train(batches=lambda start: toy_batches(start, batch_size=8), evaluate=None)

    @pytest.mark.parametrize("label", [4, -1])  # a loss with smoothed labels would be finite
    def test_labels_that_are_no_class_of_the_network(self, tmp_path, label):
        def batches(start):
            for batch in toy_batches(start):
                yield batch._replace(labels=np.where(np.arange(16) == 3, label, batch.labels))

        with pytest.raises(
            ValueError, match=r"got 1 others among the 16 examples of step 0\. Make the network with as many"
        ):
            train(tmp_path, batches=batches, evaluate=None, save_every=1)
        assert not (tmp_path / "1").exists()

    def test_a_mesh_without_the_axis(self):
        with pytest.raises(ValueError, match='axis "data", over which batches are split, got the axes model'):
            data_mesh(jax.sharding.Mesh(np.array(jax.devices()), ("model",)))

    def test_divergence_names_step_and_learning_rate_and_is_not_saved(self, tmp_path):
        wild = RECIPE.replace(learning_rate=1e30, warmup=0, schedule="constant")
        with pytest.raises(
            TrainingDivergedError, match=r"loss of step \d of 30 is (nan|inf), at a learning rate of 1e\+30"
        ):
            train(tmp_path, recipe=wild, evaluate=None)
        assert not (tmp_path / "10").exists()


class Flat(nnx.Module):
    """Logits are the pixels themselves."""

    def __call__(self, x: jax.Array) -> jax.Array:
        return x[:, 0, 0]


class TestEvaluateNetwork:
    UNCHANGED = {"mean": (0.0,), "std": (1 / 255,)}

    def count(self, rows, labels, weights):
        images = np.array(rows, np.uint8)[:, None, None, :]
        batch = Batch(images, np.array(labels, np.int32), np.array(weights, np.float32))
        return tuple(evaluate_network(Flat(), [batch], **self.UNCHANGED))

    def test_first_and_first_five_by_hand(self):
        row = [60, 50, 40, 30, 20, 10, 0]
        assert self.count([row] * 4, [0, 4, 5, 0], [1, 1, 1, 0]) == (1, 2, 3)

    def test_equal_logits_are_ordered_by_class(self):
        assert self.count([[9] * 7] * 4, [0, 4, 5, 6], [1, 1, 1, 1]) == (1, 2, 4)

    def test_padding_has_no_label(self):
        assert self.count([[9] + [0] * 6] * 4, [0, -1, -1, 7], [1, 0, 0, 1]) == (1, 1, 2)


def test_examples_of_weight_zero_do_not_change_the_loss():
    def batches(start, *, label):
        labels = np.where(np.arange(16) < 8, LABELS[:16], label).astype(np.int32)
        yield Batch(IMAGES[:16], labels, (np.arange(16) < 8).astype(np.float32))

    found = []
    for label in (0, -1):
        reports = []
        train(
            batches=lambda start, label=label: batches(start, label=label),
            num_steps=1, evaluate=None, on_progress=reports.append,
        )  # fmt: skip
        found.append((reports[-1].loss, reports[-1].accuracy))
    assert found[0] == found[1]


@pytest.mark.slow
def test_eight_devices_train_as_one():
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=8"
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, SCRIPT, "devices"], capture_output=True, text=True, env=environment, timeout=240
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    one, eight = found["1"], found["8"]
    assert len(one["losses"]) == 60
    assert one["losses"][-1] < 0.7 * one["losses"][0]
    np.testing.assert_allclose(eight["losses"], one["losses"], atol=1e-5, rtol=0)
    assert eight["counts"] == one["counts"]
    assert "divisible among the 8 devices, got 12. Use recipe.scaled_to(16)" in found["error"]


def run_two_processes(folder, last_step):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    environment["XLA_FLAGS"] += " --xla_force_host_platform_device_count=2"
    started = [
        subprocess.Popen(
            [sys.executable, SCRIPT, folder, str(rank), port, str(last_step)], env=environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for rank in (0, 1)
    ]  # fmt: skip
    ended = [process.communicate(timeout=200) for process in started]
    assert [process.returncode for process in started] == [0, 0], ended
    return [json.loads(output.splitlines()[-1]) for output, _ in ended]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_notice_to_one_of_two_processes_saves_and_ends_both(tmp_path):
    whole = run_two_processes(tmp_path / "whole", -1)
    assert whole[0] == whole[1]
    for status, message in run_two_processes(tmp_path / "stopped", 13):
        assert status == 128 + signal.SIGTERM
        assert "of 30 steps and saved in" in message
    assert run_two_processes(tmp_path / "stopped", -1) == whole

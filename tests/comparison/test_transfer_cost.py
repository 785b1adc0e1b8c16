"""Costs are counted from shapes: FLOPs, disk and memory."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from toy_transfer import FUNCTION, RECIPE, settings

from jaxprune.comparison.transfer_cost import TransferCost, check_resources, device_memory, transfer_cost
from jaxprune.comparison.transfer_setup import set_up_transfer


def test_the_cost_of_two_dense_layers_by_hand():
    """5 x 8 + 8 x 2 = 56 multiply-adds, 28 with 4 channels; 66 and 34 parameters; 60 images, batches of 20."""
    cost = transfer_cost(set_up_transfer(FUNCTION, **settings()))
    assert cost.base_flops == 2 * 6 * 56 * 60 * 3
    assert cost.finetune_flops == 2 * 4 * 6 * 28 * 60 * RECIPE.epochs  # function, l1, random, scratch
    copies = 4  # weights, gradients and two moments of Adam
    assert cost.disk_bytes == 4 * (2 * 66 + 8 * 34 + 3 * copies * 66)
    assert cost.step_bytes == 4 * copies * 66 + 3 * 4 * (8 + 2) * 20
    assert cost.host_bytes == 100 * 5 * 4 + 60 * 5 * 4


def test_given_weights_cost_no_training(tmp_path):
    setup = set_up_transfer(FUNCTION, **settings())
    given = SimpleNamespace(**{**vars(setup.settings), "base_recipe": None})
    cost = transfer_cost(
        SimpleNamespace(settings=given, structure=setup.structure, data=setup.data, counts=setup.counts)
    )
    assert cost.base_flops == 0 and cost.finetune_flops > 0


def test_too_little_disk_or_memory_is_refused(tmp_path):
    check_resources(TransferCost(0, 0, 10, 10, 0), tmp_path / "new", memory_bytes=10)
    with pytest.raises(
        ValueError, match=r"needs about 0.00 GiB on each device, got 0.00 GiB. Use a smaller batch"
    ):
        check_resources(TransferCost(0, 0, 10, 11, 0), tmp_path, memory_bytes=10)
    with pytest.raises(ValueError, match=r"GiB on the disk of .* free. Free some space"):
        check_resources(TransferCost(0, 0, 2**80, 0, 0), tmp_path)


def test_a_cpu_does_not_tell_its_memory():
    assert device_memory() is None or device_memory() > 0

"""What the experiment runs: LeNet-5 on Fashion-MNIST at half its multiply-adds, by one command for each recipe."""

from __future__ import annotations

_SHARED = (
    *("--network", "lenet5", "--data", "fashion", "--metric", "l2", "--macs-fraction", "0.5"),
    *(
        "--epochs",
        "4",
        "--base-recipe",
        "adam_base_fashion",
        "--base-epochs",
        "8",
        "--seeds",
        "3",
        "--scratch",
    ),
)
"""From scratch means 8 + 4 epochs."""

CASES = {
    "lenet5-fashion": (*_SHARED, "--recipe", "adam_fashion"),
    "lenet5-fashion-cosine": (*_SHARED, "--recipe", "adam_base_fashion"),
}
"""Case -> options of `jaxprune prune`; the two recipes differ in the schedule, a constant rate or a cosine."""

REHEARSAL = ("--epochs", "1", "--base-epochs", "1", "--seeds", "1")
"""The whole path in a minute."""

"""What the experiment runs: the whole preset, its rehearsal, and parts of the data sets at a small scale."""

from __future__ import annotations

PART_TASKS = {"mnist": "parts:mnist_part", "cifar": "parts:cifar_part"}
"""The paper's networks, schedules and recipes on parts of the data sets, under names of their own."""

WHOLE = ("--preset", "paper")
"""Everything as in the paper: 40 x 10, 100 epochs a round."""

REHEARSAL = (
    *("--preset", "paper", "--scale", "0.01", "--generations", "2", "--population", "2", "--elites", "0"),
    *("--extra-bases", "0", "--final-bases", "1"),
)
"""The whole path in minutes: one epoch of one batch a round, two generations of two functions, and the report."""

PARTS = (
    *(
        "--preset",
        "paper",
        "--scale",
        "0.1",
        "--base-epochs",
        "30",
        "--generations",
        "3",
        "--population",
        "4",
    ),
    *("--elites", "1", "--extra-bases", "0", "--final-bases", "1"),
)
"""A tenth of the images and of the epochs of fine-tuning, base networks of 30 epochs, and a short search."""

REHEARSAL_IMAGES = {"mnist": (250, 50), "cifar10": (160, 50)}
"""Training and test images that the rehearsal writes: one batch of each set is left beside the validation images."""

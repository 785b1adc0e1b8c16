"""What the experiment runs: the whole preset, its rehearsal, and parts of the data sets at a small scale."""

from __future__ import annotations

TASKS = ("mnist-lenet5", "cifar10-vgg16")
"""The paper's tasks, on the whole data sets."""

PART_TASKS = ("parts:mnist_part", "parts:cifar_part")
"""The same networks, schedules and recipes on parts of the data sets, under names of their own."""

WHOLE = ("--preset", "paper")
"""Everything as in the paper: 40 x 10, 100 epochs a round."""

REHEARSAL = (
    *("--preset", "paper", "--scale", "0.01", "--generations", "2", "--population", "3", "--elites", "1"),
    *("--extra-bases", "0", "--final-bases", "1"),
)
"""The whole path in minutes: one epoch of one batch a round, two generations of three functions, and the report."""

PARTS = (
    *(
        "--preset",
        "paper",
        "--scale",
        "mnist-part=0.1,cifar-part=0.01",
        "--generations",
        "3",
        "--population",
        "4",
    ),
    *("--elites", "1", "--extra-bases", "0", "--final-bases", "1"),
)
"""What two busy cores do in a quarter of an hour; options of the command line come on top."""

REHEARSAL_IMAGES = {"mnist": (250, 50), "cifar10": (160, 50)}
"""Training and test images that the rehearsal writes: one batch of each set is left beside the validation images."""

"""What the experiment measures, simulates, and assumes where nothing was measured."""

from __future__ import annotations

DEVICES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
"""Numbers of devices that are simulated."""

CHUNKS = (1, 4, 16)
"""Members on one device whose rows are timed."""

FULL_CHUNK = 16
"""Members on one device at which the given speed of a device holds."""

TIMED = ("digits", "digits-deep", "digits-dw")
"""Tasks of the preset quick, whose rows are timed."""

STAND_INS = {"mnist-lenet5": 60_000, "cifar10-vgg16": 50_000}
"""Tasks of the preset paper, which are counted, and a step of which is timed: training images, a fifth of which becomes
validation images."""

ASSUMED = {"sigma": 0.02, "deaths": 1.0, "restart": 60.0, "gain": 1.0}
"""The slowness of devices varies by 2 %, a host dies once in 1,000 hours, a restart takes a minute, and a chunk is as
fast as its members one by one. Nobody measured these; the options of the same names replace them."""

REPORTED_SCORING = {"cifar10-vgg16": 33.0}
"""Seconds in which a plan is made on one base network where layers are scored in sequence, from the rehearsal of
experiments/paper_evolution on two busy CPU cores."""

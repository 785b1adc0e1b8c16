"""What the experiment runs: the quick preset, five seeds, all controls."""

from __future__ import annotations

SEEDS = (0, 1, 2, 3, 4)
"""Run seeds; base networks, data orders and proposals all follow from them, so every run has bases of its own."""

ARGUMENTS = ("--preset", "quick", "--controls", "full", "--quiet")
"""Passed on to `jaxprune evolve`; full controls add a random search of equal budget and the whole library."""

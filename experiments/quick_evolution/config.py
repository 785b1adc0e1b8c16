"""What the experiment runs: the quick preset of the time, five seeds, all controls."""

from __future__ import annotations

SEEDS = (0, 1, 2, 3, 4)
"""Run seeds; base networks, data orders and proposals all follow from them, so every run has bases of its own."""

ARGUMENTS = (
    *("--fitness", "finetune", "--generations", "10", "--population", "14"),
    *("--task", "digits", "--task", "digits-deep", "--task", "fashion", "--unseen", "none"),
    *("--bases", "digits=4,digits-deep=4,fashion=2", "--extra-bases", "digits=2,digits-deep=2,fashion=0"),
    *("--final-bases", "digits=8,digits-deep=8,fashion=5", "--controls", "full", "--quiet"),
)
"""Passed on to `jaxprune evolve`; full controls add a random search of equal budget and the whole library."""

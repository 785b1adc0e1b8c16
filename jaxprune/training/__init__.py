"""Datasets, recipes, training loops and checkpoints."""

"""Flax NNX networks of any width, and what they cost."""

"""Evolve pruning functions and use them to make Flax networks smaller."""

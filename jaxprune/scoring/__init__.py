"""Formulas and operands become scores: evaluators, the compiled function, metrics, rankings, and their status."""

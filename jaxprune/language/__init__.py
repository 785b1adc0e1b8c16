"""The language of pruning functions: typed expressions over operands, written as ordinary infix text."""

# These modules register the built-in operators, which the formulas of the library need.
from jaxprune.language import basic_operators, matrix_operators  # isort: split

from jaxprune.language import library

__all__ = ["basic_operators", "library", "matrix_operators"]

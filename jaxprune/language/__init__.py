"""The language of pruning functions: typed expressions over operands, written as ordinary infix text."""

# Importing these registers the built-in operators and the named functions.
from jaxprune.language import basic_operators, library, matrix_operators

__all__ = ["basic_operators", "library", "matrix_operators"]

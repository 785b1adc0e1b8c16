"""The language of pruning functions: typed expressions over operands, written as ordinary infix text."""

# Importing these registers the built-in operators.
from jaxprune.language import arithmetic, matrices, reductions

__all__ = ["arithmetic", "matrices", "reductions"]

"""The language of pruning functions: typed expressions over operands, written as ordinary infix text."""

from jaxprune.language import arithmetic as arithmetic  # importing these three registers the built-in operators
from jaxprune.language import matrices as matrices
from jaxprune.language import reductions as reductions

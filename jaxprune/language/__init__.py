"""The language of pruning functions: typed expressions over operands, written as ordinary infix text."""

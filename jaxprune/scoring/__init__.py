"""From operands to scores: moments, the batch evaluator, the compiled single function, ranking."""

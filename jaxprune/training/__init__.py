"""Training: recipes, the training loop, many networks at once, checkpoints."""

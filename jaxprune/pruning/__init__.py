"""From scores to a smaller network: budgets, plans, masks and slimming."""

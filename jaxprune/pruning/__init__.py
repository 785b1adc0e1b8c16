"""From scores to a smaller network: groups, observation, plans, masks, slimming."""

"""Tasks: what gives a pruning function a fitness, with the base networks and the programs that this needs."""

"""Fair comparisons of pruning functions, and calibrations of the tasks that they are compared on."""

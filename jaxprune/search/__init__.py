"""The evolutionary search for pruning functions, and the run directory that keeps it on the disk."""

"""Networks that leave the process: saved and loaded, exported, and measured beside the dense ones."""

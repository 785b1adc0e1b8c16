"""Several processes, one run: joining them, messages between them, shared work, and what happens when one dies."""

"""Several processes, one search: joining them, messages between them, shared work, and what happens when one dies."""

"""What a search shows while it runs, and the report of a finished run."""

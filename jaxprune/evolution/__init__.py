"""Tasks and fitness, population, search and journal."""

"""Control groups of containers: usage, limits, and moving processes."""

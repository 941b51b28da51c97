"""Creating, starting, stopping, changing and deleting instances, one module per verb."""

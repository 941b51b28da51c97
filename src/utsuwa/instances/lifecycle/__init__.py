"""Creating, starting, stopping, changing and deleting instances, one module a verb."""

"""Commands inside of containers, and their consoles."""

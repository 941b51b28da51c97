"""Commands in containers, and their consoles."""

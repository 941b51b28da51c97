"""The guest API: what an instance learns of itself, through a socket inside of it."""

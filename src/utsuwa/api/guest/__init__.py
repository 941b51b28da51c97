"""The guest API: its routes, and the sockets on which instances reach it."""

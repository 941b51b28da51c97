"""Files of the daemon's own and of containers, reached by handles that cannot be left."""

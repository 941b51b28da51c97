"""Access to files of the daemon and of containers that cannot escape from a given directory."""

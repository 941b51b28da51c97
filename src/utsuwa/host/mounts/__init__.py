"""Mounts, loop devices and the user namespaces that id-mapped mounts need."""

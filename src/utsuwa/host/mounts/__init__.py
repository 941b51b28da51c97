"""Mounts, loop devices and the user namespaces for idmapped mounts."""

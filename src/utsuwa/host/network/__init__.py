"""Interfaces, bridges, routes and traffic control of the host. Blocking: call in threads."""

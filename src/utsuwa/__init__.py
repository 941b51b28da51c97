"""Utsuwa: a system-container manager with the LXD REST API on liblxc."""

__version__ = "0.1.0"

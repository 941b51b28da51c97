"""Utsuwa: a system-container manager with the LXD REST API on liblxc."""

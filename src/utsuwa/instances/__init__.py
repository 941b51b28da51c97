"""Instances: the manager and shared modules; the verbs are in `lifecycle` and `commands`."""

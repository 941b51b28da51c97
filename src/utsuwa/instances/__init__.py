"""Instances: the manager and what its rooms share; the verbs are in `lifecycle` and `commands`."""

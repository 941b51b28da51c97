"""Snapshots of instances: taken, changed, deleted, restored, and taken and deleted by schedule."""

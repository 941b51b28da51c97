"""Instances, one module a verb."""

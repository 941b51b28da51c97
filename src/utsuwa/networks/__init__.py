"""Managed networks."""

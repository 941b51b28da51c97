"""Errors, rollback, locks, names, units, config-key tables: what every layer uses."""

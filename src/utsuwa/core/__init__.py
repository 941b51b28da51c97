"""Errors, rollback, locks, names, units, config-key tables: the base of every layer."""

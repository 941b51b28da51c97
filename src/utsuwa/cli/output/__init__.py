"""Output: tables, YAML, progress, units."""

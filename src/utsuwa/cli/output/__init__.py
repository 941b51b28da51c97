"""How answers are printed: tables, YAML, progress, units."""

"""Storage drivers, one module each."""

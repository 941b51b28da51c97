"""Moving instances between hosts."""

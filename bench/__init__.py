"""Utsuwa measured beside its peers, on one machine, turn by turn."""

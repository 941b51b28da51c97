"""Background operations, events, scheduled work."""

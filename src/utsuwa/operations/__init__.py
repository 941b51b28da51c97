"""Background operations, events, scheduled tasks."""

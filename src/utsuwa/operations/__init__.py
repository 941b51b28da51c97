"""Background operations and events."""

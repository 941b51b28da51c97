"""Command lines: what commands are, how words are taken apart, help and completion."""

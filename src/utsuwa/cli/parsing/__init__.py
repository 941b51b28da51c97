"""Command lines: records of commands, parsing, help and completion."""

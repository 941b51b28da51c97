"""The command `utsuwa`: commands are tables in `commands`, whose modules are loaded on demand."""

"""The command `utsuwa`: commands as tables in `commands`, each module loaded only when it is called."""

"""The command `utsuwa`: commands as tables, one module a group, each loaded only when it is called."""

"""The REST API from the client's side: connections, remotes, operations.

Time to import is what people feel of a command, so nothing here loads `dataclasses`, `pathlib`, `typing`,
`urllib` or `ssl` on the way of a local `utsuwa list`; what needs them imports them where it does.
"""

"""Client library for the REST API: connections, remotes, operations.

Import time dominates the run time of a command, so a local `utsuwa list` must not load `dataclasses`,
`pathlib`, `typing`, `urllib` or `ssl`; code that needs them imports them locally.
"""

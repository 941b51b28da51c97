"""How many descriptors may be open: the daemon keeps two for each container that runs, and sockets."""

from __future__ import annotations

import resource

_given: list[tuple[int, int]] = []


def raise_limit() -> None:
    """Let this process have as many as it may; what it was given before stays known for others."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        _given[:] = [(soft, hard)]


def given() -> tuple[int, int] | None:
    """The soft and the hard limit from before; None where they are in force."""
    return _given[0] if _given else None

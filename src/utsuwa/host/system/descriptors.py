"""The limit on open descriptors: the daemon keeps two per running container, and sockets."""

from __future__ import annotations

import resource

_original: list[tuple[int, int]] = []


def raise_limit() -> None:
    """Raise this process's limit to the maximum; the original one is remembered for child processes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        _original[:] = [(soft, hard)]


def original_limit() -> tuple[int, int] | None:
    """Return the original soft and hard limit; None if they are unchanged."""
    return _original[0] if _original else None

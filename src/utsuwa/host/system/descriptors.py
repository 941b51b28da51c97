"""Open descriptors: the daemon's limit, as it keeps two per running container, and those it has inherited."""

from __future__ import annotations

import os
import resource
from contextlib import suppress
from pathlib import Path

_original: list[tuple[int, int]] = []


def raise_limit() -> None:
    """Raise this process's limit to the maximum; the original one is remembered for child processes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        _original[:] = [(soft, hard)]


def keep_inherited() -> None:
    """Keep descriptors that whoever started this process has left open from all programs that it starts.

    A command in a container could otherwise use them: one of a directory leads out of the container.
    """
    for name in [entry.name for entry in Path("/proc/self/fd").iterdir()]:
        if int(name) > 2:
            with suppress(OSError):  # that of the listing itself
                os.set_inheritable(int(name), False)


def original_limit() -> tuple[int, int] | None:
    """Return the original soft and hard limit; None if they are unchanged."""
    return _original[0] if _original else None

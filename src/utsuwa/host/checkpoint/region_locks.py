"""Locks of regions of files (fcntl) that CRIU loses: the kernel releases them when a process closes a file.

CRIU opens a mapped file again to map it, and closes it when it has restored the locks. SQLite in WAL mode and
LMDB rely on such locks: without them, another process takes a database that is in use for one that is not.
"""

from __future__ import annotations

from pathlib import Path


def is_lost(process: Path, descriptor: str, path: str) -> bool:
    """Return whether a process (its directory in /proc) holds one on an open file that it has mapped.

    Raises OSError if the process has ended.
    """
    info = (process / "fdinfo" / descriptor).read_text(errors="replace")
    if not any(line.startswith("lock:") and " POSIX " in line for line in info.splitlines()):
        return False
    maps = (process / "maps").read_text(errors="replace").splitlines()
    return any(line.endswith(f" {path}") for line in maps)

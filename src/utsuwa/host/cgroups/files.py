"""Reading the small files of cgroupfs without raising: what is missing counts as empty. Blocking."""

from __future__ import annotations

import os


def read(path: str, size: int) -> bytes:
    """Return at most `size` bytes of a file in one system call; empty if it cannot be read."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        return os.read(fd, size)
    except OSError:
        return b""
    finally:
        os.close(fd)


def number(text: bytes | str) -> int:
    """Return a number, 0 for what is none."""
    try:
        return int(text)
    except ValueError:
        return 0

"""YAML on standard input for commands that create something."""

from __future__ import annotations

import os
import select
import stat
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def given() -> dict[str, Any]:
    """Return the mapping on standard input; empty if it is a terminal or has no data. Raises UsageError."""
    if sys.stdin is None or sys.stdin.isatty() or not (text := _piped()):
        return {}
    from utsuwa.cli import yaml_in

    return yaml_in.parse(text)


def _piped() -> str:
    """Return standard input if it is a file or a pipe with data.

    The standard input of a job without terminal may be an open pipe without a writer: do not wait for it.
    """
    mode = os.fstat(0).st_mode
    if stat.S_ISREG(mode):
        return sys.stdin.read()
    if stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode):
        return sys.stdin.read() if select.select([0], [], [], 0.1)[0] else ""
    return ""

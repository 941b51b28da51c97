"""Errors of commands."""

from __future__ import annotations

from utsuwa.core.errors import UtsuwaError


class UsageError(UtsuwaError):
    """The command line is invalid."""

    key = "usage"


class CommandFailed(UtsuwaError):
    """The command failed; the message says why."""

    key = "command-failed"

"""How a command ends that does not end well."""

from __future__ import annotations

from utsuwa.core.errors import UtsuwaError


class UsageError(UtsuwaError):
    """The command line itself is wrong."""

    key = "usage"


class CommandFailed(UtsuwaError):
    """What was asked for could not be done; the sentence says why."""

    key = "command-failed"

"""Records of the events websocket."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import msgspec


class Event(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One event; `metadata` depends on the type: an operation, a lifecycle record, a log record."""

    type: str
    timestamp: datetime
    metadata: Any
    location: str = ""
    project: str = ""


class Requestor(msgspec.Struct, kw_only=True):
    """The caller whose request caused an event."""

    username: str
    protocol: str
    address: str = ""


class Lifecycle(msgspec.Struct, kw_only=True, omit_defaults=True):
    """`action` happened to the object whose URL is `source`."""

    action: str
    source: str
    context: dict[str, Any] | None = None
    requestor: Requestor | None = None


class Logging(msgspec.Struct, kw_only=True):
    """A line of the daemon's log."""

    message: str
    level: str
    context: dict[str, str]

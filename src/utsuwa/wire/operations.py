"""Records of `/1.0/operations`."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import msgspec


class Operation(msgspec.Struct, kw_only=True):
    """One background operation, with the same fields as in LXD."""

    id: str
    class_: str = msgspec.field(name="class")
    description: str
    created_at: datetime
    updated_at: datetime
    status: str
    status_code: int
    resources: dict[str, list[str]] | None
    metadata: dict[str, Any] | None
    may_cancel: bool
    err: str
    location: str = "none"

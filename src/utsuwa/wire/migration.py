"""Records of migrations between servers; fields are named as in JSON."""

from __future__ import annotations

import msgspec


class MigrationTarget(msgspec.Struct, kw_only=True):
    """The operation of another server that waits for a migration: its URL, secrets, and certificate (PEM)."""

    operation: str = ""
    secrets: dict[str, str] | None = None
    certificate: str = ""

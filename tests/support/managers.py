"""What unit tests of managers share: a hub that remembers events, and instances in the database."""

from __future__ import annotations

from typing import Any

from tests.support.instances import instance_row
from utsuwa.db import instances as instance_rows
from utsuwa.db.database import Database
from utsuwa.operations.events import EventHub

ROOT = {"type": "disk", "path": "/", "pool": "p"}


class Events(EventHub):
    """A hub that remembers lifecycle events."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, str, str]] = []
        self.contexts: list[Any] = []

    def publish_lifecycle(
        self,
        action: str,
        source: str,
        project: str = "",
        context: Any = None,
    ) -> None:
        self.seen.append((action, source, project))
        self.contexts.append(context)


async def use(database: Database, name: str, *profiles: str, project: str = "default", **config: str) -> None:
    """Store an instance with these profiles and a root disk of 1 GiB; underscores in keys stand for dots."""
    row = instance_row(
        name,
        project,
        config={key.replace("_", "."): value for key, value in config.items()},
        devices={"root": {**ROOT, "size": "1GiB"}},
        profiles=list(profiles),
    )
    await database.write("test", instance_rows.insert, row)

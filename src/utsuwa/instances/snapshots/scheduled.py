"""Snapshots by schedule and the deletion of expired ones: a look at instances and volumes each minute."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from datetime import datetime
from typing import Any

from utsuwa.core import clock
from utsuwa.core.config_keys import parse_bool
from utsuwa.core.errors import NotFound
from utsuwa.core.refs import InstanceRef
from utsuwa.core.schedules import is_due, runs_at_start
from utsuwa.db import instances as instance_rows
from utsuwa.db import snapshots as snapshot_rows
from utsuwa.instances.context import Context, load_all
from utsuwa.instances.model import Loaded
from utsuwa.instances.snapshots import change, take
from utsuwa.wire.snapshots import SnapshotsPost

log = logging.getLogger(__name__)


class ScheduledSnapshots:
    """Takes snapshots by `snapshots.schedule`, and deletes those that have expired."""

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx
        self._task: asyncio.Task[None] | None = None

    def begin(self) -> None:
        self._task = asyncio.create_task(self._run())

    async def end(self) -> None:
        """A snapshot that is being taken is undone."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(60 - clock.now().timestamp() % 60)
            now = clock.now()
            for look in (self.look, self._ctx.storage.custom.look):
                try:
                    await look(now)
                except Exception:
                    log.exception("the snapshots that are due could not be determined")

    async def look(self, now: datetime) -> None:
        """Do what is due in the minute of `now`, one instance after the other."""
        for ref in await self._ctx.database.read("expired snapshots", snapshot_rows.expired, now):
            await self._try(ref.instance, "an expired snapshot", change.delete(self._ctx, ref))
        if not await self._ctx.database.read("schedules", instance_rows.any_has, "snapshots.schedule"):
            return
        for instance in await load_all(self._ctx):
            schedule = instance.expanded.config.get("snapshots.schedule", "")
            if schedule and self._wanted(instance) and is_due(schedule, now.astimezone(), instance.row.id):
                await self._try(instance.ref, "a scheduled snapshot", self._take(instance.ref))

    def _wanted(self, instance: Loaded) -> bool:
        stopped = instance.expanded.config.get("snapshots.schedule.stopped", "")
        return self._ctx.runtime.get(instance.ref) is not None or parse_bool(stopped)

    async def started(self, ref: InstanceRef) -> None:
        """Take the snapshot of an instance that has just been started, if its schedule includes that."""
        running = self._ctx.runtime.get(ref)
        if running and runs_at_start(running.config.get("snapshots.schedule", "")):
            await self._try(ref, "the snapshot at its start", self._take(ref))

    async def _take(self, ref: InstanceRef) -> None:
        await take.take(self._ctx, await take.reserve(self._ctx, ref, SnapshotsPost(), scheduled=True))

    async def _try(self, ref: InstanceRef, what: str, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except NotFound:
            pass  # deleted meanwhile
        except Exception:
            log.exception("instance %r: %s failed", ref.name, what)

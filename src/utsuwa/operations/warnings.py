"""Warnings of this host: raised where something lasting is wrong, resolved when its cause is gone."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from functools import partial

from utsuwa.core import clock
from utsuwa.core.errors import Forbidden, InvalidRequest, NotFound, UtsuwaError
from utsuwa.core.urls import object_url
from utsuwa.core.warning_types import BY_CODE, UNDEFINED, WarningType
from utsuwa.db import codes
from utsuwa.db import warnings as rows
from utsuwa.db.database import Database
from utsuwa.db.transaction import Transaction
from utsuwa.db.warnings import HOST, Subject, WarningRow
from utsuwa.operations.events import EventHub
from utsuwa.wire.edits import Change, IfMatch, edited
from utsuwa.wire.warnings import TestWarning, Warning, WarningPut

log = logging.getLogger(__name__)

_KEPT = timedelta(hours=24)
"""How long resolved warnings are kept."""
_DAY = 24 * 3600.0
_RETRY_SECONDS = 5.0
"""Seconds between attempts to store warnings while the database is not available."""
_MOST_PENDING = 1000
"""Maximum number of changes that wait for the database; further ones are dropped."""

Key = tuple[WarningType, Subject]
Write = Callable[[Transaction], None]


class Warnings:
    """All warnings. Raising and resolving never wait or fail: a task stores them in order.

    Its methods must be called in the event loop's thread.
    """

    def __init__(self, database: Database, events: EventHub) -> None:
        self._database = database
        self._events = events
        self._open: dict[Key, str] = {}
        """The message of every warning of this member that is not resolved."""
        self._earlier: set[Key] = set()
        """Those of an earlier run that have not occurred in this one yet."""
        self._pending: deque[Write] = deque()
        self._wanted = asyncio.Event()
        self._stored = asyncio.Event()
        self._stored.set()
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Read the warnings of an earlier run, and begin to store new ones."""
        for row in await self._database.read("warnings", rows.get_all):
            kind = BY_CODE.get(row.type_code)
            if row.here and kind is not None and row.status != "resolved":
                self._earlier.add((kind, row.subject))
        self._open = dict.fromkeys(self._earlier, "")
        self._tasks = [
            asyncio.create_task(self._store(), name="warnings"),
            asyncio.create_task(self._prune(), name="resolved warnings"),
        ]

    async def stop(self) -> None:
        """Store what is pending, unless the database is not available, and stop."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        if self._pending:
            try:
                await self._write()
            except UtsuwaError as error:
                log.debug("warnings are not stored: %s", error)

    # ---- raising and resolving

    def report(self, kind: WarningType, message: str, subject: Subject = HOST) -> None:
        """Raise a warning, or note that it has occurred again; a new message is logged."""
        key = kind, subject
        if self._open.get(key) != message:
            log.warning("%s", message)
        self._open[key] = message
        self._earlier.discard(key)
        self._soon(partial(_record, key, message))

    def resolve(self, kind: WarningType, subject: Subject = HOST) -> None:
        """The cause is gone; does nothing if there is no such warning."""
        key = kind, subject
        if self._open.pop(key, None) is not None:
            self._earlier.discard(key)
            self._soon(partial(_resolve, key))

    def judge(self, kind: WarningType, message: str, subject: Subject = HOST) -> None:
        """Raise a warning with this message; resolve it if the message is empty."""
        if message:
            self.report(kind, message, subject)
        else:
            self.resolve(kind, subject)

    def is_raised(self, kind: WarningType, subject: Subject = HOST) -> bool:
        """Return whether this run of the daemon has raised a warning that is not resolved."""
        return bool(self._open.get((kind, subject)))

    @property
    def unresolved(self) -> int:
        """The number of warnings of this member that are not resolved."""
        return len(self._open)

    def settle(self) -> None:
        """Resolve the warnings of an earlier run that have not occurred in this one: the host is ready."""
        for kind, subject in sorted(self._earlier, key=lambda key: key[0].code):
            if not kind.lasting:
                self.resolve(kind, subject)

    # ---- the API

    async def list(self, project: str | None) -> list[Warning]:
        """All warnings, or those in a project."""
        await self._settled()
        return [_shown(row) for row in await self._database.read("warnings", rows.get_all, project)]

    async def get(self, uuid: str) -> Warning:
        """Raises NotFound."""
        await self._settled()
        return _shown(await self._database.read("warning", rows.get, uuid))

    async def edit(self, uuid: str, change: Change[WarningPut], if_match: IfMatch) -> None:
        """Change the status to `acknowledged` or `new`.

        Raises NotFound, PreconditionFailed, InvalidRequest, Forbidden (`resolved`).
        """

        def update(tx: Transaction) -> tuple[WarningRow, str]:
            row = rows.get(tx, uuid)
            status = edited(WarningPut(status=row.status), change, if_match).status
            if status not in codes.WARNING_STATUSES:
                raise InvalidRequest(
                    f"Invalid warning status {status[:40]!r}: use one of {', '.join(codes.WARNING_STATUSES)}"
                )
            if status == "resolved":
                raise Forbidden(
                    "A warning is resolved when its cause is gone: set its status to acknowledged or new"
                )
            rows.set_status(tx, uuid, status, clock.now())
            return row, status

        await self._settled()
        row, status = await self._database.write("update warning", update)
        self._lifecycle("acknowledged" if status == "acknowledged" else "reset", row)

    async def delete(self, uuid: str) -> None:
        """Raises NotFound."""

        def remove(tx: Transaction) -> WarningRow:
            row = rows.get(tx, uuid)
            rows.delete(tx, uuid)
            return row

        await self._settled()
        self._lifecycle("deleted", await self._database.write("delete warning", remove))

    async def make(self, wanted: TestWarning) -> None:
        """Make a warning for tests. Raises NotFound (project), InvalidRequest (type or entity)."""
        kind = BY_CODE.get(wanted.type_code)
        if kind is None:
            raise InvalidRequest(f"Unknown warning type code {wanted.type_code}")

        def insert(tx: Transaction) -> None:
            subject = rows.subject_of(tx, wanted.entity_type_code, wanted.entity_id, wanted.project)
            rows.record(tx, kind, subject, wanted.message, clock.now(), here=bool(wanted.location))

        await self._database.write("make warning", insert)

    def _lifecycle(self, action: str, row: WarningRow) -> None:
        self._events.publish_lifecycle(
            f"warning-{action}", object_url("warnings", row.uuid), row.subject.project
        )

    # ---- the database

    def _soon(self, write: Write) -> None:
        if len(self._pending) >= _MOST_PENDING:
            return
        self._pending.append(write)
        self._stored.clear()
        self._wanted.set()

    async def _settled(self) -> None:
        """Wait until all changes are stored, at most a second if the database is not available."""
        try:
            await asyncio.wait_for(self._stored.wait(), 1)
        except TimeoutError:
            return

    async def _store(self) -> None:
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            while self._pending:
                try:
                    await self._write()
                except UtsuwaError as error:
                    log.debug("warnings are not stored yet: %s", error)
                    await asyncio.sleep(_RETRY_SECONDS)
            self._stored.set()

    async def _write(self) -> None:
        batch = list(self._pending)

        def write(tx: Transaction) -> None:
            for one in batch:
                one(tx)

        await self._database.write("store warnings", write)
        for _ in batch:
            self._pending.popleft()

    async def _prune(self) -> None:
        while True:
            try:
                await self._database.write("prune warnings", rows.prune, clock.now() - _KEPT)
            except UtsuwaError as error:
                log.debug("resolved warnings are kept: %s", error)
            await asyncio.sleep(_DAY)


def _record(key: Key, message: str, tx: Transaction) -> None:
    with suppress(NotFound):  # its project has been deleted meanwhile
        rows.record(tx, *key, message, clock.now())


def _resolve(key: Key, tx: Transaction) -> None:
    rows.resolve(tx, *key, clock.now())


def _shown(row: WarningRow) -> Warning:
    kind = BY_CODE.get(row.type_code, UNDEFINED)
    return Warning(
        status=row.status,
        uuid=row.uuid,
        location=row.location,
        project=row.subject.project,
        type=kind.text,
        count=row.count,
        first_seen_at=clock.to_wire(row.first_seen),
        last_seen_at=clock.to_wire(row.last_seen),
        last_message=row.message,
        severity=kind.severity,
        entity_url=row.entity_url,
    )

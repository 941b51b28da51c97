"""Operations of daemons that share a database: each records its own, and finds the member of others."""

from __future__ import annotations

import asyncio
import logging

from utsuwa.core.errors import OtherMember, UtsuwaError
from utsuwa.core.scope import Scope
from utsuwa.db import operations as rows
from utsuwa.db.database import Database
from utsuwa.db.operations import OperationRow
from utsuwa.operations.operations import RUNNING, Operation
from utsuwa.wire import operations as wire

log = logging.getLogger(__name__)

_BRIEF = 0.2
"""Seconds after which an operation is recorded: most complete earlier, without a transaction."""


class SharedOperations:
    """Does nothing for a daemon whose database is not shared: its operations are only kept in memory."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Delete what an earlier run of this daemon has left behind."""
        if self._database.engine.shared:
            await self._database.write("forget old operations", rows.delete_here)

    async def stop(self) -> None:
        """Delete all records when the daemon stops, after its operations have completed."""
        if self._tasks:
            await asyncio.wait(self._tasks)

    def note(self, operation: Operation) -> None:
        """Record an operation for other members while it is running."""
        if not self._database.engine.shared:
            return
        task = asyncio.create_task(self._note(operation), name=f"note of operation {operation.id}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _note(self, operation: Operation) -> None:
        if await operation.wait(_BRIEF):
            return
        row = OperationRow(operation.id, operation.project, operation.kind.text, operation.created_at)
        try:
            await self._database.write("note operation", rows.insert, row)
            await operation.wait()
            await self._database.write("forget operation", rows.delete, operation.id)
        except UtsuwaError as error:
            log.info("cannot record an operation for other members: %s", error.message)

    async def elsewhere(self, scope: Scope, project: str | None = None) -> list[wire.Operation]:
        """Return the operations on other members, of one project and of none, or of all (None)."""
        found = await self._rows(scope)
        return [_shown(row) for row in found if project is None or row.project in ("", project)]

    async def refuse(self, scope: Scope, operation_id: str) -> None:
        """Raise OtherMember for an operation that is running on another member."""
        for row in await self._rows(scope):
            if row.uuid == operation_id:
                raise OtherMember(f"The operation is running on {row.location!r}: ask that member")

    async def _rows(self, scope: Scope) -> list[OperationRow]:
        if not self._database.engine.shared or not (scope.projects is None or scope.projects):
            return []
        found = await self._database.read("operations elsewhere", rows.get_elsewhere)
        return [row for row in found if scope.sees(row.project)]


def _shown(row: OperationRow) -> wire.Operation:
    """Return the record as far as it is known here; the rest is on its member."""
    status, code = RUNNING
    return wire.Operation(
        id=row.uuid,
        class_="task",
        description=row.kind,
        created_at=row.created_at,
        updated_at=row.created_at,
        status=status,
        status_code=code,
        resources=None,
        metadata=None,
        may_cancel=False,
        err="",
        location=row.location,
    )

"""The snapshots of all instances, for the API and the daemon's start."""

from __future__ import annotations

from functools import partial

from utsuwa.core.refs import InstanceRef, SnapshotRef
from utsuwa.core.rollback import Rollback
from utsuwa.instances.context import Context, find
from utsuwa.instances.snapshots import change, loading, take
from utsuwa.operations import kinds
from utsuwa.operations.operations import Operation
from utsuwa.wire.edits import Change, IfMatch
from utsuwa.wire.snapshots import Snapshot, SnapshotPut, SnapshotsPost


class SnapshotManager:
    """Snapshots, by instance and name. Restoring is a change of the instance: see `InstanceManager`."""

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx

    async def records(self, instance: InstanceRef) -> list[Snapshot]:
        """Return the snapshots of an instance, oldest first. Raises NotFound."""
        await find(self._ctx, instance)
        return list(map(loading.record, await loading.find_of(self._ctx, instance)))

    async def get(self, ref: SnapshotRef) -> tuple[Snapshot, SnapshotPut]:
        """Return a snapshot and its editable part. Raises NotFound."""
        found = await loading.find(self._ctx, ref)
        return loading.record(found), loading.editable(found.row)

    async def create(self, instance: InstanceRef, request: SnapshotsPost) -> Operation:
        """Raises as `take.reserve`."""
        ctx = self._ctx
        row = await take.reserve(ctx, instance, request)
        async with Rollback() as undo:
            undo.push(take.discard, ctx, row)
            operation = ctx.in_background(kinds.SNAPSHOT_CREATE, instance, partial(take.take, ctx, row))
            undo.keep()
        return operation

    async def edit(self, ref: SnapshotRef, edit: Change[SnapshotPut], if_match: IfMatch) -> Operation:
        """Change expiry and description. Raises as `change.check_edit`."""
        ctx = self._ctx
        await change.check_edit(ctx, ref, edit, if_match)
        work = partial(change.edit, ctx, ref, edit, if_match)
        return ctx.in_background(kinds.SNAPSHOT_UPDATE, ref.instance, work)

    async def rename(self, ref: SnapshotRef, new: str) -> Operation:
        """Raises as `change.check_rename`."""
        ctx = self._ctx
        await change.check_rename(ctx, ref, new)
        return ctx.in_background(kinds.SNAPSHOT_RENAME, ref.instance, partial(change.rename, ctx, ref, new))

    async def delete(self, ref: SnapshotRef) -> Operation:
        """Raises as `change.check_delete`."""
        ctx = self._ctx
        checked = await change.check_delete(ctx, ref)
        work = partial(change.delete, ctx, ref, checked)
        return ctx.in_background(kinds.SNAPSHOT_DELETE, ref.instance, work)

    async def sweep(self) -> None:
        """Remove what interrupted creations and deletions left on this member."""
        await change.sweep(self._ctx)

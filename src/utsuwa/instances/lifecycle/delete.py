"""Deleting stopped instances."""

from __future__ import annotations

from utsuwa.core.config_keys import parse_bool
from utsuwa.core.errors import Forbidden, InvalidRequest
from utsuwa.core.refs import InstanceRef
from utsuwa.core.rollback import Rollback
from utsuwa.core.threads import in_thread
from utsuwa.db import instances as instance_rows
from utsuwa.host.files.filetree import remove_tree
from utsuwa.instances.confinement import policies as confinement
from utsuwa.instances.context import Context, load
from utsuwa.instances.model import Loaded


async def check(ctx: Context, ref: InstanceRef) -> Loaded:
    """Return the instance. Raises InvalidRequest if it is running, Forbidden if it is protected, NotFound."""
    instance = await load(ctx, ref)
    if ctx.runtime.get(instance.ref) is not None:
        raise InvalidRequest(f"Instance is running: stop {ref.name!r} first, or delete it with force")
    if parse_bool(instance.expanded.config.get("security.protection.delete", "")):
        raise Forbidden(
            f"The instance {ref.name!r} is protected: unset security.protection.delete to delete it"
        )
    return instance


async def delete(ctx: Context, ref: InstanceRef) -> None:
    """Delete an instance with all its files. Raises as `check`.

    Meanwhile its row has the state `deleting`, and is deleted last: if the daemon is killed in between, its
    next start completes the deletion. If something cannot be removed, the instance becomes visible again.
    """
    async with ctx.locks.hold("instance", ref), Rollback() as undo:
        instance = await check(ctx, ref)
        undo.push(_make_visible, ctx, instance)
        await ctx.database.write("begin deletion of instance", instance_rows.set_deleting, instance.row.id)
        await confinement.remove(ctx, instance)
        await remove(ctx, instance)
        undo.keep()
    ctx.lifecycle("deleted", ref)


async def remove(ctx: Context, instance: Loaded) -> None:
    """Remove an instance's logs, its files and then its row. Idempotent."""
    await in_thread(remove_tree, ctx.paths.instance_logs(instance.ref.storage_name))
    await ctx.storage.volumes.delete(
        instance.pool,
        instance.ref.volume,
        also=lambda tx: instance_rows.delete(tx, instance.row.id),
    )
    await ctx.networks.refresh(instance.ref)


async def _make_visible(ctx: Context, instance: Loaded) -> None:
    await ctx.database.write("undo deletion of instance", instance_rows.set_ready, instance.row.id)

"""Deleting stopped instances."""

from __future__ import annotations

import asyncio

from utsuwa.core.config_keys import parse_bool
from utsuwa.core.errors import Forbidden, InvalidRequest
from utsuwa.core.rollback import Rollback
from utsuwa.db import instances as instance_rows
from utsuwa.host.files.filetree import remove_tree
from utsuwa.instances.confinement import policies as confinement
from utsuwa.instances.context import Context, load
from utsuwa.instances.model import Loaded


async def check(ctx: Context, project: str, name: str) -> Loaded:
    """The instance, where it may be deleted: neither running nor protected."""
    instance = await load(ctx, project, name)
    if ctx.runtime.get(instance.key) is not None:
        raise InvalidRequest(f"The instance {name!r} is running: stop it first, or delete it with force")
    if parse_bool(instance.expanded_config.get("security.protection.delete", "")):
        raise Forbidden(f"The instance {name!r} is protected: unset security.protection.delete to delete it")
    return instance


async def delete(ctx: Context, project: str, name: str) -> None:
    """Remove an instance with all its files; raises InvalidRequest while it runs.

    The row goes last, and says meanwhile what is going on: a daemon killed in between goes on with the
    deletion at its next start. Where something cannot be removed the instance is seen again.
    """
    async with ctx.locks.hold("instance", project, name), Rollback() as undo:
        instance = await check(ctx, project, name)
        undo.push(_show_again, ctx, instance)
        await ctx.database.write("instance is deleted", instance_rows.set_deleting, instance.row.id)
        await confinement.remove(ctx, instance)
        await remove(ctx, instance)
        undo.keep()
    ctx.lifecycle("deleted", project, name)


async def remove(ctx: Context, instance: Loaded) -> None:
    """Remove an instance's logs, its files and then its row; what is gone already is no error."""
    await asyncio.to_thread(remove_tree, ctx.paths.instance_logs(instance.storage_name))
    await ctx.storage.volumes.delete(
        instance.pool,
        instance.volume,
        also=lambda tx: instance_rows.delete(tx, instance.row.id),
    )
    await ctx.networks.refresh(instance.key)


async def _show_again(ctx: Context, instance: Loaded) -> None:
    await ctx.database.write("instance stays", instance_rows.set_ready, instance.row.id)

"""Deleting stopped instances."""

from __future__ import annotations

import asyncio

from utsuwa.core.config_keys import parse_bool
from utsuwa.core.errors import Forbidden, InvalidRequest
from utsuwa.db import instances as instance_rows
from utsuwa.host.filetree import remove_tree
from utsuwa.instances import confinement
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

    The row goes last: a daemon killed in between finds it again and the deletion can be repeated.
    """
    async with ctx.locks.hold("instance", project, name):
        instance = await check(ctx, project, name)
        await confinement.remove(ctx, instance)
        await ctx.storage.delete_instance(instance.pool, instance.storage_name, project, name)
        await asyncio.to_thread(remove_tree, ctx.paths.instance_logs(instance.storage_name))
        async with ctx.database.write("delete instance") as conn:
            await instance_rows.delete(conn, instance.row.id)
    ctx.lifecycle("deleted", project, name)

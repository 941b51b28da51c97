"""Renaming a stopped instance: its row, its files, its logs."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from functools import partial

from utsuwa.core.errors import AlreadyExists, InvalidRequest
from utsuwa.core.names import check_instance_name
from utsuwa.core.refs import InstanceRef
from utsuwa.db import instances as instance_rows
from utsuwa.db.instances import InstanceRow
from utsuwa.db.transaction import Transaction
from utsuwa.host.files.filetree import remove_tree
from utsuwa.instances import identity
from utsuwa.instances.context import Context, load
from utsuwa.instances.model import Loaded


async def check(ctx: Context, ref: InstanceRef, new: str) -> Loaded:
    """Return the instance. Raises InvalidRequest if it is running, AlreadyExists, InvalidName, NotFound."""
    check_instance_name(new)
    instance = await load(ctx, ref)
    if new == ref.name:
        raise AlreadyExists(f"The instance is already named {ref.name!r}")
    if ctx.runtime.get(ref) is not None:
        raise InvalidRequest(f"The instance {ref.name!r} is running: stop it first to rename it")
    if await ctx.database.read("name of instance", instance_rows.is_taken, replace(ref, name=new)):
        raise AlreadyExists(f"An instance named {new!r} already exists")
    return instance


async def rename(ctx: Context, ref: InstanceRef, new: str) -> None:
    """Rename a stopped instance. Raises as `check`."""
    renamed = replace(ref, name=new)
    first, second = sorted((ref, renamed))
    async with ctx.locks.hold("instance", first), ctx.locks.hold("instance", second):
        instance = await check(ctx, ref, new)
        note = partial(_note, row=instance.row, new=renamed)
        await ctx.storage.volumes.rename(instance.pool, instance.ref.volume, renamed.volume, note)
        await asyncio.to_thread(move_logs, ctx, ref, renamed)
    await ctx.networks.refresh(ref, renamed)
    ctx.lifecycle("renamed", renamed, {"old_name": ref.name})


def _note(tx: Transaction, row: InstanceRow, new: InstanceRef) -> None:
    instance_rows.rename(tx, row.id, new)
    instance_rows.patch_config(tx, row.id, config_of_renamed(row.data.config))


def config_of_renamed(config: Mapping[str, str]) -> dict[str, str]:
    """Return the keys that change with the name of an instance that has this config.

    The templates of its creation are applied at its first start, whatever its name is by then.
    """
    pending = config.get("volatile.apply_template") or "rename"
    return {"volatile.apply_template": pending, **identity.new_cloud_init_id()}


def move_logs(ctx: Context, before: InstanceRef, after: InstanceRef) -> None:
    """Move the logs, replacing those that an earlier instance of the new name has left."""
    old, new = (ctx.paths.instance_logs(ref.storage_name) for ref in (before, after))
    if old.exists():
        remove_tree(new)
        old.rename(new)

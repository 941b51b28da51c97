"""Renaming a stopped instance: its row, its files, its logs."""

from __future__ import annotations

import asyncio
import uuid
from functools import partial

from utsuwa.core.errors import AlreadyExists, InvalidRequest
from utsuwa.core.names import check_instance_name, storage_name
from utsuwa.db import instances as instance_rows
from utsuwa.db.transaction import Transaction
from utsuwa.host.files.filetree import remove_tree
from utsuwa.instances.context import Context, load
from utsuwa.instances.model import Loaded


async def check(ctx: Context, project: str, name: str, new: str) -> Loaded:
    """The instance, where it may be given that name: it is stopped, and the name is free."""
    check_instance_name(new)
    instance = await load(ctx, project, name)
    if new == name:
        raise AlreadyExists(f"The instance is already named {name!r}")
    if ctx.runtime.get(instance.key) is not None:
        raise InvalidRequest(f"The instance {name!r} is running: stop it first to rename it")
    if any(row.name == new for row in await ctx.database.read("instances", instance_rows.get_all, project)):
        raise AlreadyExists(f"An instance named {new!r} already exists")
    return instance


async def rename(ctx: Context, project: str, name: str, new: str) -> None:
    """Give an instance another name; raises InvalidRequest while it runs, AlreadyExists for a taken one."""
    first, second = sorted((name, new))
    async with (
        ctx.locks.hold("instance", project, first),
        ctx.locks.hold("instance", project, second),
    ):
        instance = await check(ctx, project, name, new)
        old_stored, new_stored = instance.storage_name, storage_name(project, new)
        note = partial(_note, row_id=instance.row.id, new=new)
        await ctx.storage.volumes.rename(instance.pool, instance.volume, new, note)
        await asyncio.to_thread(_move_logs, ctx, old_stored, new_stored)
    await ctx.networks.refresh((project, name), (project, new))
    ctx.lifecycle("renamed", project, new, {"old_name": name})


def _note(tx: Transaction, row_id: int, new: str) -> None:
    instance_rows.rename(tx, row_id, new)
    changes = {"volatile.apply_template": "rename", "volatile.cloud-init.instance-id": str(uuid.uuid4())}
    instance_rows.patch_config(tx, row_id, changes)


def _move_logs(ctx: Context, old_stored: str, new_stored: str) -> None:
    """They follow the name; those of an instance that was called so long ago are gone."""
    old, new = ctx.paths.instance_logs(old_stored), ctx.paths.instance_logs(new_stored)
    if old.exists():
        remove_tree(new)
        old.rename(new)

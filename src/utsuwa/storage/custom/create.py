"""Creating and deleting custom volumes."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from utsuwa.core.errors import InUse
from utsuwa.core.names import check_volume_name
from utsuwa.core.pool_keys import INITIAL_GID, INITIAL_MODE, INITIAL_MODE_DEFAULT, INITIAL_UID
from utsuwa.core.rollback import Rollback
from utsuwa.core.volumes import Volume
from utsuwa.db import storage_volumes, volume_users
from utsuwa.db.storage_volumes import DELETION
from utsuwa.db.transaction import Transaction
from utsuwa.storage import intentions
from utsuwa.storage.custom.context import NO_MAP, CustomContext, creation, first_config, get
from utsuwa.storage.custom.uses import Place
from utsuwa.storage.known_pools import KnownPool


async def create(ctx: CustomContext, place: Place, config: Mapping[str, str], description: str) -> None:
    """Create an empty volume.

    Raises InvalidName, InvalidConfig, NotFound (pool), Unavailable, AlreadyExists, Forbidden (limits and
    restrictions of the project), OutOfSpace, HostError.
    """
    pool, volume = place
    check_volume_name(volume.name)
    at = await ctx.pools.ensure_available(pool)
    first = first_config(at, config)
    async with ctx.locks.hold(pool, volume), creation(ctx, at, volume, first, description) as undo:
        await make_empty(ctx, at, volume, undo, first)
    ctx.lifecycle("created", place, {"type": "custom"})


async def make_empty(
    ctx: CustomContext, pool: KnownPool, volume: Volume, undo: Rollback, config: Mapping[str, str]
) -> None:
    """Create the files of a new volume, an empty tree. Raises OutOfSpace, HostError."""
    revert = partial(ctx.threads.remove.run, pool.driver.delete_volume, volume)
    await ctx.threads.quick.make(
        undo, revert, pool.driver.create_volume, volume, NO_MAP, partial(_fill, config)
    )


def _fill(config: Mapping[str, str], folder: Path) -> None:
    rootfs = folder / "rootfs"
    rootfs.mkdir(mode=0o700)
    os.chown(rootfs, *(int(config.get(key) or "0") for key in (INITIAL_UID, INITIAL_GID)))
    rootfs.chmod(int(config.get(INITIAL_MODE) or INITIAL_MODE_DEFAULT, 8))


async def delete(ctx: CustomContext, place: Place) -> None:
    """Delete a volume with its snapshots; a daemon that is killed meanwhile completes this at its next start.

    Raises NotFound, InUse (instances and profiles), Unavailable (pool), HostError.
    """
    pool, volume = place
    at = await ctx.pools.ensure_available(pool)
    with ctx.uses.excluded(place, "deleted"):
        async with ctx.locks.hold(pool, volume):
            async with Rollback() as undo:
                row_id = await ctx.database.begin("custom volume is deleted", _leave, place)
                undo.push(ctx.volumes.forget_intention, row_id)
                await ctx.threads.remove.run(intentions.delete_all, at.driver, volume)
                undo.keep()
            await ctx.database.write("delete custom volume", storage_volumes.delete, row_id)
    ctx.lifecycle("deleted", place)


def _leave(tx: Transaction, place: Place) -> int:
    row = get(tx, place)
    check_unused(tx, place)
    storage_volumes.set_new_name(tx, row.id, DELETION)
    return row.id


def check_unused(tx: Transaction, place: Place) -> None:
    """Raise InUse if an instance or a profile has the volume among its devices."""
    users = volume_users.get_of(tx, *place)
    if users:
        names = ", ".join(f"{user.kind.removesuffix('s')} {user.name!r}" for user in users[:3])
        more = f" and {len(users) - 3} more" if len(users) > 3 else ""
        raise InUse(
            f"The storage volume {place[1].name!r} is still in use by {names}{more}: detach it there first"
        )

"""Custom volumes as devices of instances."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from utsuwa.core.errors import NotFound
from utsuwa.core.idmap import IdMap
from utsuwa.core.pool_keys import is_shifted, is_unmapped
from utsuwa.core.refs import InstanceRef
from utsuwa.core.volumes import Volume
from utsuwa.db.projects import effective
from utsuwa.db.storage_volumes import VolumeRow
from utsuwa.db.transaction import Transaction
from utsuwa.host.mounts import detached
from utsuwa.host.mounts.detached import Options
from utsuwa.storage.base import VolumeDriver
from utsuwa.storage.custom.context import NO_MAP, CustomContext, get, place_of, volume_of


async def find(ctx: CustomContext, instance: InstanceRef, pool: str, name: str) -> VolumeRow:
    """Return the volume that an instance means by a name. Raises NotFound (pool, volume), OtherMember."""
    ctx.known.get(pool)
    return await ctx.database.read("volume of instance", _find, instance, pool, name)


def _find(tx: Transaction, instance: InstanceRef, pool: str, name: str) -> VolumeRow:
    project = effective(tx, instance.project, "storage.volumes")
    return get(tx, (pool, Volume("custom", project, name)))


async def check(ctx: CustomContext, instance: InstanceRef, pool: str, name: str) -> None:
    """Raise what `open_tree` would raise now for what does not exist: NotFound, OtherMember, Unavailable."""
    await find(ctx, instance, pool, name)
    await ctx.pools.ensure_available(pool)


async def folder(ctx: CustomContext, instance: InstanceRef, pool: str, name: str) -> Path:
    """Return the directory of a volume on the host. Raises as `check`."""
    row = await find(ctx, instance, pool, name)
    return (await ctx.pools.ensure_available(pool)).driver.volume_folder(volume_of(row))


async def open_tree(
    ctx: CustomContext,
    instance: InstanceRef,
    device: str,
    pool: str,
    name: str,
    idmap: IdMap,
    options: Options,
) -> int:
    """Return a detached mount of a volume for a device of an instance that runs or is being started.

    The use is noted until `close`. Raises NotFound, Unavailable, Busy, HostError (no idmapped mounts), and
    InvalidConfig if running instances with another id map use it and it is neither shifted nor unmapped.
    """
    at = await ctx.pools.ensure_available(pool)
    place = place_of(await find(ctx, instance, pool, name))
    async with ctx.locks.hold(*place):
        row = await find(ctx, instance, pool, name)
        shifted = is_shifted(row.config)
        alike = not shifted and not is_unmapped(row.config)
        ctx.uses.add(instance, device, place, idmap, alike=alike)
        try:
            options = replace(
                options,
                idmap=idmap if shifted else None,
                others=(*(() if idmap.privileged else ("nodev",)), *options.others),
            )
            on_host = idmap if alike else NO_MAP
            return await ctx.threads.mount.run(_tree, at.driver, volume_of(row), on_host, options)
        except BaseException:
            ctx.uses.remove(instance, device)
            raise


def _tree(driver: VolumeDriver, volume: Volume, idmap: IdMap, options: Options) -> int:
    """Mount a volume only to copy the mount: so nothing stays mounted on the host."""
    try:
        return detached.copy_of(driver.mount_volume(volume, idmap), options)
    finally:
        driver.unmount_volume(volume)


async def keep(
    ctx: CustomContext, instance: InstanceRef, device: str, pool: str, name: str, idmap: IdMap
) -> None:
    """Note again what a running instance uses, after a start of the daemon."""
    try:
        row = await find(ctx, instance, pool, name)
    except NotFound:  # such as a lost pool: nothing can be done with its volumes
        return
    ctx.uses.add(instance, device, place_of(row), idmap, alike=False)

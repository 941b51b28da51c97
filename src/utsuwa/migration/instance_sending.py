"""Instances and their snapshots as they are offered to other servers."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import datetime

from utsuwa.core.errors import NotSupportedYet
from utsuwa.core.idmap import IdMap
from utsuwa.core.refs import InstanceRef, SnapshotRef
from utsuwa.db import codes, volume_snapshots
from utsuwa.db.snapshots import SnapshotRow
from utsuwa.db.storage_volumes import VolumeRow
from utsuwa.db.transaction import Transaction
from utsuwa.db.volume_snapshots import VolumeSnapshotRow
from utsuwa.instances.context import load
from utsuwa.instances.lifecycle import freeze
from utsuwa.instances.model import Loaded, Running
from utsuwa.instances.snapshots import loading, rows
from utsuwa.migration import index
from utsuwa.migration.channel import reporting
from utsuwa.migration.connecting import Remote
from utsuwa.migration.context import MigrationContext
from utsuwa.migration.messages import (
    INDEX_VERSION,
    NOT_LIVE,
    RSYNC,
    DeviceMessage,
    Header,
    KeyValue,
    OwnFeatures,
    SnapshotMessage,
)
from utsuwa.migration.negotiation import features, owners_message
from utsuwa.migration.sending import Offered, Tree, send
from utsuwa.operations.operations import Operation


@dataclass(frozen=True)
class Wanted:
    """What is to be sent: an instance with its snapshots or without, or one snapshot."""

    ref: InstanceRef
    snapshot: str | None = None
    with_snapshots: bool = True
    inconsistent: bool = False


async def check(ctx: MigrationContext, wanted: Wanted, *, live: bool) -> None:
    """Raise what sending would raise now: NotFound, OtherMember, NotSupportedYet, Unavailable (pool)."""
    instance = await load(ctx.instances, wanted.ref)
    if wanted.snapshot is not None:
        await loading.find(ctx.instances, SnapshotRef(wanted.ref, wanted.snapshot))
    elif live and ctx.instances.runtime.get(wanted.ref) is not None:
        raise NotSupportedYet(
            f"The running state of the instance {wanted.ref.name!r} cannot be copied yet: use --stateless, "
            "or stop it first"
        )
    if wanted.snapshot is None and instance.data.stateful:
        raise NotSupportedYet(
            f"The saved running state of the instance {wanted.ref.name!r} cannot be copied to other servers "
            "yet: start the instance, and stop it without --stateful"
        )
    await ctx.storage.pools.ensure_available(instance.pool)
    if await ctx.storage.volumes.own_folders(instance.pool, instance.ref.volume):
        raise NotSupportedYet(
            f"The instance {wanted.ref.name!r} has directories beside its root disk (disk devices with the "
            "source instance:NAME), which cannot be copied to other servers yet"
        )


async def send_instance(
    ctx: MigrationContext, wanted: Wanted, remote: Remote | None, operation: Operation
) -> None:
    """Send an instance to the other server, and return once that has it. Its lock is held meanwhile.

    Raises as `check` and `sending.send`.
    """
    async with (
        ctx.connected(operation, remote) as (control, files),
        reporting(control),
        ctx.instances.locks.hold("instance", wanted.ref),
    ):
        await check(ctx, wanted, live=False)
        instance = await load(ctx.instances, wanted.ref)
        snapshots = await _snapshots(ctx, wanted)
        await send(control, files, await _offered(ctx, wanted, instance, snapshots), operation)


async def _snapshots(ctx: MigrationContext, wanted: Wanted) -> list[SnapshotRow]:
    if wanted.snapshot is not None or not wanted.with_snapshots:
        return []
    return [found.row for found in await loading.find_of(ctx.instances, wanted.ref)]


async def _offered(
    ctx: MigrationContext, wanted: Wanted, instance: Loaded, snapshots: Sequence[SnapshotRow]
) -> Offered:
    container = ctx.instances.runtime.get(wanted.ref) if wanted.snapshot is None else None
    owners = IdMap() if container is None else container.idmap
    volumes, volume = ctx.storage.volumes, instance.ref.volume
    whole = volume if wanted.snapshot is None else volume.snapshot_named(wanted.snapshot)
    header = Header(
        fs=RSYNC,
        criu=None if container is None else NOT_LIVE,
        idmap=owners_message(owners),
        snapshot_names=[row.ref.name for row in snapshots],
        snapshots=[_message(row) for row in snapshots],
        rsync=features(compress=await ctx.compresses(instance.pool)),
        index_version=INDEX_VERSION,
        own=OwnFeatures(links=True),
    )

    async def encoded(names: Sequence[str]) -> bytes:
        row, stored = await ctx.instances.database.read("root volume", _stored, instance)
        if wanted.snapshot is not None:
            config = next((one.config for one in stored if one.name == wanted.snapshot), row.config)
            return index.encode("container", instance.name, config, row.description, ())
        kept = [one for one in stored if one.name in set(names)]
        return index.encode("container", instance.name, row.config, row.description, kept)

    @contextlib.asynccontextmanager
    async def opened(name: str | None) -> AsyncIterator[Tree]:
        if name is None and container is not None:
            folder = volumes.folder(instance.pool, volume)
            yield Tree(folder / "rootfs", folder)
            return
        found = whole if name is None else volume.snapshot_named(name)
        async with volumes.opened(instance.pool, found, owners) as folder:
            yield Tree(folder / "rootfs", folder)

    return Offered(
        name=instance.name,
        header=header,
        index=encoded,
        opened=opened,
        quiet=lambda: _quiet(ctx, container, wanted),
        inconsistent=wanted.inconsistent,
        bandwidth=(await ctx.pool_config(instance.pool)).get("rsync.bwlimit", ""),
    )


@contextlib.asynccontextmanager
async def _quiet(ctx: MigrationContext, container: Running | None, wanted: Wanted) -> AsyncIterator[None]:
    if container is None or wanted.inconsistent:
        yield
        return
    async with freeze.held(ctx.instances, container):
        yield


def _stored(tx: Transaction, instance: Loaded) -> tuple[VolumeRow, list[VolumeSnapshotRow]]:
    row = rows.volume_of(tx, instance.pool, instance.ref)
    return row, volume_snapshots.get_of(tx, row.id)


def _message(row: SnapshotRow) -> SnapshotMessage:
    data = row.data
    return SnapshotMessage(
        name=row.ref.name,
        config=key_values(data.config),
        profiles=list(data.profiles),
        ephemeral=data.ephemeral,
        devices=[DeviceMessage(name, key_values(device)) for name, device in data.devices.items()],
        architecture=codes.number(codes.ARCHITECTURES, data.architecture, "architecture"),
        stateful=False,
        creation_date=seconds(row.created_at),
        expiry_date=0 if row.expires_at is None else seconds(row.expires_at),
    )


def key_values(config: dict[str, str]) -> list[KeyValue]:
    return [KeyValue(key, value) for key, value in config.items()]


def seconds(moment: datetime) -> int:
    return int(moment.timestamp())

"""Custom volumes as they are sent to other servers, and received from them."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import datetime

from utsuwa.core import clock
from utsuwa.core.errors import AlreadyExists
from utsuwa.core.idmap import IdMap
from utsuwa.core.names import check_volume_name
from utsuwa.db import volume_snapshots
from utsuwa.db.storage_volumes import VolumeRow
from utsuwa.db.transaction import Transaction
from utsuwa.db.volume_snapshots import VolumeSnapshotRow
from utsuwa.migration import index
from utsuwa.migration.channel import ControlChannel, reporting
from utsuwa.migration.connecting import Remote
from utsuwa.migration.context import MigrationContext
from utsuwa.migration.index import Index
from utsuwa.migration.instance_sending import key_values, seconds
from utsuwa.migration.messages import (
    INDEX_VERSION,
    RSYNC,
    Control,
    Header,
    OwnFeatures,
    SnapshotMessage,
)
from utsuwa.migration.negotiation import features, owners_of
from utsuwa.migration.racing import all_of
from utsuwa.migration.received_snapshots import moment
from utsuwa.migration.receiving import Agreed, agree, lacking, receive_index, receive_offer, receive_trees
from utsuwa.migration.sending import Offered, Tree, send
from utsuwa.operations.operations import Operation
from utsuwa.security import idmap as idmaps
from utsuwa.storage.custom import create
from utsuwa.storage.custom.context import config_of_copy, creation, get, is_taken, readable
from utsuwa.storage.custom.uses import Place
from utsuwa.storage.receiving import Incoming

_LAST_MAP = "volatile.idmap.last"
"""The id map with which LXD and Incus have shifted the owners of a volume on disk."""


# Sending


async def send_volume(
    ctx: MigrationContext, place: Place, with_snapshots: bool, remote: Remote | None, operation: Operation
) -> None:
    """Send a volume, and return once the other server has it.

    Processes of running instances that use it do not run while its files are sent. Raises NotFound,
    OtherMember, Unavailable, and as `sending.send`.
    """
    database = ctx.instances.database
    async with ctx.connected(operation, remote) as (control, files), reporting(control):
        row, snapshots = await database.read("volume to send", _stored, place, with_snapshots)
        offered = await _offered(ctx, place, row, snapshots)
        await send(control, files, offered, operation)


def _stored(
    tx: Transaction, place: Place, with_snapshots: bool
) -> tuple[VolumeRow, Sequence[VolumeSnapshotRow]]:
    row = get(tx, place)
    return row, volume_snapshots.get_of(tx, row.id) if with_snapshots else ()


async def _offered(
    ctx: MigrationContext, place: Place, row: VolumeRow, snapshots: Sequence[VolumeSnapshotRow]
) -> Offered:
    pool, volume = place

    async def encoded(names: Sequence[str]) -> bytes:
        kept = [snapshot for snapshot in snapshots if snapshot.name in set(names)]
        return index.encode("custom", row.name, row.config, row.description, kept)

    @contextlib.asynccontextmanager
    async def opened(name: str | None) -> AsyncIterator[Tree]:
        if name is not None:
            async with ctx.storage.volumes.opened(pool, volume.snapshot_named(name)) as folder:
                yield Tree(folder / "rootfs", None)
            return
        custom = ctx.storage.custom.context
        at = await custom.pools.ensure_available(pool)
        async with (
            custom.quiet(custom.uses.instances(place)),
            custom.locks.hold(pool, volume),
            readable(custom, at, row),
        ):
            yield Tree(at.driver.volume_folder(volume) / "rootfs", None)

    return Offered(
        name=row.name,
        header=Header(
            fs=RSYNC,
            idmap=[],
            snapshot_names=[snapshot.name for snapshot in snapshots],
            snapshots=[_message(snapshot) for snapshot in snapshots],
            rsync=features(compress=await ctx.compresses(pool)),
            volume_size=0,
            index_version=INDEX_VERSION,
            own=OwnFeatures(links=True, stream=True, zeros=True),
        ),
        index=encoded,
        opened=opened,
        quiet=nullcontext,
        scratch=ctx.folder,
        bandwidth=(await ctx.pool_config(pool)).get("rsync.bwlimit", ""),
    )


def _message(row: VolumeSnapshotRow) -> SnapshotMessage:
    return SnapshotMessage(
        name=row.name,
        config=key_values(row.config),
        ephemeral=False,
        architecture=0,
        stateful=False,
        creation_date=seconds(row.created_at),
        expiry_date=0 if row.expires_at is None else seconds(row.expires_at),
    )


# Receiving


@dataclass(frozen=True)
class Reception:
    """A volume to be received. `config` is that of the request."""

    place: Place
    config: Mapping[str, str]
    description: str
    remote: Remote | None
    without_snapshots: bool


async def check_new(ctx: MigrationContext, reception: Reception) -> None:
    """Raise what `receive` would raise now."""
    pool, volume = reception.place
    check_volume_name(volume.name)
    await _config(ctx, reception)
    if await ctx.instances.database.read("custom volume", is_taken, reception.place):
        raise AlreadyExists(f"Storage volume {volume.name!r} already exists on pool {pool!r}")


async def exists(ctx: MigrationContext, place: Place) -> bool:
    """Return whether there is a volume to be refreshed. Raises InUse while a running instance uses it."""
    if not await ctx.instances.database.read("custom volume", is_taken, place):
        return False
    with ctx.storage.custom.context.uses.excluded(place, "refreshed"):
        return True


async def _config(ctx: MigrationContext, reception: Reception) -> dict[str, str]:
    """Return the config of the new volume: keys of another driver are left out."""
    at = await ctx.storage.pools.ensure_available(reception.place[0])
    return config_of_copy(at, reception.config)


async def receive(ctx: MigrationContext, reception: Reception, operation: Operation) -> None:
    """Receive a new volume; on failure, remove everything.

    Raises InvalidRequest and its kinds, AlreadyExists, Forbidden, Unavailable, OutOfSpace, HostError.
    """
    custom, (pool, volume) = ctx.storage.custom.context, reception.place
    at = await custom.pools.ensure_available(pool)
    async with (
        ctx.connected(operation, reception.remote) as (control, files),
        reporting(control),
        custom.locks.hold(pool, volume),
    ):
        offer = await receive_offer(control, without_snapshots=reception.without_snapshots)
        agreed = await _agree(ctx, reception, control, offer, list(offer.snapshot_names))

        async def fill() -> None:
            found = await receive_index(files, agreed)

            def store(tx: Transaction, row_id: int) -> None:
                for row in _rows(offer, found, offer.snapshot_names):
                    volume_snapshots.insert(tx, row_id, row)

            config, description = await _config(ctx, reception), reception.description or found.description
            async with creation(custom, at, volume, config, description, store) as undo:
                await create.make_empty(custom, at, volume, undo, config)
                incoming = Incoming(at, volume, undo, custom.copies, custom.threads)
                await receive_trees(files, agreed, incoming, operation)

        await all_of(fill(), watched_by=control.verdict())
        custom.lifecycle("created", reception.place, {"type": "custom"})
        await control.send(Control(success=True, message=""))


async def refresh(ctx: MigrationContext, reception: Reception, operation: Operation) -> None:
    """Bring a volume up to date with its source on the other server, completely or not at all.

    Its config and description stay. Raises as `receive`, and InUse.
    """
    custom, place = ctx.storage.custom.context, reception.place
    at = await custom.pools.ensure_available(place[0])
    with custom.uses.excluded(place, "refreshed"):
        async with (
            ctx.connected(operation, reception.remote) as (control, files),
            reporting(control),
            custom.locks.hold(*place),
        ):
            offer = await receive_offer(control, without_snapshots=reception.without_snapshots)
            row, there = await custom.database.read("copy of volume", _stored, place, True)
            new, gone = ([], []) if reception.without_snapshots else _compared(offer, there)
            agreed = await _agree(ctx, reception, control, offer, new, refresh=True)

            async def fill() -> None:
                found = await receive_index(files, agreed)

                def also(tx: Transaction) -> None:
                    for name in gone:
                        volume_snapshots.delete(tx, row.id, name)
                    for snapshot in _rows(offer, found, new):
                        volume_snapshots.insert(tx, row.id, snapshot)

                replaced = custom.copies.replaced(at, place[1], nullcontext(), also, new, gone)
                async with replaced as (staging, undo):
                    incoming = Incoming(at, staging, undo, custom.copies, custom.threads)
                    await incoming.copy_of(place[1])
                    await receive_trees(files, agreed, incoming, operation)

            await all_of(fill(), watched_by=control.verdict())
            custom.lifecycle("updated", place)
            await control.send(Control(success=True, message=""))


async def _agree(
    ctx: MigrationContext,
    reception: Reception,
    control: ControlChannel,
    offer: Header,
    names: list[str],
    *,
    refresh: bool = False,
) -> Agreed:
    pool, volume = reception.place
    return await agree(
        control,
        offer,
        names,
        name=volume.name,
        owners=owners_of(offer.idmap) if offer.idmap else _last_map(reception.config),
        compress=await ctx.compresses(pool),
        refresh=refresh,
        beside=None,
        empty=not refresh,
    )


def _last_map(config: Mapping[str, str]) -> IdMap:
    """Return the id map of the files on the other server's disk, as it says in the volume's config."""
    return idmaps.from_json(config.get(_LAST_MAP, ""))


def _compared(offer: Header, there: Sequence[VolumeSnapshotRow]) -> tuple[list[str], list[str]]:
    """Return the names of the snapshots that a copy lacks, and of those that it has in excess.

    As in LXD, only the names are compared: it does not say when its snapshots of custom volumes were taken.
    """
    offered = [(name, 0) for name in offer.snapshot_names]
    known = [(row.name, 0) for row in there]
    return lacking(offered, known), lacking(known, offered)


def _rows(offer: Header, found: Index, names: Sequence[str]) -> list[VolumeSnapshotRow]:
    """Return the rows of received snapshots, in the order in which they were taken."""
    messages = {message.name: message for message in offer.snapshots}
    rows = []
    for name in names:
        message, said = messages.get(name), found.snapshots.get(name)
        created: datetime | None = moment((message and message.creation_date) or 0)
        expires: datetime | None = moment((message and message.expiry_date) or 0)
        if said is not None:
            created, expires = created or said.created_at, expires or said.expires_at
        config = {} if said is None else said.config
        rows.append(
            VolumeSnapshotRow(
                name,
                "" if said is None else said.description,
                created or clock.now(),
                expires,
                {key: value for key, value in config.items() if not key.startswith("volatile.")},
            )
        )
    return rows

"""Instances and their snapshots as they are offered to other servers."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from datetime import datetime
from pathlib import Path

from utsuwa.core.errors import InvalidRequest, NotSupportedYet
from utsuwa.core.idmap import IdMap
from utsuwa.core.refs import InstanceRef, SnapshotRef
from utsuwa.core.volumes import Volume
from utsuwa.db import codes, volume_snapshots
from utsuwa.db.snapshots import SnapshotRow
from utsuwa.db.storage_volumes import VolumeRow
from utsuwa.db.transaction import Transaction
from utsuwa.db.volume_snapshots import VolumeSnapshotRow
from utsuwa.instances.context import Seen, look
from utsuwa.instances.lifecycle import freeze
from utsuwa.instances.model import CHOSEN_NODES, Loaded, Running
from utsuwa.instances.running_state import saved
from utsuwa.instances.snapshots import loading, rows
from utsuwa.migration import index, states
from utsuwa.migration.channel import reporting
from utsuwa.migration.connecting import Remote
from utsuwa.migration.context import MigrationContext, compresses
from utsuwa.migration.layers_sending import Layered
from utsuwa.migration.messages import (
    INDEX_VERSION,
    LIVE,
    NOT_LIVE,
    RSYNC,
    DeviceMessage,
    Header,
    KeyValue,
    LiveTerms,
    OwnFeatures,
    SnapshotMessage,
)
from utsuwa.migration.negotiation import features, owners_message
from utsuwa.migration.sending import Offered, Tree, send
from utsuwa.operations.operations import Operation
from utsuwa.storage.layer_transfer import OutgoingLayers

_LAST_STATE = "volatile.last_state."
_IDMAP = "volatile.last_state.idmap"


@dataclass(frozen=True)
class Wanted:
    """What is to be sent: an instance with its snapshots or without, or one snapshot."""

    ref: InstanceRef
    snapshot: str | None = None
    _: KW_ONLY
    with_snapshots: bool = True
    inconsistent: bool = False
    with_state: bool = False
    """Whether a snapshot is sent with its running state."""
    handover: bool = False
    """Whether the instance, which is running, is stopped, and started by the other server."""


async def check(ctx: MigrationContext, wanted: Wanted) -> Seen:
    """Return the instance, if it can be sent now.

    Raises NotFound, OtherMember, InvalidRequest, NotSupportedYet, Unavailable (pool).
    """
    seen = await look(ctx.instances, wanted.ref)
    instance = seen.instance
    if wanted.snapshot is not None:
        snapshot = await loading.find(ctx.instances, SnapshotRef(wanted.ref, wanted.snapshot))
        if wanted.with_state and not snapshot.row.data.stateful:
            raise InvalidRequest(
                f"There is no running state in the snapshot {wanted.snapshot!r} of {wanted.ref.name!r}: "
                f"{saved.INSTEAD}"
            )
    await ctx.storage.pools.ensure_available(instance.pool)
    beside = await ctx.storage.volumes.own_folders(instance.pool, instance.ref.volume)
    if beside:
        sources = ", ".join(f"instance:{name}" for name in sorted(beside))
        raise NotSupportedYet(
            f"The instance {wanted.ref.name!r} has directories beside its root disk ({sources}), which are "
            "not transferred to other servers: make a new instance there, and transfer what it needs of them "
            "from inside, such as with `docker save`"
        )
    return seen


async def send_instance(
    ctx: MigrationContext, wanted: Wanted, remote: Remote | None, seen: Seen, operation: Operation
) -> None:
    """Send an instance to the other server, and return once that has it. Its lock is held meanwhile.

    `seen` is the result of `check`, which is done again if anything was written since. Raises as that and
    `sending.send`.
    """
    async with (
        ctx.connected(operation, remote) as (control, files),
        reporting(control),
        ctx.instances.locks.hold("instance", wanted.ref),
    ):
        if not ctx.instances.database.unchanged_since(seen.moment):
            seen = await check(ctx, wanted)
        await send(control, files, await offer(ctx, wanted, seen.instance), operation)


async def snapshots_of(ctx: MigrationContext, wanted: Wanted) -> list[SnapshotRow]:
    if wanted.snapshot is not None or not wanted.with_snapshots:
        return []
    return [found.row for found in await loading.find_of(ctx.instances, wanted.ref)]


async def offer(
    ctx: MigrationContext, wanted: Wanted, instance: Loaded, live: LiveTerms | None = None
) -> Offered:
    """Return what is offered of an instance, with the running state if `live`.

    The caller holds the instance's lock, and has called `check`.
    """
    source = _Source(
        ctx,
        wanted,
        instance,
        await snapshots_of(ctx, wanted),
        ctx.instances.runtime.get(wanted.ref) if wanted.snapshot is None else None,
    )
    # The last pass of some moves is by trees, and a layer cannot be copied while it changes.
    changing = source.container is not None and wanted.inconsistent
    layered = None if wanted.handover or live is not None or changing else await source.layered()
    config = await ctx.pool_config(instance.pool)
    return Offered(
        name=instance.name,
        header=source.header(layers=layered is not None, compress=compresses(config), live=live),
        index=source.index,
        opened=source.opened,
        quiet=source.quiet,
        scratch=ctx.folder,
        layered=layered,
        folder=source.folder,
        inconsistent=wanted.inconsistent,
        bandwidth=config.get("rsync.bwlimit", ""),
    )


@dataclass(frozen=True)
class _Source:
    """An instance or one of its snapshots, with what is offered of it (`Offered`)."""

    ctx: MigrationContext
    wanted: Wanted
    instance: Loaded
    snapshots: Sequence[SnapshotRow]
    """Those that are offered with the instance."""
    container: Running | None
    """If the instance itself is offered, and is running."""

    @property
    def _owners(self) -> IdMap:
        return IdMap() if self.container is None else self.container.idmap

    def _volume(self, name: str | None) -> Volume:
        """Return the volume of a snapshot, or that of what is offered itself."""
        volume, snapshot = self.instance.ref.volume, self.wanted.snapshot
        whole = volume if snapshot is None else volume.snapshot_named(snapshot)
        return whole if name is None else whole.snapshot_named(name)

    def folder(self, name: str | None) -> Path:
        return self.ctx.storage.volumes.folder(self.instance.pool, self._volume(name))

    def header(self, *, layers: bool, compress: bool, live: LiveTerms | None) -> Header:
        running, wanted = self.container is not None, self.wanted
        own_state = wanted.with_state if wanted.snapshot is not None else self.instance.data.stateful
        return Header(
            fs=RSYNC,
            criu=None if not running else NOT_LIVE if live is None else LIVE,
            idmap=owners_message(self._owners),
            snapshot_names=self._names,
            snapshots=[_message(row) for row in self.snapshots],
            rsync=features(compress=compress),
            index_version=INDEX_VERSION,
            own=OwnFeatures(
                links=True,
                stream=not running,
                layers=layers,
                zeros=True,
                handover=wanted.handover or None,
                live=live,
                states=states.offered(self.instance, self.snapshots, own=own_state),
            ),
        )

    async def index(self, names: Sequence[str]) -> bytes:
        instance, snapshot = self.instance, self.wanted.snapshot
        row, stored = await self.ctx.instances.database.read("root volume", _stored, instance)
        if snapshot is not None:
            config = next((one.config for one in stored if one.name == snapshot), row.config)
            return index.encode("container", instance.name, config, row.description, ())
        kept = [one for one in stored if one.name in set(names)]
        return index.encode("container", instance.name, row.config, row.description, kept)

    @contextlib.asynccontextmanager
    async def opened(self, name: str | None) -> AsyncIterator[Tree]:
        container = self.container
        if name is None and container is not None and self._runs(container):
            folder = self.folder(None)
            yield Tree(folder / "rootfs", folder)
            return
        volumes, pool = self.ctx.storage.volumes, self.instance.pool
        async with volumes.opened(pool, self._volume(name), self._owners) as folder:
            yield Tree(folder / "rootfs", folder)

    def _runs(self, container: Running) -> bool:
        return self.ctx.instances.runtime.get(self.wanted.ref) is container

    @contextlib.asynccontextmanager
    async def quiet(self) -> AsyncIterator[None]:
        if self.container is None or self.wanted.inconsistent:
            yield
            return
        async with freeze.held(self.ctx.instances, self.container):
            yield

    async def layered(self) -> Layered | None:
        """Return how the instance is sent in layers; None if its pool has none."""
        layers, pool = self.ctx.storage.layers, self.instance.pool
        whole = self._volume(None)
        mounted = None if self.container is None else self.container.idmap
        if not await layers.can_send(pool, whole, self._volumes(self._names), mounted):
            return None

        def opened(names: Sequence[str]) -> contextlib.AbstractAsyncContextManager[OutgoingLayers]:
            return layers.outgoing(pool, whole, self._volumes(names), mounted, self.quiet())

        return Layered(opened, self.folder, self.ctx.instances.helper.sandbox)

    @property
    def _names(self) -> list[str]:
        return [row.ref.name for row in self.snapshots]

    def _volumes(self, names: Sequence[str]) -> list[Volume]:
        return [self._volume(name) for name in names]


def _stored(tx: Transaction, instance: Loaded) -> tuple[VolumeRow, list[VolumeSnapshotRow]]:
    row = rows.volume_of(tx, instance.pool, instance.ref)
    return row, volume_snapshots.get_of(tx, row.id)


def _message(row: SnapshotRow) -> SnapshotMessage:
    data = row.data
    return SnapshotMessage(
        name=row.ref.name,
        config=key_values(_without_last_run(data.config)),
        profiles=list(data.profiles),
        ephemeral=data.ephemeral,
        devices=[DeviceMessage(name, key_values(device)) for name, device in data.devices.items()],
        architecture=codes.number(codes.ARCHITECTURES, data.architecture, "architecture"),
        stateful=False,
        creation_date=seconds(row.created_at),
        expiry_date=0 if row.expires_at is None else seconds(row.expires_at),
    )


def _without_last_run(config: Mapping[str, str]) -> dict[str, str]:
    """Leave out what concerns this host alone: other programs refuse keys that they do not know."""
    return {
        key: value
        for key, value in config.items()
        if key != CHOSEN_NODES and (key == _IDMAP or not key.startswith(_LAST_STATE))
    }


def key_values(config: dict[str, str]) -> list[KeyValue]:
    return [KeyValue(key, value) for key, value in config.items()]


def seconds(moment: datetime) -> int:
    return int(moment.timestamp())

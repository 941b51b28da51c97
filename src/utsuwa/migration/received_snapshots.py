"""The snapshots of an instance that another server offers, as they are stored here."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime

from utsuwa.core import clock
from utsuwa.core.errors import Forbidden, InvalidRequest
from utsuwa.core.refs import SnapshotRef
from utsuwa.core.scope import Policy
from utsuwa.db import codes, profiles, volume_snapshots
from utsuwa.db import snapshots as snapshot_rows
from utsuwa.db.instance_data import InstanceData
from utsuwa.db.profiles import ProfileRow
from utsuwa.db.projects import effective
from utsuwa.db.snapshots import SnapshotRow
from utsuwa.db.transaction import Transaction
from utsuwa.db.volume_snapshots import FREE_PREFIX, VolumeSnapshotRow
from utsuwa.instances.context import Context
from utsuwa.instances.lifecycle import copy
from utsuwa.instances.model import Loaded
from utsuwa.instances.policy import judge
from utsuwa.instances.snapshots import loading
from utsuwa.migration.index import Index
from utsuwa.migration.instance_sending import seconds
from utsuwa.migration.messages import Header, KeyValue, SnapshotMessage
from utsuwa.migration.receiving import lacking
from utsuwa.profiles.expand import expand

_LAST = 253402300799
"""The last second of the year 9999."""


async def compared(
    ctx: Context, instance: Loaded, offer: Header, policy: Policy
) -> tuple[list[SnapshotRow], list[SnapshotRow]]:
    """Return the snapshots that a copy lacks, and those that it has in excess. Raises as `offered`."""
    there = [found.row for found in await loading.find_of(ctx, instance.ref)]
    known = [(row.ref.name, seconds(row.created_at)) for row in there]
    others = [(message.name or "", message.creation_date or 0) for message in _described(offer)]
    lacks, exceeds = set(lacking(others, known)), set(lacking(known, others))
    new = [row for row in await offered(ctx, instance, offer, policy) if row.ref.name in lacks]
    return new, [row for row in there if row.ref.name in exceeds]


def with_states(found: Sequence[SnapshotRow], names: Collection[str]) -> list[SnapshotRow]:
    """Return the rows of snapshots, of which those with these names have a running state."""
    return [replace(row, data=replace(row.data, stateful=row.ref.name in names)) for row in found]


def insert(tx: Transaction, volume_id: int, snapshots: Sequence[SnapshotRow], found: Index) -> None:
    """Store rows of snapshots, with what the index says of their volumes."""
    for row in snapshots:
        snapshot_rows.insert(tx, row)
        said = found.snapshots.get(row.ref.name)
        config = {} if said is None else said.config
        free = {key: value for key, value in config.items() if key.startswith(FREE_PREFIX)}
        description = "" if said is None else said.description
        volume_snapshots.insert(
            tx,
            volume_id,
            VolumeSnapshotRow(row.ref.name, description, row.created_at, row.expires_at, free),
        )


def _described(offer: Header) -> list[SnapshotMessage]:
    """Return the offered snapshots; servers of long ago only say their names."""
    return offer.snapshots or [SnapshotMessage(name=name) for name in offer.snapshot_names]


async def offered(ctx: Context, instance: Loaded, offer: Header, policy: Policy) -> list[SnapshotRow]:
    """Return the rows of the offered snapshots, each of which is judged as the instance is.

    Raises InvalidConfig, InvalidRequest, Forbidden.
    """
    found = _described(offer)
    if not found:
        return []
    instance.restrictions.check_snapshot()
    known = await ctx.database.read("profiles", _profiles, instance.project)
    return [_judged(instance, message, known, policy) for message in found]


def _profiles(tx: Transaction, project: str) -> dict[str, ProfileRow]:
    found = profiles.get_all(tx, effective(tx, project, "profiles"))
    return {profile.name: profile for profile in found if profile.readable}


def _judged(
    instance: Loaded, message: SnapshotMessage, known: Mapping[str, ProfileRow], policy: Policy
) -> SnapshotRow:
    row = copy.copied(instance, _row(instance, message))
    expanded = expand((known[name] for name in row.data.profiles if name in known), row.data)
    root, config = instance.expanded.root_disk()
    if not any(d.get("type") == "disk" and d.get("path") == "/" for d in expanded.devices.values()):
        data = replace(row.data, devices={**row.data.devices, root: dict(config)})  # of a profile not here
        row = replace(row, data=data)
        expanded = expand((known[name] for name in data.profiles if name in known), data)
    try:
        judge(row.data, expanded, instance.restrictions, policy)
    except (InvalidRequest, Forbidden) as error:
        raise error.concerning(f"The snapshot {row.ref.name!r}") from error
    return row


def _row(instance: Loaded, message: SnapshotMessage) -> SnapshotRow:
    ref = SnapshotRef(instance.ref, message.name or "")
    if message.architecture is None:  # only the name is known
        return SnapshotRow(0, instance.row.id, ref, instance.data, clock.now(), state="ready")
    data = InstanceData(
        architecture=codes.ARCHITECTURES.words.get(message.architecture, "unknown"),
        ephemeral=bool(message.ephemeral),
        config=config_of(message.config),
        devices={device.name or "": config_of(device.config) for device in message.devices},
        profiles=list(message.profiles),
    )
    expires = message.expiry_date or 0
    return SnapshotRow(
        *(0, instance.row.id, ref, data),
        moment(message.creation_date or 0) or clock.now(),
        moment(expires),
        state="ready",
    )


def config_of(entries: Sequence[KeyValue]) -> dict[str, str]:
    return {entry.key or "": entry.value or "" for entry in entries}


def moment(second: int) -> datetime | None:
    """Return a time that the other server states; None for times before 1970, which mean none.

    What would be after the year 9999 are nanoseconds: Incus states those of snapshots of custom volumes.
    """
    if second <= 0:
        return None
    return datetime.fromtimestamp(second if second <= _LAST else second // 10**9, UTC)

"""Loading of snapshots, and their records for the API."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from utsuwa.core import clock
from utsuwa.core.errors import NotFound
from utsuwa.core.refs import InstanceRef, SnapshotRef
from utsuwa.db import profiles as profile_rows
from utsuwa.db import snapshots as snapshot_rows
from utsuwa.db.profiles import ProfileRow
from utsuwa.db.snapshots import SnapshotRow
from utsuwa.db.transaction import Transaction
from utsuwa.instances import context
from utsuwa.instances.context import Context
from utsuwa.instances.model import Loaded
from utsuwa.instances.state import shown_data
from utsuwa.profiles.expand import Expanded, expand
from utsuwa.wire.snapshots import Snapshot, SnapshotPut


@dataclass(frozen=True)
class LoadedSnapshot:
    """A snapshot as stored, expanded by those of its profiles that still exist."""

    row: SnapshotRow
    expanded: Expanded

    @property
    def ref(self) -> SnapshotRef:
        return self.row.ref


async def find(ctx: Context, ref: SnapshotRef) -> LoadedSnapshot:
    """Load a complete snapshot, on any member. Raises NotFound, UnknownCode."""

    return await ctx.database.read("snapshot", _fetch, ref)


async def load_with_instance(ctx: Context, ref: SnapshotRef) -> tuple[Loaded, LoadedSnapshot]:
    """Load a complete snapshot and its instance, which is on this member.

    Raises NotFound, UnknownCode, OtherMember.
    """
    parts, snapshot = await ctx.database.read("snapshot and instance", fetch_with_instance, ref)
    return context.check_here(context.merge(*parts)), snapshot


def fetch_with_instance(tx: Transaction, ref: SnapshotRef) -> tuple[context.Parts, LoadedSnapshot]:
    """Return a complete snapshot, and what `merge` makes its instance of. Raises NotFound, UnknownCode."""
    parts = context.fetch_parts(tx, ref.instance)
    return parts, _with_profiles(tx, _fetch_row(tx, ref), parts[1])


def _fetch(tx: Transaction, ref: SnapshotRef) -> LoadedSnapshot:
    return _expanded(tx, [_fetch_row(tx, ref)])[0]


def _fetch_row(tx: Transaction, ref: SnapshotRef) -> SnapshotRow:
    row = snapshot_rows.get(tx, ref)
    if row.state != "ready":
        raise NotFound(snapshot_rows.missing(ref))
    return row


def _with_profiles(tx: Transaction, row: SnapshotRow, known: Sequence[ProfileRow]) -> LoadedSnapshot:
    """Expand a snapshot by its profiles, which mostly are those of its instance and `known`."""
    profiles = {profile.id: profile for profile in known}
    if not profiles.keys() >= set(row.data.profile_ids):
        return _expanded(tx, [row])[0]
    return LoadedSnapshot(row, expand((profiles[i] for i in row.data.profile_ids), row.data))


async def find_of(ctx: Context, instance: InstanceRef) -> list[LoadedSnapshot]:
    """Load the complete snapshots of an instance, oldest first."""

    def fetch(tx: Transaction) -> list[LoadedSnapshot]:
        return _expanded(tx, _ready(snapshot_rows.get_of(tx, instance)))

    return await ctx.database.read("snapshots of instance", fetch)


async def find_all(ctx: Context, project: str | None) -> Mapping[InstanceRef, Sequence[LoadedSnapshot]]:
    """Load the complete snapshots of all instances of a project, or of all projects (None), oldest first.

    The result must not be modified.
    """
    return await ctx.database.recall("snapshots", _all, project)


def _all(tx: Transaction, project: str | None) -> Mapping[InstanceRef, Sequence[LoadedSnapshot]]:
    found: defaultdict[InstanceRef, list[LoadedSnapshot]] = defaultdict(list)
    for snapshot in _expanded(tx, _ready(snapshot_rows.get_all(tx, project))):
        found[snapshot.ref.instance].append(snapshot)
    return found


def _ready(rows: Iterable[SnapshotRow]) -> list[SnapshotRow]:
    return [row for row in rows if row.state == "ready"]


def _expanded(tx: Transaction, rows: list[SnapshotRow]) -> list[LoadedSnapshot]:
    if not rows:
        return []
    profiles = {profile.id: profile for profile in profile_rows.get_all(tx, None) if profile.readable}
    return [
        LoadedSnapshot(row, expand((profiles[i] for i in row.data.profile_ids if i in profiles), row.data))
        for row in rows
    ]


def record(snapshot: LoadedSnapshot) -> Snapshot:
    row = snapshot.row
    return Snapshot(
        **shown_data(row.data, snapshot.expanded),
        name=snapshot.ref.name,
        created_at=clock.to_wire(row.created_at),
        expires_at=clock.to_wire(row.expires_at),
        last_used_at=clock.ZERO_TIME,
    )


def editable(row: SnapshotRow) -> SnapshotPut:
    return SnapshotPut(expires_at=clock.to_wire(row.expires_at), description=row.data.description)

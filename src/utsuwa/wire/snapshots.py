"""Records of `/1.0/instances/<name>/snapshots`; fields are named as in JSON."""

from __future__ import annotations

import msgspec
from msgspec import UNSET, UnsetType

from utsuwa.wire.migration import MigrationTarget


class SnapshotsPost(msgspec.Struct, kw_only=True):
    """A request for a snapshot.

    Without a name, it gets one by `snapshots.pattern`; without `expires_at`, one by `snapshots.expiry`.
    """

    name: str = ""
    stateful: bool = False
    expires_at: str | None = None


class SnapshotPut(msgspec.Struct, kw_only=True):
    """The editable part of a snapshot. An absent description is not changed: LXD does not have it."""

    expires_at: str = ""
    description: str | UnsetType = UNSET


class SnapshotPatch(msgspec.Struct, kw_only=True):
    expires_at: str | UnsetType = UNSET
    description: str | UnsetType = UNSET


class SnapshotPost(msgspec.Struct, kw_only=True):
    """A rename; with `migration`, an instance on another server is made of the snapshot instead.

    It is `live` if it goes on with the snapshot's running state there, for which its `name` must be the same.
    """

    name: str = ""
    migration: bool = False
    live: bool = False
    target: MigrationTarget | None = None


class Snapshot(msgspec.Struct, kw_only=True):
    """A snapshot; times are in RFC 3339, UTC. `size` is -1 if it is not known."""

    name: str
    architecture: str
    config: dict[str, str]
    devices: dict[str, dict[str, str]]
    ephemeral: bool
    profiles: list[str]
    stateful: bool
    description: str
    created_at: str
    expires_at: str
    last_used_at: str
    expanded_config: dict[str, str]
    expanded_devices: dict[str, dict[str, str]]
    size: int = -1

"""Records of `/1.0/storage-pools`; fields are named as in JSON."""

from __future__ import annotations

from datetime import datetime

import msgspec
from msgspec import UNSET, UnsetType

from utsuwa.wire.migration import MigrationTarget


class StoragePoolPut(msgspec.Struct, kw_only=True):
    """The editable part of a pool: absent fields become empty."""

    config: dict[str, str] = {}
    description: str = ""


class StoragePoolPatch(msgspec.Struct, kw_only=True):
    """A part of a pool to merge: config by key, an empty value removes one."""

    config: dict[str, str] | UnsetType = UNSET
    description: str | UnsetType = UNSET


class StoragePoolsPost(StoragePoolPut, kw_only=True):
    """A request for a new pool; the driver defaults to `overlay`."""

    name: str = ""
    driver: str = ""


class StoragePool(msgspec.Struct, kw_only=True):
    """A pool. `status` is `Created` or `Unavailable`."""

    config: dict[str, str]
    description: str
    name: str
    driver: str
    used_by: list[str]
    status: str
    locations: list[str]


class Amount(msgspec.Struct, kw_only=True):
    """The total amount of a resource, and the used part."""

    used: int = 0
    total: int = 0


class StoragePoolResources(msgspec.Struct, kw_only=True):
    """Bytes and inodes of the file system that holds a pool."""

    space: Amount
    inodes: Amount


class StorageVolume(msgspec.Struct, kw_only=True):
    """A volume: an instance's root (`container`), a custom one (`custom`) or an image on the pool (`image`).

    With `recursion=1`, lists contain snapshots as well, with the name `volume/snapshot`.
    """

    config: dict[str, str]
    description: str
    name: str
    type: str
    used_by: list[str]
    location: str
    content_type: str
    project: str
    created_at: datetime


class StorageVolumePut(msgspec.Struct, kw_only=True):
    """The editable part of a volume: absent fields become empty.

    With `restore`, the name of a snapshot, the files are restored; then only a config that is not empty
    replaces anything.
    """

    config: dict[str, str] = {}
    description: str = ""
    restore: str = ""


class StorageVolumePatch(msgspec.Struct, kw_only=True):
    """A part of a volume to merge: config by key, an empty value removes one."""

    config: dict[str, str] | UnsetType = UNSET
    description: str | UnsetType = UNSET


class StorageVolumeSource(msgspec.Struct, kw_only=True):
    """The source of a copy: `volume` or `volume/snapshot`, on another pool and in another project if given.

    `type` is `copy`, `migration` as for instances, or empty for a new volume.
    """

    type: str = ""
    name: str = ""
    pool: str = ""
    project: str = ""
    volume_only: bool = False
    refresh: bool = False
    mode: str = ""
    operation: str = ""
    secrets: dict[str, str] | None = None
    certificate: str = ""


class StorageVolumesPost(msgspec.Struct, kw_only=True):
    """A request for a new custom volume. An absent config of a copy is that of its source."""

    name: str = ""
    type: str = ""
    content_type: str = ""
    config: dict[str, str] | None = None
    description: str = ""
    source: StorageVolumeSource = msgspec.field(default_factory=StorageVolumeSource)


class StorageVolumePost(msgspec.Struct, kw_only=True):
    """A new name of a volume; with another pool or project, it is moved there.

    With `migration`, it is offered to another server instead.
    """

    name: str = ""
    pool: str = ""
    project: str = ""
    migration: bool = False
    volume_only: bool = False
    target: MigrationTarget | None = None


class StorageVolumeSnapshotsPost(msgspec.Struct, kw_only=True):
    """A request for a snapshot.

    Without a name, it gets one by `snapshots.pattern`; without `expires_at`, one by `snapshots.expiry`.
    """

    name: str = ""
    expires_at: str | None = None


class StorageVolumeSnapshotPost(msgspec.Struct, kw_only=True):
    """A new name of a snapshot."""

    name: str = ""


class StorageVolumeSnapshotPut(msgspec.Struct, kw_only=True):
    """The editable part of a snapshot: absent fields become empty."""

    description: str = ""
    expires_at: str = ""


class StorageVolumeSnapshotPatch(msgspec.Struct, kw_only=True):
    """A part of a snapshot to replace."""

    description: str | UnsetType = UNSET
    expires_at: str | UnsetType = UNSET


class StorageVolumeSnapshot(msgspec.Struct, kw_only=True):
    """A snapshot of a volume; times are in RFC 3339, UTC. In lists, `expires_at` is null if there is none."""

    name: str
    description: str
    config: dict[str, str]
    content_type: str
    created_at: str
    expires_at: str | None


class VolumeUsage(msgspec.Struct, kw_only=True):
    """Bytes used by a volume alone, and its size if that is enforced, otherwise 0."""

    used: int
    total: int = 0


class StorageVolumeState(msgspec.Struct, kw_only=True):
    """`usage` is null if the driver cannot determine it."""

    usage: VolumeUsage | None

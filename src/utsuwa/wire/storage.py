"""Records of `/1.0/storage-pools`; fields are named as in JSON."""

from __future__ import annotations

from datetime import datetime

import msgspec
from msgspec import UNSET, UnsetType


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
    """A volume: an instance's root (`container`) or an image on the pool (`image`)."""

    config: dict[str, str]
    description: str
    name: str
    type: str
    used_by: list[str]
    location: str
    content_type: str
    project: str
    created_at: datetime


class VolumeUsage(msgspec.Struct, kw_only=True):
    """Bytes used by a volume alone."""

    used: int


class StorageVolumeState(msgspec.Struct, kw_only=True):
    """`usage` is null if the driver cannot determine it."""

    usage: VolumeUsage | None

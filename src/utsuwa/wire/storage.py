"""Records of `/1.0/storage-pools` as they travel; field names are the JSON's."""

from __future__ import annotations

from datetime import datetime

import msgspec
from msgspec import UNSET, UnsetType


class StoragePoolPut(msgspec.Struct, kw_only=True):
    """The editable part of a pool: what is absent becomes empty."""

    config: dict[str, str] = {}
    description: str = ""


class StoragePoolPatch(msgspec.Struct, kw_only=True):
    """A part of a pool to merge: config key by key, an empty value removes one."""

    config: dict[str, str] | UnsetType = UNSET
    description: str | UnsetType = UNSET


class StoragePoolsPost(StoragePoolPut, kw_only=True):
    """A request for a new pool; without a driver it becomes an `overlay` pool."""

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
    """How much there is of something, and how much of it is used."""

    used: int = 0
    total: int = 0


class StoragePoolResources(msgspec.Struct, kw_only=True):
    """Bytes and inodes of the file system below a pool."""

    space: Amount
    inodes: Amount


class StorageVolume(msgspec.Struct, kw_only=True):
    """A volume: an instance's root (`container`) or an image that the pool keeps (`image`)."""

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
    """Bytes that a volume takes for itself."""

    used: int


class StorageVolumeState(msgspec.Struct, kw_only=True):
    """`usage` is null where the driver cannot tell."""

    usage: VolumeUsage | None

"""An instance's root volume as the storage layer wants it told."""

from __future__ import annotations

from collections.abc import Mapping

from utsuwa.core.units import parse_bytes
from utsuwa.instances.model import Loaded
from utsuwa.storage.base import IdMap, InstanceVolume


def describe(instance: Loaded, idmap: IdMap) -> InstanceVolume:
    """The root volume of `instance`, to be mounted through `idmap`."""
    _, disk = instance.root_disk()
    return InstanceVolume(
        name=instance.storage_name,
        idmap=idmap,
        image=instance.image,
        size=_size(disk),
        options={key: value for key, value in disk.items() if key not in ("type", "path", "pool", "size")},
    )


def _size(disk: Mapping[str, str]) -> int | None:
    return parse_bytes(disk["size"]) if disk.get("size") else None

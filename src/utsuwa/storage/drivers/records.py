"""Records of pools and volumes: small JSON files that only the daemon reads."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

import msgspec

from utsuwa.core.errors import HostError
from utsuwa.core.idmap import IdMap

T = TypeVar("T")

VOLUME_FILE = "volume.json"
POOL_FILE = "pool.json"
POOL_FILES = (POOL_FILE, f".{POOL_FILE}")
"""The pool's record, and its new one until that is whole."""
_LIMIT = 64 * 1024


@dataclass(frozen=True)
class VolumeRecord:
    """The state of one instance's files."""

    image: str | None = None
    """The fingerprint of the image that the upper layer belongs to; None for a tree of its own."""
    image_folder: str = ""
    """The folder below `images/` that is the lower layer; empty where it is named as the image."""
    top: str = ""
    """The layer below `layers/` that is the upper layer; empty if it is in the volume's own directory."""
    layers: tuple[str, ...] = ()
    """The frozen layers below `layers/` that are between the upper layer and the image, the newest first."""
    merged: tuple[str, ...] = ()
    """Layers with the same content as `layers`, but fewer, for the next upper layer; empty if there are none.

    An upper layer cannot be moved to other layers, even if their content is the same.
    """
    owners: IdMap = field(default_factory=IdMap)
    """The map to which the owners on disk are shifted; privileged where they are the container's own."""
    shifting_to: IdMap | None = None
    """Set while owners are being shifted: a pass that was cut off is finished."""
    mounted: IdMap | None = None
    """The map of the mount that is there, if one is there."""


@dataclass(frozen=True)
class PoolRecord:
    """What was fixed when the pool was made."""

    driver: str
    mount_options: dict[str, str] = field(default_factory=dict)


def load_volume(folder: Path) -> VolumeRecord:
    return _load(folder / VOLUME_FILE, VolumeRecord)


def store_volume(folder: Path, record: VolumeRecord) -> None:
    _store(folder / VOLUME_FILE, record)


def change_volume(folder: Path, record: VolumeRecord, **changes: object) -> VolumeRecord:
    """Store the record with some fields changed, where that makes a difference; gives the new one."""
    changed: VolumeRecord = replace(record, **changes)  # type: ignore[arg-type]
    if changed != record:
        store_volume(folder, changed)
    return changed


def lower_folder(record: VolumeRecord) -> str | None:
    """Return the name of the directory below `images/` on which a volume depends, if any."""
    return record.image_folder or record.image


def owners_of_form(folder: Path) -> IdMap:
    """Return the map to which the owners in a form of an image are shifted, from its directory."""
    try:
        return load_volume(folder).owners
    except FileNotFoundError:
        return IdMap()


def layers_of(record: VolumeRecord) -> frozenset[str]:
    """Return all layers below `layers/` that a volume uses."""
    return frozenset(filter(None, (record.top, *record.layers, *record.merged)))


def load_pool(folder: Path) -> PoolRecord:
    return _load(folder / POOL_FILE, PoolRecord)


def store_pool(folder: Path, record: PoolRecord) -> None:
    _store(folder / POOL_FILE, record)


def remove_pool(folder: Path) -> None:
    """Remove the pool's record, also one that a kill or a full disk left half-written."""
    for name in POOL_FILES:
        (folder / name).unlink(missing_ok=True)


def _load(path: Path, kind: type[T]) -> T:
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    with os.fdopen(fd, "rb") as file:
        text = file.read(_LIMIT)
    try:
        return msgspec.json.decode(text, type=kind)
    except msgspec.DecodeError as error:
        raise HostError(f"{path} is damaged: {error}") from error


def _store(path: Path, record: object) -> None:
    """Replace the file as a whole: a kill or a full disk leaves the old or the new one."""
    new = path.with_name(f".{path.name}")
    fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(msgspec.json.encode(record))
        new.replace(path)
    except OSError:
        new.unlink(missing_ok=True)
        raise

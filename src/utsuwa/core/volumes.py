"""The volumes of storage pools, and their names on disk."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import PurePath
from typing import Final, Literal

from utsuwa.core.names import DEFAULT_PROJECT, storage_name
from utsuwa.core.urls import object_url

VolumeKind = Literal["container", "image", "custom"]

_FOLDERS: Final = {"container": "containers", "image": "images", "custom": "custom"}


def folder_of(kind: VolumeKind) -> str:
    """Return the subdirectory of a pool that contains the volumes of a kind."""
    return _FOLDERS[kind]


def snapshots_folder_of(kind: VolumeKind) -> str:
    """Return the subdirectory of a pool with one directory per volume of a kind, that of its snapshots."""
    return f"{_FOLDERS[kind]}-snapshots"


@dataclass(frozen=True)
class Volume:
    """One volume of a pool, or one snapshot of it. An image's name is its fingerprint."""

    kind: VolumeKind
    project: str
    name: str
    snapshot: str | None = None

    @property
    def storage_name(self) -> str:
        """The name on disk: an instance's name in liblxc, an image's fingerprint.

        For custom volumes it includes the project even if that is `default`.
        """
        if self.kind == "image":
            return self.name
        if self.kind == "custom":
            return f"{self.project}_{self.name}"
        return storage_name(self.project, self.name)

    @property
    def path(self) -> PurePath:
        """The path below the pool's directory."""
        if self.snapshot is None:
            return PurePath(folder_of(self.kind), self.storage_name)
        return self.snapshots_path / self.snapshot

    def url(self, pool: str) -> str:
        """Return the URL of the volume, or of the snapshot."""
        below = () if self.snapshot is None else ("snapshots", self.snapshot)
        return object_url(
            "storage-pools", pool, "volumes", self.kind, self.name, *below, project=self.project
        )

    def snapshot_named(self, name: str) -> Volume:
        return replace(self, snapshot=name)

    @property
    def whole(self) -> Volume:
        """The volume itself, also for one of its snapshots."""
        return self if self.snapshot is None else replace(self, snapshot=None)

    @property
    def snapshots_path(self) -> PurePath:
        """The path of the directory with the volume's snapshots, below the pool's directory."""
        return PurePath(snapshots_folder_of(self.kind), self.storage_name)


def image_volume(fingerprint: str) -> Volume:
    """Return the volume of an image, which all its projects share."""
    return Volume("image", DEFAULT_PROJECT, fingerprint)

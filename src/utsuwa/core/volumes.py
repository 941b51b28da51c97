"""The volumes of storage pools, and their names on disk."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePath
from typing import Final, Literal

from utsuwa.core.names import DEFAULT_PROJECT, storage_name

VolumeKind = Literal["container", "image", "custom"]

_FOLDERS: Final = {"container": "containers", "image": "images", "custom": "custom"}


def folder_of(kind: VolumeKind) -> str:
    """Return the subdirectory of a pool that contains the volumes of a kind."""
    return _FOLDERS[kind]


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
        folder = folder_of(self.kind)
        if self.snapshot is None:
            return PurePath(folder, self.storage_name)
        return PurePath(f"{folder}-snapshots", self.storage_name, self.snapshot)


def image_volume(fingerprint: str) -> Volume:
    """Return the volume of an image, which all its projects share."""
    return Volume("image", DEFAULT_PROJECT, fingerprint)

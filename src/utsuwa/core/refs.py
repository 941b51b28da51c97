"""References to instances and their snapshots, from which their names on disk and URLs are derived."""

from __future__ import annotations

from dataclasses import dataclass

from utsuwa.core.urls import object_url
from utsuwa.core.volumes import Volume


@dataclass(frozen=True, order=True)
class InstanceRef:
    """The identity of an instance, whether it exists or not. References sort by project and name."""

    project: str
    name: str

    @property
    def volume(self) -> Volume:
        """The volume of the root disk."""
        return Volume("container", self.project, self.name)

    @property
    def storage_name(self) -> str:
        """The name on disk and in liblxc."""
        return self.volume.storage_name

    def url(self, *below: str) -> str:
        """Return the URL of the instance, or of an object below it."""
        return object_url("instances", self.name, *below, project=self.project)


@dataclass(frozen=True, order=True)
class SnapshotRef:
    """The identity of a snapshot of an instance, whether it exists or not."""

    instance: InstanceRef
    name: str

    @property
    def url(self) -> str:
        return self.instance.url("snapshots", self.name)

    @property
    def volume(self) -> Volume:
        """The snapshot of the volume of the root disk."""
        return Volume("container", self.instance.project, self.instance.name, self.name)

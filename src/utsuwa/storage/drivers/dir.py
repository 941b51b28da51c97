"""The driver `dir`: each instance is a complete copy of its image, in a directory on any file system."""

from __future__ import annotations

from utsuwa.storage.base import DriverType
from utsuwa.storage.drivers.folder_volumes import FolderVolumes


class DirDriver(FolderVolumes):
    """Complete copies in directories."""

    name = "dir"


TYPE = DriverType(DirDriver.name, DirDriver)

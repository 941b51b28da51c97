"""The driver `dir`: every instance is a whole copy of its image, in a plain folder on any file system."""

from __future__ import annotations

from utsuwa.storage.base import DriverType
from utsuwa.storage.drivers.folder_pool import FolderPool


class DirDriver(FolderPool):
    """Whole copies in folders."""

    name = "dir"


TYPE = DriverType(DirDriver.name, DirDriver)

"""Changes of a volume's files that are recorded in its row while they last, to be reverted after a crash.

What is recorded (`VolumeRow.new_name`) is one of:

- the name to which a volume is renamed, `project:name` if it gets another project as well;
- `old/new` if a snapshot is renamed;
- `~` if its files are replaced: then the new ones are in a volume with the suffix `~new` before, and the old
  ones in one with `~was` after that. These names are not valid for instances. The names of snapshots that it
  gets with them follow, each after a `/`; these are in the same places;
- that a volume or a snapshot (`~create/NAME`) is being created or deleted: of custom volumes, which have no
  other row that says so, and of a volume that is being moved to another pool. That has a row on both: until
  the move is stored, the new one is being created, and the old one is being deleted after that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from utsuwa.core import faults
from utsuwa.core.volumes import Volume
from utsuwa.db.storage_volumes import CREATION, DELETION
from utsuwa.storage.base import Driver

_REPLACEMENT = "~"
_NEW, _WAS = "~new", "~was"


def staging(volume: Volume) -> Volume:
    """Return the volume with the files that are to replace those of a volume."""
    return replace(volume, name=f"{volume.name}{_NEW}")


def previous(volume: Volume) -> Volume:
    """Return the volume with the files that were replaced."""
    return replace(volume, name=f"{volume.name}{_WAS}")


def is_temporary(storage_name: str) -> bool:
    """Return whether a volume belongs to the replacement of another one."""
    return storage_name.endswith((_NEW, _WAS))


def replacement(snapshots: Sequence[str] = ()) -> str:
    """Return what is recorded while the files of a volume are replaced, and snapshots added."""
    return "/".join([_REPLACEMENT, *snapshots])


def of_snapshot(change: str, name: str) -> str:
    """Return what is recorded while a snapshot is being created or deleted."""
    return f"{change}/{name}"


def renaming(volume: Volume, new: Volume) -> str:
    """Return what is recorded while a volume is renamed."""
    return new.name if new.project == volume.project else f"{new.project}:{new.name}"


def renamed(volume: Volume, intention: str) -> Volume:
    """Return what a volume is renamed to, as it was recorded."""
    project, _, name = intention.rpartition(":")
    return replace(volume, project=project or volume.project, name=name)


def swap_files(driver: Driver, volume: Volume, new: Sequence[str] = (), gone: Sequence[str] = ()) -> None:
    """Replace the files of a volume by those of its staging volume. Blocking.

    `new` are the snapshots that the staging volume has, and `gone` those of the volume that are removed; a
    name may be in both.
    """
    was = previous(volume)
    driver.rename_volume(volume, was)
    faults.point("volume is moved away")
    for name in gone:
        driver.rename_volume(volume.snapshot_named(name), was.snapshot_named(name))
    for name in new:
        driver.rename_volume(staging(volume).snapshot_named(name), volume.snapshot_named(name))
        faults.point("snapshot is moved")
    driver.rename_volume(staging(volume), volume)


def revert_swap(driver: Driver, volume: Volume, new: Sequence[str] = ()) -> None:
    """Revert `swap_files`, as far as it was done, and remove the staging volume. Blocking."""
    was, staged = previous(volume), staging(volume)
    if was.storage_name in driver.volumes(volume.kind):
        there, waiting = driver.snapshots(volume), driver.snapshots(staged)
        for name in new:
            if name in there and name not in waiting:
                driver.rename_volume(volume.snapshot_named(name), staged.snapshot_named(name))
        for name in driver.snapshots(was):
            driver.rename_volume(was.snapshot_named(name), volume.snapshot_named(name))
        driver.delete_volume(volume)
        driver.rename_volume(was, volume)
    delete_all(driver, staged)


def remove_replaced(driver: Driver, volume: Volume) -> None:
    """Remove what a replacement has left. Blocking."""
    delete_all(driver, staging(volume))
    delete_all(driver, previous(volume))


def delete_all(driver: Driver, volume: Volume) -> None:
    """Delete a volume with its snapshots. Blocking."""
    for name in driver.snapshots(volume):
        driver.delete_volume(replace(volume, snapshot=name))
    driver.delete_volume(volume)


def revert(driver: Driver, volume: Volume, intention: str, taken: bool) -> None:
    """Revert a recorded change, as far as it was done; complete it if it is a deletion. Blocking.

    `taken` says that the new name of the volume belongs to another one.
    """
    change, *names = intention.split("/")
    if change in (CREATION, DELETION):
        if names:
            driver.delete_volume(volume.snapshot_named(names[0]))
        else:
            delete_all(driver, volume)
    elif change == _REPLACEMENT:
        revert_swap(driver, volume, names)
    elif "/" in intention:
        old, _, new = intention.partition("/")
        there = driver.snapshots(volume)
        if new in there and old not in there:
            driver.rename_volume(replace(volume, snapshot=new), replace(volume, snapshot=old))
    elif not taken:
        new_volume = renamed(volume, intention)
        there = driver.volumes(volume.kind)
        if new_volume.storage_name in there and volume.storage_name not in there:
            driver.rename_volume(new_volume, volume)
        if not driver.snapshots(volume):
            driver.rename_snapshots(new_volume, volume)

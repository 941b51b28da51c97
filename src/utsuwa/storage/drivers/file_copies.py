"""Copies of volumes file by file: between pools, and for drivers that have no better way."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

from utsuwa.core.idmap import IdMap
from utsuwa.core.volumes import Volume
from utsuwa.host.files.filetree import remove_tree
from utsuwa.host.files.shift import Shift, shift_owners
from utsuwa.host.processes.stopper import Stopper
from utsuwa.storage.base import CloneDriver, Driver, FolderDriver
from utsuwa.storage.drivers.failures import translated
from utsuwa.storage.drivers.tree_sync import sync_tree
from utsuwa.storage.drivers.trees import copy_metadata, copy_tree, remove_metadata

_UNSHIFTED = IdMap()


class FileCopies:
    """A `CopyDriver` on top of any driver; the target may be on another pool than the source."""

    def __init__(self, source: Driver, target: Driver) -> None:
        self._source = source
        self._target = target

    @translated
    def copy_volume(
        self,
        source: Volume,
        target: Volume,
        idmap: IdMap,
        stopper: Stopper,
        *,
        mounted: IdMap | None = None,
        like: Volume | None = None,
    ) -> None:
        if like is not None and self._cloned(like, target, idmap, stopper):
            try:
                self._update(source, target, stopper, mounted, like)
            except BaseException:
                self._target.delete_volume(target)
                raise
            return
        with self._mounted(source, mounted), self._mounted_here(like):
            fill = partial(self._fill, source, mounted, like, stopper)
            self._target.create_volume(target, idmap, fill)

    def _cloned(self, volume: Volume, new: Volume, idmap: IdMap, stopper: Stopper) -> bool:
        driver = self._target
        return isinstance(driver, CloneDriver) and driver.clone_volume(volume, new, idmap, stopper)

    @translated
    def update_volume(
        self, source: Volume, target: Volume, stopper: Stopper, *, mounted: IdMap | None = None
    ) -> None:
        """Bring a volume that is not in use up to date with the source; what is the same stays.

        `mounted` as in `copy_volume`. If it fails, the target is partly up to date.
        """
        self._update(source, target, stopper, mounted, None)

    def _update(
        self, source: Volume, target: Volume, stopper: Stopper, mounted: IdMap | None, like: Volume | None
    ) -> None:
        with self._mounted(source, mounted), self._mounted_here(like), self._mounted_here(target):
            from_folder, folder = self._source.volume_folder(source), self._target.volume_folder(target)
            remove_metadata(folder)
            if (from_folder / "metadata.yaml").exists():
                copy_metadata(from_folder, folder)
            sync_tree(from_folder / "rootfs", folder / "rootfs", stopper, shift=_shift(mounted))
            self._update_folders(source, target, stopper, mounted, like)

    def _update_folders(
        self, source: Volume, target: Volume, stopper: Stopper, mounted: IdMap | None, like: Volume | None
    ) -> None:
        """Bring the directories beside the rootfs up to date."""
        wanted = self._folders(source, mounted)
        if not isinstance(self._target, FolderDriver):
            return
        there = self._target.own_folders(target)
        for name, tree in wanted.items():
            copy = self._target.mount_folder(target, _UNSHIFTED, name)
            old = self._folder_like(like, name)
            if name in there or old is None:
                sync_tree(tree, copy, stopper, shift=_shift(mounted))
            else:
                copy.rmdir()
                sync_tree(tree, copy, stopper, like=old, shift=_shift(mounted))
        for name in set(there).difference(wanted):
            remove_tree(self._target.mount_folder(target, _UNSHIFTED, name))

    @contextmanager
    def _mounted(self, source: Volume, mounted: IdMap | None) -> Iterator[None]:
        """Have the source mounted, with the container's own ids unless it is in use."""
        if mounted is not None:
            yield
        else:
            with _mounted_by(self._source, source):
                yield

    @contextmanager
    def _mounted_here(self, volume: Volume | None) -> Iterator[None]:
        """Have a volume of the target's pool mounted with the container's own ids."""
        if volume is None:
            yield
        else:
            with _mounted_by(self._target, volume):
                yield

    def _folders(self, source: Volume, mounted: IdMap | None) -> dict[str, Path]:
        """Mount the directories beside the rootfs that the target can have as well."""
        if not isinstance(self._source, FolderDriver) or not isinstance(self._target, FolderDriver):
            return {}
        ids = mounted or _UNSHIFTED
        names = self._source.own_folders(source)
        return {name: self._source.mount_folder(source, ids, name) for name in names}

    def _folder_like(self, like: Volume | None, name: str) -> Path | None:
        driver = self._target
        if like is None or not isinstance(driver, FolderDriver) or name not in driver.own_folders(like):
            return None
        return driver.mount_folder(like, _UNSHIFTED, name)

    def _fill(
        self, source: Volume, mounted: IdMap | None, like: Volume | None, stopper: Stopper, folder: Path
    ) -> None:
        from_folder = self._source.volume_folder(source)
        if (from_folder / "metadata.yaml").exists():
            copy_metadata(from_folder, folder)
        old = None if like is None else self._target.volume_folder(like) / "rootfs"
        _copy(from_folder / "rootfs", folder / "rootfs", mounted, old, stopper)
        for name, place in self._folders(source, mounted).items():
            copy = folder / place.relative_to(from_folder)
            copy.parent.mkdir(mode=0o711, exist_ok=True)
            _copy(place, copy, mounted, self._folder_like(like, name), stopper)


@contextmanager
def _mounted_by(driver: Driver, volume: Volume) -> Iterator[None]:
    driver.unmount_volume(volume)
    with ExitStack() as undo:
        undo.callback(driver.unmount_volume, volume)
        driver.mount_volume(volume, _UNSHIFTED)
        yield


def _copy(tree: Path, copy: Path, mounted: IdMap | None, old: Path | None, stopper: Stopper) -> None:
    """Copy a tree, with files of `old` where they are the same."""
    if old is not None:
        sync_tree(tree, copy, stopper, like=old, shift=_shift(mounted))
        return
    copy_tree(tree, copy, stopper)
    if mounted is not None:
        shift_owners(copy, Shift(mounted, _UNSHIFTED))


def _shift(mounted: IdMap | None) -> Shift | None:
    return None if mounted is None else Shift(mounted, _UNSHIFTED)

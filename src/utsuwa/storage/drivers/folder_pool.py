"""Pools in a directory: their layout, creation and removal, and directories that appear as a whole.

A pool whose source is elsewhere is bind-mounted at its directory in the state directory, so that all paths
are below that one. Everything is created under a name with a leading dot and renamed when it is complete,
and renamed to such a name before it is removed.
"""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import ClassVar

from utsuwa.core.errors import HostError, InvalidConfig
from utsuwa.core.volumes import VolumeKind, snapshots_folder_of
from utsuwa.host.files.filetree import remove_small_tree, remove_tree
from utsuwa.host.mounts import mounts
from utsuwa.storage.base import Usage
from utsuwa.storage.drivers import records
from utsuwa.storage.drivers.failures import translated
from utsuwa.storage.drivers.records import PoolRecord

_KINDS: tuple[VolumeKind, ...] = ("container", "custom")
"""The kinds of volumes that may have snapshots."""
TRIAL = ".trial-"
"""Prefix of the directories in which a driver tests what the file system supports."""


class FolderPool:
    """A pool in a directory."""

    name: ClassVar[str]
    folders: ClassVar[Mapping[str, int]] = {
        "containers": 0o711,
        "containers-snapshots": 0o711,
        "custom": 0o711,
        "custom-snapshots": 0o711,
        "images": 0o700,
    }
    """The directories of a pool, with their modes."""
    frozen: ClassVar[tuple[str, ...]] = ("containers-snapshots", "custom-snapshots", "images")
    """Those whose content never changes once it is there."""

    def __init__(self, folder: Path, config: Mapping[str, str]) -> None:
        self.folder = folder
        self.source = Path(config.get("source") or folder)

    def configure(self, config: Mapping[str, str]) -> bool:
        """These drivers have no keys that change how existing pools are used; overridden by those that do."""
        return False

    @property
    def _elsewhere(self) -> bool:
        return self.source != self.folder

    @translated
    def create(self) -> None:
        if self._elsewhere and not self.source.is_dir():
            raise InvalidConfig(
                f"The source {self.source} is not a directory that exists: create it, or omit 'source'"
            )
        if self.source.is_dir() and {e.name for e in self.source.iterdir()} - {"lost+found"}:
            raise InvalidConfig(f"The source {self.source} is not empty: use an empty directory")
        try:
            self.folder.mkdir(mode=0o711, exist_ok=True)
            self._bind()
            self.folder.chmod(0o711)
            self._make_folders()
            self._fix_options()
        except BaseException:
            self.delete()
            raise

    def _make_folders(self) -> None:
        for name, mode in self.folders.items():
            make_folder(self.folder / name, mode)

    def _fix_options(self) -> None:
        """Record what is fixed for the lifetime of the pool."""
        records.store_pool(self.folder, PoolRecord(self.name))

    @translated
    def delete(self) -> None:
        for name in self.folders:
            mounts.unmount_below(self.folder / name)
        if not self._elsewhere or mounts.mounted(self.folder):
            for name in self.folders:
                remove_tree(self.folder / name)
            records.remove_pool(self.folder)
        self._let_go()

    @translated
    def discard(self) -> None:
        if self.source.is_dir():
            self.folder.mkdir(mode=0o711, exist_ok=True)
            self._bind()  # gone where the machine has ended meanwhile
            if not self._only_just_begun():
                if self._elsewhere:
                    self._let_go()
                raise HostError(f"The folder {self.source} held something before: it is left as it is")
            for name in self.folders:
                remove_tree(self.folder / name)
            records.remove_pool(self.folder)
        self._let_go()

    def _only_just_begun(self) -> bool:
        """Return whether the directory contains nothing but what `create` makes, without any content."""
        known = {*self.folders, *records.POOL_FILES, "lost+found"}
        if any(entry.name not in known for entry in self.folder.iterdir()):
            return False
        for trial in (self.folder / "containers").glob(f"{TRIAL}*"):
            mounts.unmount_below(trial)
            remove_tree(trial)
        folders = [self.folder / name for name in self.folders if (self.folder / name).is_dir()]
        return not any(any(folder.iterdir()) for folder in folders)

    def _let_go(self) -> None:
        self._unbind()
        if self.folder.is_dir():
            self.folder.rmdir()

    def _unbind(self) -> None:
        if self._elsewhere:
            mounts.unmount(self.folder)

    @translated
    def mount(self) -> None:
        self.folder.mkdir(mode=0o711, exist_ok=True)
        bound = self._bind()
        try:
            self._check_own()
        except BaseException:
            if bound:
                self._unbind()  # what comes to that place later is looked at anew
            raise
        self._make_folders()  # an earlier version may have had fewer
        # Only copies mount snapshots of instances, and none has begun yet: these were interrupted.
        mounts.unmount_below(self.folder / snapshots_folder_of("container"))
        for folder in (self.folder / name for name in self._with_volumes()):
            for entry in folder.iterdir():
                if entry.name.startswith("."):
                    mounts.unmount_below(entry)
                    remove_tree(entry)
        for folder in (self.folder / snapshots_folder_of(kind) for kind in _KINDS):
            for owner in folder.iterdir():
                with suppress(OSError):
                    owner.rmdir()  # fails while there are snapshots in it

    def _with_volumes(self) -> Iterator[str]:
        """Return the directories that contain volumes, snapshots or images."""
        yield from self.folders
        for name in map(snapshots_folder_of, _KINDS):
            yield from (f"{name}/{volume.name}" for volume in (self.folder / name).iterdir())

    def _check_own(self) -> None:
        """Raise HostError if the source is not the one in which the pool was created."""
        try:
            record = records.load_pool(self.folder)
        except FileNotFoundError:
            raise HostError(
                f"The pool's source {self.source} does not hold the pool (there is no {records.POOL_FILE}): "
                "mount its file system or bring its content back, and the pool is used again"
            ) from None
        if record.driver != self.name:
            raise HostError(f"The folder {self.source} belongs to a pool of another driver")

    def _bind(self) -> bool:
        """Mount the source at the pool's directory; return whether that was necessary."""
        if not self._elsewhere or mounts.mounted(self.folder):
            return False
        if not self.source.is_dir():
            raise HostError(
                f"The pool's source {self.source} is not there: mount its file system or bring the folder "
                "back, and the pool is used again"
            )
        mounts.bind(self.source, self.folder)
        return True

    @translated
    def unmount(self) -> None:
        mounts.unmount_below(self.folder)

    @translated
    def usage(self) -> Usage:
        disk = os.statvfs(self.folder)
        return Usage(
            space_used=(disk.f_blocks - disk.f_bfree) * disk.f_frsize,
            space_total=disk.f_blocks * disk.f_frsize,
            inodes_used=disk.f_files - disk.f_ffree,
            inodes_total=disk.f_files,
        )

    # Directories that appear and disappear as a whole

    @contextmanager
    def _fresh(self, target: Path) -> Iterator[Path]:
        """Yield a new directory (0700) that is renamed to `target` when the block has succeeded."""
        folder = target.with_name(f".new-{secrets.token_hex(8)}")
        folder.mkdir(mode=0o700)
        try:
            yield folder
            folder.rename(target)
        except BaseException:
            mounts.unmount_below(folder)
            remove_tree(folder)
            raise

    def _unmount(self, folder: Path) -> None:
        """Unmount what the driver mounts in the directory of a volume or image."""
        if folder.is_dir():
            mounts.unmount_places(folder, folder.iterdir())

    def _remove(self, folder: Path) -> None:
        """Unmount what is mounted in a directory, and remove it.

        The mount table, which grows with every container, is only read if something unexpected is mounted
        there, or if the directory is large.
        """
        if not os.path.lexists(folder):
            return
        self._unmount(folder)
        gone = folder.with_name(f".gone-{secrets.token_hex(8)}")
        try:
            folder.rename(gone)
        except OSError as error:
            if error.errno != errno.EBUSY:  # a mount point
                raise
            mounts.unmount_below(folder)
            folder.rename(gone)
        if not remove_small_tree(gone):
            mounts.unmount_below(gone)
            remove_tree(gone)


def make_folder(path: Path, mode: int) -> None:
    path.mkdir(mode=mode, exist_ok=True)
    path.chmod(mode)

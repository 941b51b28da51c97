"""Tells when paths on the host may lead somewhere else: something appears, disappears, or a link changes.

The kernel's inotify is asked about every directory in which a part of a path is looked up, also on the way to
the targets of symlinks.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import struct
from collections.abc import Awaitable, Callable, Collection, Iterator
from pathlib import Path

from utsuwa.core.tasks import finish
from utsuwa.host import syscalls

log = logging.getLogger(__name__)

Entry = tuple[Path, str]
"""A directory and a name in it."""

_MASK = (
    syscalls.IN_CREATE
    | syscalls.IN_DELETE
    | syscalls.IN_MOVED_FROM
    | syscalls.IN_MOVED_TO
    | syscalls.IN_DELETE_SELF
    | syscalls.IN_MOVE_SELF
    | syscalls.IN_ONLYDIR
)
_EVENT = struct.Struct("=iIII")
_BUFFER = 65536
_LINKS = 40
"""Most symlinks on the way, as in the kernel."""
_REST = 0.02
"""Seconds between two looks, in which events come together."""


class PathWatch:
    """Watches paths below `root`, which is not waited for itself. `changed` gets those to be looked at again:
    also each new one, when it is watched, so that no change between a first look and that is missed.
    """

    def __init__(self, root: Path, changed: Callable[[Collection[Path]], Awaitable[None]]) -> None:
        self._root = root
        self._changed = changed
        self._wanted: dict[Path, int] = {}
        """The paths, and how often each is wanted."""
        self._entries: dict[Path, list[Entry]] = {}
        """What each watched path depends on."""
        self._watches: dict[int, Path] = {}
        self._folders: dict[Path, int] = {}
        self._fd = -1
        self._woken = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def add(self, path: Path) -> None:
        self._wanted[path] = self._wanted.get(path, 0) + 1
        self._woken.set()
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="paths of devices")

    def remove(self, path: Path) -> None:
        left = self._wanted.pop(path) - 1
        if left:
            self._wanted[path] = left
        self._woken.set()

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
            self._task = None
        if self._fd >= 0:
            asyncio.get_running_loop().remove_reader(self._fd)
        self._close()

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._woken.wait()
            await asyncio.sleep(_REST)
            self._woken.clear()
            if self._fd >= 0:
                loop.remove_reader(self._fd)
            try:
                changed = await finish(asyncio.to_thread(self._look, list(self._wanted)))
                if self._fd >= 0:
                    loop.add_reader(self._fd, self._woken.set)
                if changed:
                    await self._changed(changed)
            except OSError as error:
                log.warning("devices that appear are not noticed: %s", error)
            except Exception:
                log.exception("devices on the host have changed")

    def _look(self, wanted: Collection[Path]) -> set[Path]:
        """Read the events and adapt the watches; return the paths that may have changed."""
        if wanted and self._fd < 0:
            self._fd = syscalls.inotify_init()
        touched = self._events() if self._fd >= 0 else set()
        changed = {
            path
            for path in wanted
            if path not in self._entries or touched is None or not touched.isdisjoint(self._entries[path])
        }
        for path in self._entries.keys() - set(wanted):
            del self._entries[path]
        for path in changed:
            self._entries[path] = self._watched_entries(path)
        needed = {folder for entries in self._entries.values() for folder, _ in entries}
        for folder in self._folders.keys() - needed:
            self._forget(folder)
        if not wanted:
            self._close()
        return changed

    def _close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
            self._watches.clear()
            self._folders.clear()
            self._entries.clear()

    def _watched_entries(self, path: Path) -> list[Entry]:
        """Watch the directories on which a path depends; once more if they have changed meanwhile."""
        while True:
            entries = [entry for entry in lookups(path) if self._is_followed(entry[0])]
            new = [folder for folder, _ in entries if folder not in self._folders]
            if not new:
                return entries
            for folder in new:
                try:
                    watch = syscalls.inotify_add_watch(self._fd, folder, _MASK)
                except OSError as error:
                    if error.errno in (errno.ENOENT, errno.ENOTDIR):
                        break  # gone meanwhile
                    raise
                self._folders[folder] = watch
                self._watches[watch] = folder

    def _is_followed(self, folder: Path) -> bool:
        """Directories above the root are not watched."""
        return folder == self._root or not self._root.is_relative_to(folder)

    def _forget(self, folder: Path) -> None:
        watch = self._folders.pop(folder, None)
        if watch is not None and self._watches.get(watch) == folder:
            del self._watches[watch]
            _remove_watch(self._fd, watch)

    def _forget_below(self, folder: Path) -> None:
        for other in [known for known in self._folders if known.is_relative_to(folder)]:
            self._forget(other)

    def _events(self) -> set[Entry] | None:
        """Read all events: the entries that were touched; None if any may have been."""
        touched: set[Entry] = set()
        while True:
            try:
                data = os.read(self._fd, _BUFFER)
            except BlockingIOError:
                return touched
            for watch, mask, name in _parsed(data):
                if mask & syscalls.IN_Q_OVERFLOW:
                    return None
                folder = self._watches.get(watch)
                if folder is None:
                    continue
                if mask & (syscalls.IN_DELETE_SELF | syscalls.IN_MOVE_SELF | syscalls.IN_IGNORED):
                    self._forget_below(folder)
                    touched.add((folder.parent, folder.name))
                else:
                    touched.add((folder, name))
                    self._forget_below(folder / name)  # another directory may have taken its name


def _remove_watch(fd: int, watch: int) -> None:
    """Remove a watch, which the kernel may have removed with its directory."""
    try:
        syscalls.inotify_rm_watch(fd, watch)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise


def _parsed(data: bytes) -> Iterator[tuple[int, int, str]]:
    start = 0
    while start < len(data):
        watch, mask, _cookie, length = _EVENT.unpack_from(data, start)
        start += _EVENT.size
        name = data[start : start + length].rstrip(b"\0")
        start += length
        yield watch, mask, os.fsdecode(name)


def lookups(path: Path) -> list[Entry]:
    """Return the entries of directories that are looked up to find a file, symlinks included, in order; up to
    the first one that does not exist.
    """
    found: list[Entry] = []
    at, names, links = Path("/"), list(path.parts[1:]), 0
    while names:
        name = names.pop(0)
        if name == "..":
            at = at.parent
            continue
        found.append((at, name))
        try:
            target = (at / name).readlink()
        except OSError as error:
            if error.errno == errno.ENOTDIR:
                found.pop()  # `at` would have to change first, which is found already
            if error.errno != errno.EINVAL:
                break
            at /= name
            continue
        links += 1
        if links > _LINKS:
            break
        if target.is_absolute():
            at = Path("/")
        names = [part for part in target.parts if part != "/"] + names
    return found

"""Mounts of a running container: attached, detached and found from within its mount namespace.

Paths are resolved in the container, by its own root: neither symlinks nor `..` lead out, and links of
/proc are refused. What is created there belongs to the container's root.
"""

from __future__ import annotations

import contextlib
import os
import stat

from utsuwa.host import syscalls
from utsuwa.host.files.confined import ConfinedTree
from utsuwa.host.helper import kernel
from utsuwa.host.helper.confinement import stay_out_of_files


class InnerMounts:
    """The mounts of one container. Its worker stays in the container's mount namespace."""

    def __init__(self, init: int, uid: int, gid: int) -> None:
        """`init` is a pidfd of its init; `uid` and `gid` are the host's ids of its root. Raises OSError."""
        self._proc = os.open("/proc", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        stay_out_of_files()
        kernel.set_not_dumpable()
        kernel.setns(init, kernel.NAMESPACES["mnt"])
        root = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self._tree = ConfinedTree(root, host_root=False)  # nothing is written but mount points
        self._owner = (uid, gid)
        syscalls.setfsgid(gid)
        syscalls.setfsuid(uid)
        syscalls.raise_capabilities()  # changing the file-system uid dropped some

    def attach(self, tree: int, path: str, propagation: int) -> None:
        """Attach a detached mount at `path`, which is created with its parents if it does not exist."""
        is_folder = stat.S_ISDIR(os.fstat(tree).st_mode)
        syscalls.move_mount(tree, self._tree.mount_point(path, is_folder=is_folder, owner=self._owner))
        if propagation:
            recursive = bool(propagation & syscalls.MS_REC)
            syscalls.mount_setattr(tree, propagation=propagation & ~syscalls.MS_REC, recursive=recursive)

    def detach(self, path: str, *, remove_file: bool) -> bool:
        """Unmount what is mounted at `path`; return whether anything was.

        With `remove_file`, an empty regular file that it was mounted on is removed.
        """
        try:
            target = self._tree.look(path)
        except (FileNotFoundError, NotADirectoryError):
            return False
        found = syscalls.is_mount_root(target)
        if found:
            os.fchdir(self._proc)  # the host's: the container may not have one
            syscalls.umount2(f"self/fd/{target}", syscalls.MNT_DETACH)
        os.close(target)
        if remove_file:
            self._remove_file(path)
        return found

    def mounted(self, path: str) -> bool:
        """Return whether `path` is the root of a mount."""
        try:
            return syscalls.is_mount_root(self._tree.look(path))
        except (FileNotFoundError, NotADirectoryError):
            return False

    def _remove_file(self, path: str) -> None:
        with contextlib.suppress(OSError):
            mode, _, _, size, _, _ = self._tree.stat(path)
            if stat.S_ISREG(mode) and not size:
                self._tree.remove(path)

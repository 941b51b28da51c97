"""Mounts of running containers: attached, detached and found from within their mount namespaces.

Paths are resolved in the container, by its own root: neither symlinks nor `..` lead out, and links of
/proc are refused. What is created there belongs to the container's root.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat

from utsuwa.host import syscalls
from utsuwa.host.files.confined import ConfinedTree
from utsuwa.host.helper import kernel
from utsuwa.host.helper.confinement import stay_out_of_files

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from typing import Any

_FOLDER = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
_NOT_RETURNED = 1


class MountCalls:
    """The calls of a session for mounts in containers.

    The first descriptor of a call is a pidfd of the container's init; `uid` and `gid` are the host's ids of
    the container's root, who owns what is created. Between calls the worker is in the host's namespace, so
    that it keeps no container's mounts busy.
    """

    def __init__(self) -> None:
        self._proc = os.open("/proc", _FOLDER)
        self._root = os.open("/", _FOLDER)
        self._namespace = os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
        stay_out_of_files()
        kernel.set_not_dumpable()

    def methods(self) -> Mapping[str, Callable[..., Any]]:
        return {
            "mount": self.attach,
            "mount_bpf": self.attach_bpf,
            "unmount": self.detach,
            "mounted": self.mounted,
        }

    def attach(self, init: int, tree: int, path: str, uid: int, gid: int, propagation: int) -> None:
        """Attach a detached mount at `path`, which is created with its parents if it does not exist."""
        is_folder = stat.S_ISDIR(os.fstat(tree).st_mode)
        with self._inside(init, uid, gid) as files:
            place = files.mount_point(path, is_folder=is_folder, owner=(uid, gid))
            try:
                syscalls.move_mount(tree, place)
            finally:
                os.close(place)
            if propagation:
                recursive = bool(propagation & syscalls.MS_REC)
                syscalls.mount_setattr(tree, propagation=propagation & ~syscalls.MS_REC, recursive=recursive)

    def attach_bpf(self, init: int, path: str, uid: int, gid: int, options: list[tuple[str, str]]) -> None:
        """Attach a new BPF file system of the container's, with options that only the host's root can set."""
        context = _opened_inside(init, "bpf")
        try:
            for key, value in options:
                syscalls.fsconfig_string(context, key, value)
            syscalls.fsconfig_create(context)
            tree = syscalls.fsmount(
                context, syscalls.MOUNT_ATTR_NOSUID | syscalls.MOUNT_ATTR_NODEV | syscalls.MOUNT_ATTR_NOEXEC
            )
        finally:
            os.close(context)
        try:
            self.attach(init, tree, path, uid, gid, 0)
        finally:
            os.close(tree)

    def detach(self, init: int, path: str, uid: int, gid: int, remove_file: bool) -> bool:
        """Unmount what is mounted at `path`; return whether anything was.

        With `remove_file`, an empty regular file that it was mounted on is removed.
        """
        with self._inside(init, uid, gid) as files:
            try:
                target = files.look(path)
            except (FileNotFoundError, NotADirectoryError):
                return False
            try:
                found = syscalls.is_mount_root(target)
                if found:
                    os.fchdir(self._proc)  # the host's: the container may not have one
                    syscalls.umount2(f"self/fd/{target}", syscalls.MNT_DETACH)
            finally:
                os.close(target)
            if remove_file:
                _remove_file(files, path)
            return found

    def mounted(self, init: int, path: str, uid: int, gid: int) -> bool:
        """Return whether `path` is the root of a mount."""
        with self._inside(init, uid, gid) as files:
            try:
                target = files.look(path)
            except (FileNotFoundError, NotADirectoryError):
                return False
            try:
                return syscalls.is_mount_root(target)
            finally:
                os.close(target)

    @contextlib.contextmanager
    def _inside(self, init: int, uid: int, gid: int) -> Iterator[ConfinedTree]:
        """Be in a container's mount namespace within the block, with files as its root. Raises OSError."""
        kernel.setns(init, kernel.NAMESPACES["mnt"])
        try:
            root = os.open("/", _FOLDER)
            try:
                _own_files_as(uid, gid)
                yield ConfinedTree(root, host_root=False)  # nothing is written but mount points
            finally:
                os.close(root)
        finally:
            self._return()

    def _return(self) -> None:
        """Return to the host, or end: another container must not be served from within this one."""
        try:
            kernel.setns(self._namespace, kernel.NAMESPACES["mnt"])
            os.fchdir(self._root)
            os.chroot(".")
            _own_files_as(0, 0)
        except BaseException:
            os._exit(_NOT_RETURNED)


def _opened_inside(init: int, kind: str) -> int:
    """Return a context of a new file system that will belong to a container's user namespace.

    A process can open one in its own namespace only, and could not return from that of a container.
    """
    ours, theirs = socket.socketpair()
    with ours, theirs:
        child = os.fork()
        if not child:
            code = errno.EIO
            try:
                kernel.setns(init, kernel.NAMESPACES["user"] | kernel.NAMESPACES["mnt"])
                socket.send_fds(theirs, [b"\0"], [syscalls.fsopen(kind)])
                code = 0
            except OSError as error:
                code = error.errno or code
            finally:
                os._exit(code)
        _, status = os.waitpid(child, 0)
        if status:
            number = os.waitstatus_to_exitcode(status)
            raise OSError(number, os.strerror(number) if number > 0 else "it was killed")
        _, (context,), _, _ = socket.recv_fds(ours, 1, 1, socket.MSG_CMSG_CLOEXEC)
        return context


def _own_files_as(uid: int, gid: int) -> None:
    syscalls.setfsgid(gid)
    syscalls.setfsuid(uid)
    syscalls.raise_capabilities()  # changing the file-system uid dropped some


def _remove_file(files: ConfinedTree, path: str) -> None:
    with contextlib.suppress(OSError):
        mode, _, _, size, _, _ = files.stat(path)
        if stat.S_ISREG(mode) and not size:
            files.remove(path)

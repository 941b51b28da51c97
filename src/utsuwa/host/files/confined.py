"""Operations on the files below a directory, which none of them can leave.

The kernel resolves paths as if the directory were the root (`openat2` with RESOLVE_IN_ROOT and no magic
links): absolute symlinks and `..` stay inside, mounts are crossed. Names are created, removed and renamed
relative to an open directory, so a link that is exchanged meanwhile leads nowhere else. Only regular files
are opened, after a look at the inode, so that no FIFO or device blocks the caller.

All ids are those of the caller's user namespace. Failures are OSError. This module also runs in the helper,
so it must be quick to import: no pathlib.
"""

from __future__ import annotations

import errno
import os
import stat

from utsuwa.host import syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeAlias, TypeVar

    T = TypeVar("T")
    Entry: TypeAlias = tuple[int, int, int, int, int, int]
    """Mode with the file type, uid, gid, size, and the times of access and modification in nanoseconds."""

_RESOLVE = syscalls.RESOLVE_IN_ROOT | syscalls.RESOLVE_NO_MAGICLINKS
_ATTEMPTS = 100
"""Maximum number of retries of a lookup that raced with a rename (EAGAIN)."""
_LINKS = 40
"""Maximum number of symlinks that lead from one to another, as in the kernel."""
_FOLDER = os.O_RDONLY | os.O_DIRECTORY
_NEW = os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC

_KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFLNK: "a symlink",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}

_KERNEL_FILES = frozenset(
    {
        0x9FA0,  # proc
        0x62656572,  # sysfs
        0x27E0EB,  # cgroup
        0x63677270,  # cgroup2
        0x64626720,  # debugfs
        0x74726163,  # tracefs
        0x73636673,  # securityfs
        0x62656570,  # configfs
        0xCAFE4A11,  # bpf
        0xDE5E81E4,  # efivarfs
        0x6165676C,  # pstore
        0x19800202,  # mqueue
        0x42494E4D,  # binfmt_misc
    }
)
"""Magic numbers of the kernel's own file systems: a file there acts on the host or shows what is in it."""


class NotRegular(OSError):
    """Something else than a regular file was to be read or written."""

    def __init__(self, mode: int, path: str) -> None:
        kind = _KINDS.get(stat.S_IFMT(mode), "a special file")
        remedy = ": name a file in it" if stat.S_ISDIR(mode) else ""
        super().__init__(errno.EISDIR, f"{kind}, not a regular file{remedy}", path)


class ConfinedTree:
    """The tree below `root`, an open directory that stays the caller's.

    With `host_root`, as root of the host, the kernel's own file systems are refused: inside a user namespace
    the kernel does not give more there than the container itself has.
    """

    def __init__(self, root: int, *, host_root: bool = True) -> None:
        self._root = root
        self._host_root = host_root

    def stat(self, path: str, follow: bool = False) -> Entry:
        fd = self._look(path, follow=follow)
        try:
            return entry_of(os.fstat(fd))
        finally:
            os.close(fd)

    def names(self, path: str) -> list[str]:
        """Return the names in a directory, in no order."""
        fd = self._open(path, _FOLDER)
        try:
            return os.listdir(fd)
        finally:
            os.close(fd)

    def entries(self, path: str) -> list[tuple[str, Entry]]:
        """Return the names in a directory with what they are; symlinks are not followed."""
        found = []
        fd = self._open(path, _FOLDER)
        try:
            for name in sorted(os.listdir(fd)):
                try:
                    found.append((name, entry_of(os.lstat(name, dir_fd=fd))))
                except FileNotFoundError:
                    continue  # removed meanwhile
            return found
        finally:
            os.close(fd)

    def target(self, path: str) -> str:
        """Return the target of a symlink."""
        fd = self._look(path, follow=False)
        try:
            return os.readlink("", dir_fd=fd)
        except FileNotFoundError:
            raise OSError(errno.EINVAL, "not a symlink", path) from None
        finally:
            os.close(fd)

    def open(self, path: str, flags: int) -> int:
        """Open an existing regular file; the type is checked first, then the same inode is opened."""
        looked = self._look(path, follow=True)
        try:
            mode = os.fstat(looked).st_mode
            if not stat.S_ISREG(mode):
                raise NotRegular(mode, path)
            return os.open(f"/proc/self/fd/{looked}", flags | os.O_NONBLOCK | os.O_CLOEXEC)
        finally:
            os.close(looked)

    def open_directory(self, path: str) -> int:
        return self._permitted(self._open(path, _FOLDER), path)

    def create(self, path: str, flags: int, mode: int, owner: tuple[int, int]) -> tuple[int, bool]:
        """Open a regular file, and create it if it does not exist; return whether it was created.

        Only a new file gets mode and owner. The target of a dangling symlink is created, inside the tree.
        With O_EXCL among the flags, anything that is there raises FileExistsError.
        """
        for _ in range(_LINKS):
            if not flags & os.O_EXCL:
                try:
                    return self.open(path, flags), False
                except FileNotFoundError:
                    pass
            folder, name = self._parent(path)
            try:
                fd = os.open(name, flags | _NEW, 0o600, dir_fd=folder)
            except FileExistsError:
                if flags & os.O_EXCL:
                    raise
                path = self._followed(folder, name, path)
                continue
            else:
                try:
                    claim(fd, mode, owner)
                except OSError:
                    os.close(fd)
                    os.unlink(name, dir_fd=folder)
                    raise
                return fd, True
            finally:
                os.close(folder)
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)

    def place(self, path: str) -> tuple[int, str, bool]:
        """Open the directory that holds a file, or is to; return its name there, and whether it exists.

        If the path is a symlink, the place is that of its target, which need not exist.
        """
        for _ in range(_LINKS):
            folder, name = self._parent(path)
            try:
                target = os.readlink(name, dir_fd=folder)
            except FileNotFoundError:
                return folder, name, False
            except OSError:  # something else than a symlink
                return folder, name, True
            os.close(folder)
            path = _joined(path, target)
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)

    def make_directory(self, path: str, mode: int, owner: tuple[int, int]) -> None:
        """Create a directory. Raises FileExistsError for anything that is there."""

        def make(folder: int, name: str) -> None:
            os.mkdir(name, 0o700, dir_fd=folder)
            made = os.open(name, _FOLDER | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
            try:
                claim(made, mode, owner)
            except OSError:
                os.rmdir(name, dir_fd=folder)
                raise
            finally:
                os.close(made)

        self._beside(path, make)

    def mount_point(self, path: str, *, is_folder: bool, owner: tuple[int, int]) -> int:
        """Open, with O_PATH, what a directory or another file can be mounted on.

        What does not exist is created with its parents (0755). Raises IsADirectoryError or NotADirectoryError
        for the other kind.
        """
        names = path.strip("/").split("/")
        self.make_directories("/".join(names if is_folder else names[:-1]), owner)
        try:
            fd = self._look(path, follow=True)
        except FileNotFoundError:
            os.close(self.create(path, os.O_WRONLY, 0o644, owner)[0])
            fd = self._look(path, follow=True)
        if stat.S_ISDIR(os.fstat(fd).st_mode) != is_folder:
            os.close(fd)
            if is_folder:
                raise NotADirectoryError(errno.ENOTDIR, "a file, not a directory", path)
            raise IsADirectoryError(errno.EISDIR, "a directory, not a file", path)
        return fd

    def make_directories(self, path: str, owner: tuple[int, int]) -> None:
        """Create the directories of a path that do not exist (0755)."""
        names = path.strip("/").split("/")
        for depth in range(1, len(names) + 1):
            part = "/".join(names[:depth])
            try:
                os.close(self._look(part, follow=True))
            except FileNotFoundError:
                self.make_directory(part, 0o755, owner)

    def look(self, path: str) -> int:
        """Open a file of any type with O_PATH; symlinks are followed."""
        return self._look(path, follow=True)

    def make_symlink(self, path: str, target: str, owner: tuple[int, int]) -> None:
        def make(folder: int, name: str) -> None:
            os.symlink(target, name, dir_fd=folder)
            os.chown(name, *owner, dir_fd=folder, follow_symlinks=False)

        self._beside(path, make)

    def remove(self, path: str) -> None:
        """Remove a file of any type, or an empty directory."""

        def remove(folder: int, name: str) -> None:
            if stat.S_ISDIR(os.lstat(name, dir_fd=folder).st_mode):
                os.rmdir(name, dir_fd=folder)
            else:
                os.unlink(name, dir_fd=folder)

        self._beside(path, remove)

    def rename(self, old: str, new: str, replace: bool = True) -> None:
        """Rename within the tree; without `replace`, raises FileExistsError for a name that is there."""
        source, old_name = self._parent(old)
        try:
            target, new_name = self._parent(new)
            try:
                syscalls.renameat2(source, old_name, target, new_name, replace=replace)
            finally:
                os.close(target)
        finally:
            os.close(source)

    def link(self, old: str, new: str) -> None:
        """Give a file another name."""
        source, old_name = self._parent(old)
        try:
            target, new_name = self._parent(new)
            try:
                os.link(old_name, new_name, src_dir_fd=source, dst_dir_fd=target, follow_symlinks=False)
            finally:
                os.close(target)
        finally:
            os.close(source)

    def change(
        self,
        path: str,
        follow: bool,
        owner: tuple[int, int] | None,
        mode: int | None,
        times: tuple[int, int] | None,
    ) -> None:
        """Change owner, mode, and the times of access and modification in nanoseconds, unless None."""
        looked = self._look(path, follow=follow)
        try:
            link = stat.S_ISLNK(os.fstat(looked).st_mode)
            name = f"/proc/self/fd/{looked}"
            if owner is not None:
                syscalls.chown_open(looked, *owner)
            if mode is not None and not link:
                os.chmod(name, mode)
            if times is not None and not link:
                os.utime(name, ns=times)
        finally:
            os.close(looked)

    def space(self, path: str) -> tuple[int, ...]:
        """Return what `statvfs` tells of the file system of a path."""
        fd = self._look(path, follow=True)
        try:
            return tuple(os.fstatvfs(fd))
        finally:
            os.close(fd)

    def _look(self, path: str, *, follow: bool) -> int:
        fd = self._open(path, os.O_PATH if follow else os.O_PATH | os.O_NOFOLLOW)
        return self._permitted(fd, path)

    def _permitted(self, fd: int, path: str) -> int:
        if self._host_root and syscalls.filesystem_magic(fd) in _KERNEL_FILES:
            os.close(fd)
            raise PermissionError(errno.EPERM, "a file system of the kernel", path)
        return fd

    def _open(self, path: str, flags: int) -> int:
        for _ in range(_ATTEMPTS):
            try:
                return syscalls.openat2(self._root, path or "/", flags, resolve=_RESOLVE)
            except BlockingIOError:
                pass
        raise OSError(errno.EAGAIN, "directories in the path keep being renamed", path)

    def _parent(self, path: str) -> tuple[int, str]:
        """Open the directory that holds, or is to hold, the last name of a path."""
        above, _, name = path.rstrip("/").rpartition("/")
        if name in ("", ".", ".."):
            raise OSError(errno.EINVAL, "the path does not end in a name", path)
        fd = self._open(f"{above}/", os.O_PATH | os.O_DIRECTORY)
        return self._permitted(fd, path), name

    def _beside(self, path: str, work: Callable[[int, str], T]) -> T:
        folder, name = self._parent(path)
        try:
            return work(folder, name)
        finally:
            os.close(folder)

    def _followed(self, folder: int, name: str, path: str) -> str:
        """The path to which a symlink leads; another type of file has just been created by somebody else."""
        try:
            target = os.readlink(name, dir_fd=folder)
        except OSError:
            return path
        return _joined(path, target)


def _joined(path: str, target: str) -> str:
    """Return the path to which a symlink at `path` leads."""
    above = path.rstrip("/").rpartition("/")[0]
    return target if target.startswith("/") else f"{above}/{target}"


def entry_of(found: os.stat_result) -> Entry:
    return (
        found.st_mode,
        found.st_uid,
        found.st_gid,
        found.st_size,
        found.st_atime_ns,
        found.st_mtime_ns,
    )


def claim(fd: int, mode: int, owner: tuple[int, int]) -> None:
    """Give a new file mode and owner; the file system's journal is spared what it has already."""
    found = os.fstat(fd)
    if (found.st_uid, found.st_gid) != tuple(owner):
        os.fchown(fd, *owner)
        found = os.fstat(fd)
    if stat.S_IMODE(found.st_mode) != mode:
        os.fchmod(fd, mode)

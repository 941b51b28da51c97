"""System calls that Python lacks, each a thin wrapper without policy.

Failures raise OSError with errno and path; callers decide what an errno means. All of them release the
GIL, so they run well in worker threads. The helper imports this module too, so it imports nothing large.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct

TYPE_CHECKING = False
if TYPE_CHECKING:  # the helper imports this module, and must start quickly
    from pathlib import Path

_libc = ctypes.CDLL(None, use_errno=True)

# Numbers that are the same on all architectures (system calls added after Linux 5.0).
_NR_OPEN_TREE = 428
_NR_MOVE_MOUNT = 429
_NR_FSOPEN = 430
_NR_FSCONFIG = 431
_NR_FSMOUNT = 432
_NR_OPENAT2 = 437
_NR_MOUNT_SETATTR = 442

_NR_BPF = {"x86_64": 321, "ppc64le": 361, "s390x": 351}.get(os.uname().machine, 280)

_RENAME_NOREPLACE = 1
_RENAME_EXCHANGE = 2
_FALLOC_FL_KEEP_SIZE = 1
_SYNC_FILE_RANGE_WRITE = 2

_AT_SYMLINK_NOFOLLOW = 0x100
_STATX_MNT_ID = 0x1000
_STATX_ATTR_MOUNT_ROOT = 0x2000

AT_FDCWD = -100
AT_EMPTY_PATH = 0x1000
AT_RECURSIVE = 0x8000

OPEN_TREE_CLONE = 1
OPEN_TREE_CLOEXEC = os.O_CLOEXEC
MOVE_MOUNT_F_EMPTY_PATH = 0x4
MOVE_MOUNT_T_EMPTY_PATH = 0x40

MOUNT_ATTR_RDONLY = 0x1
MOUNT_ATTR_NOSUID = 0x2
MOUNT_ATTR_NODEV = 0x4
MOUNT_ATTR_NOEXEC = 0x8
MOUNT_ATTR_NOATIME = 0x10
MOUNT_ATTR_STRICTATIME = 0x20
MOUNT_ATTR_ATIME = 0x70
"""All settings of access times."""
MOUNT_ATTR_NODIRATIME = 0x80
MOUNT_ATTR_IDMAP = 0x100000

FSOPEN_CLOEXEC = 1
FSMOUNT_CLOEXEC = 1
_FSCONFIG_SET_FLAG = 0
_FSCONFIG_SET_STRING = 1
_FSCONFIG_CMD_CREATE = 6

MS_RDONLY = 0x1
MS_REC = 0x4000
MS_UNBINDABLE = 0x20000
MS_PRIVATE = 0x40000
MS_SLAVE = 0x80000
MS_SHARED = 0x100000
MNT_DETACH = 2
UMOUNT_NOFOLLOW = 8

RESOLVE_NO_XDEV = 0x01
RESOLVE_NO_MAGICLINKS = 0x02
RESOLVE_NO_SYMLINKS = 0x04
RESOLVE_BENEATH = 0x08
RESOLVE_IN_ROOT = 0x10

CLONE_FS = 0x00000200
CLONE_NEWNS = 0x00020000

IN_MOVED_FROM = 0x40
IN_MOVED_TO = 0x80
IN_CREATE = 0x100
IN_DELETE = 0x200
IN_DELETE_SELF = 0x400
IN_MOVE_SELF = 0x800
IN_Q_OVERFLOW = 0x4000
IN_IGNORED = 0x8000
IN_ONLYDIR = 0x1000000

LOOP_CTL_GET_FREE = 0x4C82
LOOP_CONFIGURE = 0x4C0A
LO_FLAGS_READ_ONLY = 1
LO_FLAGS_AUTOCLEAR = 4

_CAPABILITY_VERSION_3 = 0x20080522
_FILE_HANDLE = struct.Struct("=Ii")


class _Statx(ctypes.Structure):
    """`struct statx`: 256 bytes, of which only the fields used here are named."""

    _fields_ = (
        ("mask", ctypes.c_uint32),
        ("blksize", ctypes.c_uint32),
        ("attributes", ctypes.c_uint64),
        ("_stat", ctypes.c_uint8 * 128),
        ("mnt_id", ctypes.c_uint64),
        ("_rest", ctypes.c_uint8 * 104),
    )


class _MountAttr(ctypes.Structure):
    _fields_ = (
        ("attr_set", ctypes.c_uint64),
        ("attr_clr", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("userns_fd", ctypes.c_uint64),
    )


class _OpenHow(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


class _CapabilityHeader(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _CapabilityData(ctypes.Structure):
    _fields_ = (
        ("effective", ctypes.c_uint32),
        ("permitted", ctypes.c_uint32),
        ("inheritable", ctypes.c_uint32),
    )


class LoopConfig(ctypes.Structure):
    """`struct loop_config` with the loop_info64 in it; 304 bytes."""

    _fields_ = (
        ("fd", ctypes.c_uint32),
        ("block_size", ctypes.c_uint32),
        ("lo_device", ctypes.c_uint64),
        ("lo_inode", ctypes.c_uint64),
        ("lo_rdevice", ctypes.c_uint64),
        ("lo_offset", ctypes.c_uint64),
        ("lo_sizelimit", ctypes.c_uint64),
        ("lo_number", ctypes.c_uint32),
        ("lo_encrypt_type", ctypes.c_uint32),
        ("lo_encrypt_key_size", ctypes.c_uint32),
        ("lo_flags", ctypes.c_uint32),
        ("lo_file_name", ctypes.c_char * 64),
        ("lo_crypt_name", ctypes.c_char * 64),
        ("lo_encrypt_key", ctypes.c_uint8 * 32),
        ("lo_init", ctypes.c_uint64 * 2),
        ("reserved", ctypes.c_uint64 * 8),
    )


def _raise(path: str | os.PathLike[str] | None = None) -> None:
    number = ctypes.get_errno()
    raise OSError(number, os.strerror(number), None if path is None else os.fspath(path))


def _encode(path: str | os.PathLike[str]) -> bytes:
    encoded = os.fsencode(path)
    if b"\0" in encoded:
        raise ValueError(f"a path cannot contain a NUL: {path!r}")
    return encoded


def _call(number: int, *arguments: object, path: str | os.PathLike[str] | None = None) -> int:
    """Make a system call by number; integers are passed as 64-bit values."""
    widened = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    result = int(_libc.syscall(ctypes.c_long(number), *widened))
    if result < 0:
        _raise(path)
    return result


def mount(source: str, target: Path | str, fstype: str | None, flags: int, data: str | None = None) -> None:
    if _libc.mount(
        _encode(source),
        _encode(target),
        None if fstype is None else fstype.encode(),
        ctypes.c_ulong(flags),
        None if data is None else data.encode(),
    ):
        _raise(target)


def umount2(target: Path | str, flags: int = 0) -> None:
    if _libc.umount2(_encode(target), flags):
        _raise(target)


def pivot_root(new_root: str, old_root: str) -> None:
    """Make a mount the root of this process, and put the former root below it."""
    if _libc.pivot_root(_encode(new_root), _encode(old_root)):
        _raise(new_root)


def open_tree(path: Path | str | int, flags: int = OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC) -> int:
    """Open the mount at `path` (or at a descriptor), by default a detached copy of it."""
    if isinstance(path, int):
        return _call(_NR_OPEN_TREE, path, b"", flags | AT_EMPTY_PATH)
    return _call(_NR_OPEN_TREE, AT_FDCWD, _encode(path), flags, path=path)


def move_mount(mount_fd: int, target: Path | str | int) -> None:
    """Attach a detached mount at a path or at an open directory."""
    if isinstance(target, int):
        flags = MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH
        _call(_NR_MOVE_MOUNT, mount_fd, b"", target, b"", flags)
    else:
        _call(_NR_MOVE_MOUNT, mount_fd, b"", AT_FDCWD, _encode(target), MOVE_MOUNT_F_EMPTY_PATH, path=target)


def mount_setattr(
    mount: int | Path | str,
    *,
    attr_set: int = 0,
    attr_clr: int = 0,
    propagation: int = 0,
    userns_fd: int = 0,
    recursive: bool = False,
) -> None:
    attributes = _MountAttr(attr_set, attr_clr, propagation, userns_fd)
    flags = AT_RECURSIVE if recursive else 0
    size = ctypes.sizeof(attributes)
    if isinstance(mount, int):
        _call(_NR_MOUNT_SETATTR, mount, b"", flags | AT_EMPTY_PATH, ctypes.byref(attributes), size)
    else:
        _call(_NR_MOUNT_SETATTR, AT_FDCWD, _encode(mount), flags, ctypes.byref(attributes), size, path=mount)


def is_mount_root(path: Path | int) -> bool:
    """Return whether a path or an open file is the root of a mount, bind mounts included; symlinks are not
    followed.
    """
    found = _Statx()
    at = (
        (path, b"", AT_EMPTY_PATH)
        if isinstance(path, int)
        else (AT_FDCWD, _encode(path), _AT_SYMLINK_NOFOLLOW)
    )
    if _libc.statx(*at, _STATX_MNT_ID, ctypes.byref(found)):
        _raise(None if isinstance(path, int) else path)
    return bool(found.attributes & _STATX_ATTR_MOUNT_ROOT)


def mount_id(fd: int) -> int:
    """Return the id of the mount on which a descriptor was opened."""
    found = _Statx()
    if _libc.statx(fd, b"", AT_EMPTY_PATH, _STATX_MNT_ID, ctypes.byref(found)):
        _raise()
    return int(found.mnt_id)


def fsopen(fstype: str) -> int:
    return _call(_NR_FSOPEN, fstype.encode(), FSOPEN_CLOEXEC)


def fsconfig_string(fs_fd: int, key: str, value: str) -> None:
    _call(_NR_FSCONFIG, fs_fd, _FSCONFIG_SET_STRING, key.encode(), _encode(value), 0, path=value)


def fsconfig_flag(fs_fd: int, key: str) -> None:
    _call(_NR_FSCONFIG, fs_fd, _FSCONFIG_SET_FLAG, key.encode(), None, 0, path=key)


def fsconfig_create(fs_fd: int) -> None:
    _call(_NR_FSCONFIG, fs_fd, _FSCONFIG_CMD_CREATE, None, None, 0)


def fsmount(fs_fd: int, attributes: int = 0) -> int:
    """Create a detached mount of a file system created by `fsconfig_create`."""
    return _call(_NR_FSMOUNT, fs_fd, FSMOUNT_CLOEXEC, attributes)


def fs_messages(fs_fd: int) -> list[str]:
    """Return the kernel's messages about a file system that is being configured."""
    messages = []
    while True:
        try:
            messages.append(os.read(fs_fd, 8192).decode(errors="replace").strip())
        except OSError:
            return messages


def openat2(folder_fd: int, path: str | os.PathLike[str], flags: int, *, mode: int = 0, resolve: int) -> int:
    """Open a path relative to `folder_fd` with the given `RESOLVE_*` flags; always close-on-exec."""
    how = _OpenHow(flags | os.O_CLOEXEC, mode, resolve)
    return _call(_NR_OPENAT2, folder_fd, _encode(path), ctypes.byref(how), ctypes.sizeof(how), path=path)


def open_by_handle_at(mount_fd: int, kind: int, handle: bytes) -> int:
    """Open what a handle of the kernel refers to on the file system of an open file, as with O_PATH."""
    data = _FILE_HANDLE.pack(len(handle), kind) + handle
    found = _libc.open_by_handle_at(mount_fd, data, os.O_PATH | os.O_CLOEXEC)
    if found < 0:
        _raise()
    return int(found)


def bpf(command: int, attributes: bytearray) -> int:
    """Call bpf(2); `attributes` is its union, into which the kernel may write."""
    buffer = (ctypes.c_char * len(attributes)).from_buffer(attributes)
    return _call(_NR_BPF, command, buffer, len(attributes))


def renameat2(old_fd: int, old: str, new_fd: int, new: str, *, replace: bool) -> None:
    """Rename between two open directories; without `replace` an existing `new` raises FileExistsError."""
    flags = 0 if replace else _RENAME_NOREPLACE
    if _libc.renameat2(old_fd, _encode(old), new_fd, _encode(new), flags):
        _raise(new)


def exchange(folder_fd: int, one: str, other: str) -> None:
    """Exchange two entries of an open directory atomically, whatever they are."""
    if _libc.renameat2(folder_fd, _encode(one), folder_fd, _encode(other), _RENAME_EXCHANGE):
        _raise(one)


def reserve(fd: int, offset: int, size: int) -> None:
    """Allocate the space of a range without changing the file's size, if the file system can do that."""
    if size and _libc.fallocate(fd, _FALLOC_FL_KEEP_SIZE, ctypes.c_int64(offset), ctypes.c_int64(size)):
        number = ctypes.get_errno()
        if number not in (errno.EOPNOTSUPP, errno.ENOSYS, errno.ENODEV):
            _raise()


def chown_open(fd: int, uid: int, gid: int) -> None:
    """Change the owner of what a descriptor refers to, which may be an O_PATH one of a symlink."""
    if _libc.fchownat(fd, b"", ctypes.c_uint32(uid), ctypes.c_uint32(gid), AT_EMPTY_PATH):
        _raise()


def filesystem_magic(fd: int) -> int:
    """Return the magic number of a descriptor's file system."""
    buffer = (ctypes.c_ulong * 32)()
    if _libc.fstatfs(fd, buffer):
        _raise()
    return int(buffer[0]) & 0xFFFFFFFF


def setfsuid(uid: int) -> None:
    """Set the calling thread's file-system user id. Raises PermissionError if that fails."""
    _libc.setfsuid(ctypes.c_uint32(uid))
    if _libc.setfsuid(ctypes.c_uint32(0xFFFFFFFF)) != ctypes.c_int32(uid).value:
        raise PermissionError(f"cannot set the file-system user id {uid}")


def setfsgid(gid: int) -> None:
    """Set the calling thread's file-system group id. Raises PermissionError if that fails."""
    _libc.setfsgid(ctypes.c_uint32(gid))
    if _libc.setfsgid(ctypes.c_uint32(0xFFFFFFFF)) != ctypes.c_int32(gid).value:
        raise PermissionError(f"cannot set the file-system group id {gid}")


def raise_capabilities() -> None:
    """Make every permitted capability of the calling thread effective again."""
    header = _CapabilityHeader(_CAPABILITY_VERSION_3, 0)
    data = (_CapabilityData * 2)()
    if _libc.capget(ctypes.byref(header), data):
        _raise()
    for word in data:
        word.effective = word.permitted
    if _libc.capset(ctypes.byref(header), data):
        _raise()


def inotify_init() -> int:
    """Open a queue of events, which is read without blocking."""
    fd = int(_libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC))
    if fd < 0:
        _raise()
    return fd


def inotify_add_watch(fd: int, path: Path, mask: int) -> int:
    watch = int(_libc.inotify_add_watch(fd, _encode(path), ctypes.c_uint32(mask)))
    if watch < 0:
        _raise(path)
    return watch


def inotify_rm_watch(fd: int, watch: int) -> None:
    if _libc.inotify_rm_watch(fd, watch):
        _raise()


def syncfs(fd: int) -> None:
    """Write the file system of an open file or directory to disk."""
    if _libc.syncfs(fd):
        _raise()


def start_writeback(fd: int) -> None:
    """Have the kernel begin to write what has changed in a file to disk, without waiting for it."""
    if _libc.sync_file_range(fd, ctypes.c_int64(0), ctypes.c_int64(0), _SYNC_FILE_RANGE_WRITE):
        _raise()


def unshare(flags: int) -> None:
    """Dissociate parts of the calling thread's execution context."""
    if _libc.unshare(flags):
        _raise()

"""The program that builds the sandbox of `sandbox` by system calls, and does one job in it.

It imports nothing that takes time, and nothing at all after it has left the host's root: what runs then is
this process, which checks what passes through it by the rules of `scan`, and the system's programs.
"""

from __future__ import annotations

import os
import resource

from utsuwa.host import syscalls
from utsuwa.host.archives import scan
from utsuwa.host.helper import kernel

Files = dict[str, int]
"""The open files of a job by their names in the new root."""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import NoReturn

_FOLDERS = ("usr", "bin", "sbin", "lib", "lib32", "lib64", "libx32")
"""What holds the system's programs and their libraries."""
_NEW_ROOT = "/sys"
"""Where the new root is built: no archive and no target can be below it."""
_ENVIRONMENT = {
    "PATH": os.environ.get("PATH", os.defpath),
    "LANG": "C.UTF-8",
    "HOME": "/",
    # Without it, unsquashfs looks for the host's time zone with each file that it lists.
    "TZ": "UTC0",
    "TMPDIR": "/target",
}
_INERT = syscalls.MOUNT_ATTR_NOSUID | syscalls.MOUNT_ATTR_NODEV
_READ_ONLY = syscalls.MOUNT_ATTR_RDONLY | _INERT
_MEMORY = 4 * 2**30
"""Limit of the address space of each program, in bytes."""
_SCAN_MEMORY = 2**30
_SIGINT, _SIGKILL, _SIGPIPE, _SIGXFSZ = 2, 9, 13, 25
_IGNORED = (_SIGINT, _SIGPIPE, _SIGXFSZ)
"""Signals that Python or the helper ignores, and programs must not."""
_MS_REC, _MS_PRIVATE = 0x4000, 1 << 18
_MS_NOSUID, _MS_NODEV = 2, 4
_MNT_DETACH = 2
_WRITER_CAPABILITIES = (0, 1, 2, 3, 4, 27, 31)
"""chown, dac_override, dac_read_search, fowner, fsetid, mknod, setfcap: what sets owners, modes and file
capabilities."""
_READER_CAPABILITIES = (1, 2)
"""dac_override, dac_read_search."""
_ATTRIBUTES = (
    "--xattrs", "--xattrs-include=user.*", "--xattrs-include=security.capability",
    "--xattrs-include=system.posix_acl_*",
)  # fmt: skip
_TAR = (
    "tar", "--extract", "--file=-", "--preserve-permissions", "--same-owner", "--numeric-owner",
    *_ATTRIBUTES, "--restrict", "--no-quote-chars=",
)  # fmt: skip
_PACK = (
    "tar", "--create", "--file=-", "--format=posix", "--numeric-owner", *_ATTRIBUTES, "--sparse",
    "--pax-option=delete=atime,delete=ctime", "--warning=no-file-ignored", "--one-file-system",
)  # fmt: skip
"""With the times of modification in nanoseconds."""
ANY_SIZE = -1
_LARGE_BLOCKS = "--blocking-factor=256"
_STREAMS = ("send", "receive")
"""Jobs that end with the status of their program."""


def main(arguments: Sequence[str]) -> None:
    """Do one job.

    `arguments`: the pid of the parent, the archive, the target (empty for none), another file that is only
    read (empty for none), the maximum size of a file in bytes, and then the job: a name and its arguments.

    Ends the process. The exit statuses of the programs are the last line of stderr, except for `_STREAMS`.
    """
    parent, archive, target, base, size, job, *rest = arguments
    kernel.set_death_signal(_SIGKILL)
    if os.getppid() != int(parent):
        os._exit(1)
    if job in ("check", "split", "tar"):
        import tarfile  # noqa: F401 - for `scan`, which cannot do it any more

    def work() -> int:
        opened = enter(archive, target, base, writable=job != "send")
        if job in _STREAMS:
            return stream(job, int(size))
        _confine(int(size), _WRITER_CAPABILITIES if target else ())
        _end(_JOBS[job](opened, *rest))

    os._exit(_status(begin(work)))


def begin(work: Callable[[], int]) -> int:
    """Start the first process in new namespaces, whose exit status is the result of `work`; return its pid.

    It is killed when this process ends, which is in the same namespaces then but for that of processes.
    """
    os.umask(0o022)
    syscalls.unshare(sum(kernel.NAMESPACES[name] for name in ("mnt", "net", "ipc", "uts", "pid")))
    alive, held = os.pipe()
    child = os.fork()
    if child:
        os.close(alive)
        return child
    os.close(held)
    kernel.set_death_signal(_SIGKILL)
    os.set_blocking(alive, False)
    try:
        if not os.read(alive, 1):
            os._exit(1)  # the parent has ended just before it could take this process with it
    except BlockingIOError:
        os.close(alive)
    try:
        os._exit(work())
    except OSError as error:
        _say(f"the sandbox cannot be set up: {error}")
        os._exit(1)


def stream(job: str, size: int = ANY_SIZE) -> int:
    """Do one of `_STREAMS`, with files of at most `size` bytes; return the exit status of its program.

    The target is the working directory. What this process may do is limited for good.
    """
    _confine(size, _READER_CAPABILITIES if job == "send" else _WRITER_CAPABILITIES)
    return _JOBS[job]({})[0]


def _end(statuses: Sequence[int]) -> NoReturn:
    _report(statuses)
    os._exit(0)


def _report(statuses: Sequence[int]) -> None:
    _say("status " + " ".join(map(str, statuses)))


def enter(archive: str = "", target: str = "", base: str = "", *, writable: bool = False) -> Files:
    """Make the new root the only one that there is; return the open files.

    It is read-only, but for the target if that is `writable`.
    """
    syscalls.mount("none", "/", None, _MS_REC | _MS_PRIVATE)
    files = {
        name: os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        for name, path in (("archive", archive), ("base", base))
        if path
    }
    mounts = {name: _view(file) for name, file in files.items()}
    folders = {name: _view(f"/{name}") for name in _FOLDERS if _is_folder(f"/{name}")}
    links = {name: os.readlink(f"/{name}") for name in _FOLDERS if os.path.islink(f"/{name}")}  # noqa: PTH114, PTH115
    if target:
        folders["target"] = _view(target, target_attributes(writable=writable))
    syscalls.mount("utsuwa", _NEW_ROOT, "tmpfs", _MS_NOSUID | _MS_NODEV, "mode=0755,size=1m")
    os.chdir(_NEW_ROOT)
    for name, link in links.items():
        os.symlink(link, name)  # noqa: PTH211
    for name in ("old", "target", *folders):
        os.makedirs(name, exist_ok=True)  # noqa: PTH103
    for name in mounts:
        os.close(os.open(name, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC))
    for name, mount in (*folders.items(), *mounts.items()):
        syscalls.move_mount(mount, name)
        os.close(mount)
    syscalls.pivot_root(".", "old")
    syscalls.umount2("/old", _MNT_DETACH)
    os.rmdir("/old")  # noqa: PTH106
    syscalls.mount_setattr("/", attr_set=syscalls.MOUNT_ATTR_RDONLY)
    os.chdir("/target")
    return files


def target_attributes(*, writable: bool) -> int:
    """Return the attributes of the mount of a target."""
    return _INERT if writable else _READ_ONLY


def _view(source: str | int, attributes: int = _READ_ONLY) -> int:
    """Return a detached mount that shows a file or directory."""
    mount = syscalls.open_tree(source)
    syscalls.mount_setattr(mount, attr_set=attributes)
    return mount


def _is_folder(path: str) -> bool:
    return os.path.isdir(path) and not os.path.islink(path)  # noqa: PTH112, PTH114


def _confine(size: int, capabilities: Sequence[int]) -> None:
    """Limit what this process and its children may do, for good."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    kernel.set_no_new_privileges()
    for number in range(kernel.LAST_CAPABILITY + 1):
        if number not in capabilities:
            try:
                kernel.drop_capability(number)
            except OSError:  # the kernel knows no more
                break
    kernel.set_capabilities(capabilities)


# ---- jobs: each gets the open files and its arguments, and returns the exit statuses of its stages


def _check(files: Files, tree: str, entries: str, size: str, *decompress: str) -> list[int]:
    """Check a tar; its metadata.yaml goes to stdout."""
    return _scanned(decompress, files["archive"], ("check", tree, entries, size), os.dup(1))


def _list(_files: Files, tree: str, entries: str, size: str, name: str = "archive") -> list[int]:
    """Check what a squashfs lists."""
    listing = ("unsquashfs", "-no-progress", "-lln", f"/{name}")
    return _scanned(listing, 0, ("squashfs", tree, entries, size), os.dup(1))


def _split(files: Files, entries: str, size: str, count: str, *rest: str) -> list[int]:
    """Check the tar of a split image's metadata, and then its root file system, the base.

    The latter may still be on its way, until there is a line on stdin. `rest`: `count` words of the first
    one's decompressor, and those of the other one's, none for a squashfs.
    """
    of_metadata, of_rootfs = rest[: int(count)], rest[int(count) :]
    statuses = _check(files, "metadata", entries, size, *of_metadata)
    if any(statuses):
        return statuses
    _report(statuses)
    if not os.read(0, 1):
        os._exit(1)  # who would have written it has given up
    if of_rootfs:
        return _check({"archive": files["base"]}, "rootfs", entries, size, *of_rootfs)
    return _list(files, "rootfs", entries, size, "base")


def _cat(_files: Files, path: str) -> list[int]:
    """Write a file of a squashfs to stdout."""
    return [_status(_start(("unsquashfs", "-no-progress", "-cat", "/archive", path), 0, 1))]


def _delta(_files: Files, result: str) -> list[int]:
    """Apply a delta; neither decompressors for it nor compressors for the result are started."""
    return [_status(_start(("xdelta3", "-d", "-q", "-D", "-R", "-s", "/base", "/archive", result), 0, 1))]


def _tar(files: Files, into: str, tree: str, entries: str, size: str, count: str, *rest: str) -> list[int]:
    """Unpack a tar that is checked on its way; `rest`: `count` words of the decompressor, and more of tar."""
    decompress, more = rest[: int(count)], rest[int(count) :]
    os.makedirs(into, exist_ok=True)  # noqa: PTH103
    os.chdir(into)
    reading, writing = os.pipe()
    tar = _start((*_TAR, "--anchored", "--wildcards", *more), reading, 1)
    os.close(reading)
    statuses = _scanned(decompress, files["archive"], ("tar", tree, entries, size), writing)
    statuses.append(_status(tar))
    _remove_block_devices(into)
    return statuses


def _squashfs(_files: Files, into: str, *excluded: str) -> list[int]:
    """Unpack a squashfs."""
    words = ("unsquashfs", "-no-progress", "-quiet", "-force", "-dest", into, "-excludes", "/archive")
    status = _status(_start((*words, *excluded), 0, 1))
    _remove_block_devices(into)
    return [status]


def _send(_files: Files) -> list[int]:
    """Write the target as a tar to stdout."""
    return [_status(_start((*_PACK, _LARGE_BLOCKS, "."), 0, 1))]


def _receive(_files: Files) -> list[int]:
    """Unpack a tar from stdin into the target."""
    return [_status(_start((*_TAR, _LARGE_BLOCKS, "--delay-directory-restore"), 0, 1))]


_JOBS: dict[str, Callable[..., list[int]]] = {
    "check": _check,
    "list": _list,
    "split": _split,
    "cat": _cat,
    "delta": _delta,
    "tar": _tar,
    "squashfs": _squashfs,
    "send": _send,
    "receive": _receive,
}


def _scanned(program: Sequence[str], archive: int, rules: Sequence[str], out: int) -> list[int]:
    """Have what a program makes of the archive scanned; return the statuses of both. Closes `out`."""
    reading, writing = os.pipe()
    source = _start(program, archive, writing)
    os.close(writing)
    resource.setrlimit(resource.RLIMIT_AS, (_SCAN_MEMORY, _MEMORY))
    scanned = 0
    try:
        with os.fdopen(reading, "rb") as stream, os.fdopen(out, "wb") as sink:
            scanned = scan.main(rules, stream, sink)
    except BrokenPipeError:
        pass  # tar has ended before the rest was written, and reports why itself
    return [_status(source), scanned]


def _remove_block_devices(folder: str) -> None:
    if _status(_start(("find", folder, "-xdev", "-type", "b", "-delete"), 0, 1)):
        os._exit(1)


def _start(words: Sequence[str], stdin: int, stdout: int) -> int | None:
    """Start a program; return its pid, None if there is no such program."""
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    actions = [(os.POSIX_SPAWN_DUP2, stdin, 0), (os.POSIX_SPAWN_DUP2, stdout, 1)]
    try:
        return os.posix_spawnp(words[0], list(words), _ENVIRONMENT, file_actions=actions, setsigdef=_IGNORED)
    except FileNotFoundError:
        _say(f"{words[0]}: command not found")
        return None


def _status(pid: int | None) -> int:
    """Wait for a program; return its exit status as a shell does."""
    if pid is None:
        return 127
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return code if code >= 0 else 128 - code


def _say(line: str) -> None:
    os.write(2, f"{line}\n".encode())

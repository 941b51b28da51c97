"""Unpacking of untrusted image archives.

`tar`, `unsquashfs` and the decompressors run in a sandbox: separate mount, PID, network and IPC
namespaces; a root that contains only the system's programs (read-only), the archive and the target;
only the capabilities needed to set owners, modes and file capabilities; limits on time, memory and
file size. `scan` checks each entry in the pipeline. The worst that an archive can do is to fill the
target, which is then removed.

The content of `dev/` is skipped: a container's `/dev` is a tmpfs that liblxc populates. Other character
device nodes are unpacked: an unprivileged container cannot open them, as its root is mounted with `nodev`,
and a privileged one only those that its device cgroup allows. Block device nodes are skipped everywhere:
mounting a file system that the host has mounted already bypasses the device cgroup. Of the extended
attributes only `user.*`, `security.capability` and `system.posix_acl_*` are kept: `trusted.overlay.*` would
control the overlay on top. ACLs as texts (`tar --acls`) are not, as they contain names of the host's users.

All functions block and must run in worker threads.
"""

from __future__ import annotations

import os
import shutil
import stat
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from utsuwa.core.errors import InvalidImage, OutOfSpace
from utsuwa.host.archives import scan as archive_scan
from utsuwa.host.processes.run import Completed, run_blocking
from utsuwa.host.processes.stopper import Stopper

Tree = Literal["unified", "metadata", "rootfs"]

METADATA = archive_scan.METADATA
MAX_METADATA = archive_scan.MAX_METADATA

_MAGIC: tuple[tuple[int, bytes, str], ...] = (
    (0, b"hsqs", "squashfs"),
    (0, b"\xfd7zXZ\0", "xz"),
    (0, b"\x1f\x8b", "gzip"),
    (0, b"\x28\xb5\x2f\xfd", "zstd"),
    (0, b"BZh", "bzip2"),
    (0, b"\x04\x22\x4d\x18", "lz4"),
    (0, b"\x5d\0\0", "lzma"),
    (257, b"ustar", "tar"),
)

_DECOMPRESSORS: dict[str, tuple[str, ...]] = {
    "tar": ("cat",),
    "xz": ("xz", "-dc", "-T0", "--memlimit-decompress=1GiB"),
    "gzip": ("gzip", "-dc"),
    "zstd": ("zstd", "-dcq", "--memory=1024MB"),
    "bzip2": ("bzip2", "-dc"),
    "lz4": ("lz4", "-dcq"),
    "lzma": ("xz", "-dc", "--format=lzma", "--memlimit-decompress=1GiB"),
}

_SUFFIXES = {
    "squashfs": ".squashfs",
    "tar": ".tar",
    "xz": ".tar.xz",
    "gzip": ".tar.gz",
    "zstd": ".tar.zst",
    "bzip2": ".tar.bz2",
    "lz4": ".tar.lz4",
    "lzma": ".tar.lzma",
}


@dataclass(frozen=True)
class UnpackLimits:
    """Limits of one archive: unpacked bytes, entries, seconds."""

    size: int = 256 * 2**30
    entries: int = 2_000_000
    seconds: int = 3600


DEFAULT_LIMITS = UnpackLimits()

_MEMORY = 4 * 2**30
"""Address space limit of each program in the sandbox, in bytes."""
_SIGPIPE = 128 + 13
_KEPT_CAPABILITIES = "-all,+chown,+dac_override,+dac_read_search,+fowner,+fsetid,+mknod,+setfcap"

# Arguments: the archive, the target (empty for none), the scanner's file, the limits of file size and
# address space in KiB, and then the job: a name and its arguments. The new root is built at /sys, as no
# archive and no target can be below it.
_SANDBOX = r"""
set -eu
umask 022
archive=$1 target=$2 scanner=$3 file_limit=$4 memory=$5 job=$6
shift 6
ulimit -c 0
ulimit -f "$file_limit"
ulimit -v "$memory"
exec 3<"$archive"
if [ -n "$target" ]; then cd "$target"; fi
mount -t tmpfs -o mode=0755,nosuid,nodev,size=1m utsuwa /sys
mkdir /sys/target /sys/old /sys/proc
: >/sys/archive
: >/sys/scan.py
for folder in usr bin sbin lib lib32 lib64 libx32; do
    if [ -L "/$folder" ]; then
        cp -P "/$folder" "/sys/$folder"
    elif [ -d "/$folder" ]; then
        mkdir -p "/sys/$folder"
        mount --bind -o ro "/$folder" "/sys/$folder"
    fi
done
mount --bind -o ro "$archive" /sys/archive
mount --bind -o ro "$scanner" /sys/scan.py
if [ -n "$target" ]; then
    mount --no-canonicalize --bind . /sys/target
    mount -o remount,bind,nodev /sys/target
fi
cd /sys
mount -t proc proc proc # umount reads it; it is gone before the archive is read
pivot_root . old
umount -l /old
umount -l /proc
cd /target
export HOME=/ TMPDIR=/target
confined() { setpriv --no-new-privs --bounding-set "$CAPABILITIES" --inh-caps=-all "$@"; }
scan() { ulimit -v 1048576; confined python3 -I -S /scan.py "$@"; }
set +e
case $job in
check)
    tree=$1 entries=$2 size=$3; shift 3
    confined "$@" <&3 | scan check "$tree" "$entries" "$size"
    ;;
tar)
    into=$1 tree=$2 entries=$3 size=$4 count=$5; shift 5
    decompress=("${@:1:$count}"); shift "$count"
    mkdir -p "$into" && cd "$into" || exit 1
    confined "${decompress[@]}" <&3 | scan tar "$tree" "$entries" "$size" |
        confined tar --extract --file=- --preserve-permissions --same-owner --numeric-owner \
            --xattrs --xattrs-include='user.*' --xattrs-include=security.capability \
            --xattrs-include='system.posix_acl_*' \
            --restrict --no-quote-chars='' --anchored --wildcards "$@"
    ;;
list)
    confined unsquashfs -no-progress -lln /archive | scan squashfs "$1" "$2" "$3"
    ;;
cat)
    confined unsquashfs -no-progress -cat /archive "$1"
    ;;
squashfs)
    into=$1; shift
    confined unsquashfs -no-progress -quiet -force -dest "$into" -excludes /archive "$@"
    ;;
esac
status=${PIPESTATUS[*]}
case $job in
tar | squashfs)
    confined find "$into" -xdev -type b -delete || exit 1
    ;;
esac
echo "status $status" >&2
"""


def archive_format(path: Path) -> str:
    """Return `squashfs`, `tar` (uncompressed) or the compression of a tar archive, by its magic number.

    Raises InvalidImage if the format is unknown.
    """
    with path.open("rb") as file:
        start = file.read(512)
    for offset, magic, name in _MAGIC:
        if start[offset : offset + len(magic)] == magic:
            return name
    raise InvalidImage(
        "The image has an unknown format: it must be a squashfs or a tar archive, uncompressed "
        "or compressed with xz, gzip, zstd, bzip2, lz4 or lzma"
    )


def archive_suffix(path: Path) -> str:
    """Return the file name extension for this archive, such as `.tar.xz`."""
    return _SUFFIXES[archive_format(path)]


def check_image(
    metadata: Path,
    rootfs: Path | None,
    *,
    limits: UnpackLimits = DEFAULT_LIMITS,
    stopper: Stopper | None = None,
) -> bytes:
    """Check a complete image without unpacking it; return its metadata.yaml.

    A tar archive is decompressed for this; only the tables of a squashfs are read. The two files of a split
    image are read in parallel. Raises InvalidImage, OutOfSpace if it exceeds the limits, or ProcessFailed if
    `stopper` cuts it short.
    """
    if rootfs is None:
        return _check(metadata, "unified", limits, stopper)
    with ThreadPoolExecutor(1, thread_name_prefix="check-image") as beside:
        checked = beside.submit(_check, rootfs, "rootfs", limits, stopper)
        content = _check(metadata, "metadata", limits, stopper)
        checked.result()
    return content


def _check(archive: Path, tree: Tree, limits: UnpackLimits, stopper: Stopper | None) -> bytes:
    form = archive_format(archive)
    if form == "squashfs":
        _list_squashfs(archive, tree, limits, stopper)
        return b"" if tree == "rootfs" else _squashfs_metadata(archive, limits)
    job = ("check", tree, str(limits.entries), str(limits.size), *_DECOMPRESSORS[form])
    result = _sandbox(archive, None, limits, *job, stopper=stopper)
    _judge(result, "decompression", "scan")
    return result.stdout


def _squashfs_metadata(archive: Path, limits: UnpackLimits) -> bytes:
    result = _sandbox(archive, None, limits, "cat", METADATA)
    _judge(result, "unsquashfs")
    if len(result.stdout) > MAX_METADATA:
        raise InvalidImage(f"The image is invalid: its {METADATA} is larger than {MAX_METADATA} bytes")
    return result.stdout


def unpack_image(
    metadata: Path,
    rootfs: Path | None,
    target: Path,
    *,
    limits: UnpackLimits = DEFAULT_LIMITS,
    stopper: Stopper | None = None,
) -> None:
    """Unpack a unified or a split image into `target/{metadata.yaml,templates/,rootfs/}`.

    `target` must not exist or be an empty directory; its parent must exist. Owners, modes, hard links and
    file capabilities are kept; `dev/` and block device nodes are skipped. Nothing is left behind on failure.
    Raises InvalidImage, OutOfSpace and ProcessFailed, the last also when stopped by `stopper`.
    """
    with _Target(target), ThreadPoolExecutor(1, thread_name_prefix="judge-image") as beside:
        if rootfs is None:
            _unpack(metadata, target, "unified", limits, stopper)
        else:
            room = _room(target, limits)
            judged = beside.submit(_judge_ahead, rootfs, "rootfs", room, stopper)
            _unpack(metadata, target, "metadata", limits, stopper)
            judged.result()
            (target / "rootfs").mkdir(mode=0o755, exist_ok=True)
            _unpack(rootfs, target, "rootfs", limits, stopper, judged=True)
        _tidy(target)


def unpack_metadata(metadata: Path, target: Path, *, limits: UnpackLimits = DEFAULT_LIMITS) -> None:
    """Unpack only `target/{metadata.yaml,templates/}`, for images whose root file system is mounted.

    Otherwise the same as `unpack_image`.
    """
    with _Target(target):
        _unpack(metadata, target, "metadata", limits, None, without_rootfs=True)
        _tidy(target)


class _Target:
    """The target directory: private while in use, removed if the block fails."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._made = False

    def __enter__(self) -> None:
        try:
            self._path.mkdir(mode=0o700)
            self._made = True
        except FileExistsError:
            if self._path.is_symlink() or any(self._path.iterdir()):
                raise

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            return
        for entry in self._path.iterdir():
            _remove(entry)
        if self._made:
            self._path.rmdir()


def _unpack(
    archive: Path,
    target: Path,
    tree: Tree,
    limits: UnpackLimits,
    stopper: Stopper | None,
    *,
    without_rootfs: bool = False,
    judged: bool = False,
) -> None:
    inner, left_out = ("rootfs", ["dev/*"]) if tree == "rootfs" else ("", ["rootfs/dev/*"])
    if without_rootfs:
        left_out = ["rootfs"]
    room = _room(target, limits)
    form = archive_format(archive)
    if form == "squashfs":
        if not judged:
            _list_squashfs(archive, tree, room, stopper)
        with _read_by("unsquashfs", archive, stopper):
            result = _sandbox(
                archive, target, room, "squashfs", f"/target/{inner}", *left_out, stopper=stopper
            )
        _judge(result, "unsquashfs")
        return
    excludes = [f"--exclude={start}{name}" for name in left_out for start in ("", "./", "/")]
    decompressor = _DECOMPRESSORS[form]
    with _read_by(decompressor[0], archive, stopper):
        result = _sandbox(
            archive,
            target,
            room,
            "tar",
            f"/target/{inner}",
            tree,
            str(room.entries),
            str(room.size),
            str(len(decompressor)),
            *decompressor,
            *excludes,
            stopper=stopper,
        )
    _judge(result, "decompression", "scan", "tar")


def _read_by(program: str, archive: Path, stopper: Stopper | None) -> AbstractContextManager[None]:
    """Have the stopper tell how much of the archive a program has read."""
    return nullcontext() if stopper is None else stopper.reading(program, archive.stat().st_size)


def _judge_ahead(archive: Path, tree: Tree, limits: UnpackLimits, stopper: Stopper | None) -> None:
    """Check a squashfs, which takes a separate pass; a tar is checked while it is unpacked."""
    if archive_format(archive) == "squashfs":
        _list_squashfs(archive, tree, limits, stopper)


def _list_squashfs(archive: Path, tree: Tree, limits: UnpackLimits, stopper: Stopper | None = None) -> None:
    result = _sandbox(
        archive, None, limits, "list", tree, str(limits.entries), str(limits.size), stopper=stopper
    )
    _judge(result, "unsquashfs", "scan")


def _room(target: Path, limits: UnpackLimits) -> UnpackLimits:
    """Return the limits, reduced to the free space of the target's file system."""
    disk = os.statvfs(target)
    return UnpackLimits(min(limits.size, disk.f_bavail * disk.f_frsize), limits.entries, limits.seconds)


def _sandbox(
    archive: Path,
    target: Path | None,
    limits: UnpackLimits,
    job: str,
    *arguments: str,
    stopper: Stopper | None = None,
) -> Completed:
    """Run one job of the script, which writes the exit statuses to the last line of stderr.

    It is killed when the daemon ends; the next start removes what it has unpacked so far.
    """
    return run_blocking(
        [
            "setpriv", "--pdeathsig", "KILL",
            "unshare", "--mount", "--net", "--ipc", "--uts", "--pid", "--fork", "--kill-child",
            "bash", "-c", _SANDBOX, "utsuwa-unpack",
            str(archive.absolute()), str(target.absolute() if target else ""), archive_scan.__file__,
            str(limits.size // 1024 + 1), str(_MEMORY // 1024), job, *arguments,
        ],
        timeout=limits.seconds,
        env={"CAPABILITIES": _KEPT_CAPABILITIES},
        stopper=stopper,
    )  # fmt: skip


def _judge(result: Completed, *stages: str) -> None:
    """Raise the error that a stage of the pipeline reported, if any.

    A stage killed by SIGPIPE because the next one had exited is not considered a failure.
    """
    text, _, last = result.stderr.decode(errors="replace").rstrip("\n").rpartition("\n")
    codes = dict(zip(stages, map(int, last.split()[1:]), strict=True))
    said = [line for line in text.splitlines() if line.strip()]
    failed = [stage for stage in stages if codes[stage] not in (0, _SIGPIPE)]
    if not failed:
        return
    if any("No space left on device" in line or "quota exceeded" in line for line in said):
        raise OutOfSpace("No space left while unpacking the image: free some space and try again")
    if failed[0] == "scan":
        _raise_verdict(codes["scan"], text)
    reasons = [line for line in said if archive_scan.VERDICT not in line]
    reason = reasons[-1] if reasons else f"{failed[0]} ended with status {codes[failed[0]]}"
    raise InvalidImage(f"The image cannot be unpacked and may be damaged: {reason[:300]}")


def _raise_verdict(code: int, text: str) -> None:
    if code == archive_scan.TOO_LARGE:
        raise OutOfSpace(
            "The image is too large for the available space: free some space or use another pool"
        )
    # Not necessarily at the beginning of a line: tar writes its own lines in pieces to the same pipe.
    _, found, verdict = text.partition(archive_scan.VERDICT)
    if found:
        raise InvalidImage(f"The image is invalid: {verdict.partition(chr(10))[0]}")


def _tidy(target: Path) -> None:
    """Check the result, and remove what is not part of an image."""
    for entry in target.iterdir():
        if entry.name not in (METADATA, "templates", "rootfs"):
            _remove(entry)
    metadata, templates = target / METADATA, target / "templates"
    _own_file(metadata)
    if metadata.stat().st_size > MAX_METADATA:
        raise InvalidImage(f"The image is invalid: its {METADATA} is larger than 1 MiB")
    if os.path.lexists(templates):
        _own_tree(templates)


def holds_block_devices(tree: Path) -> bool:
    """Return whether a tree that was unpacked elsewhere contains block device nodes."""
    return bool(run_blocking(["find", str(tree), "-xdev", "-type", "b", "-print", "-quit"]).stdout)


def _own_tree(folder: Path) -> None:
    """Make templates regular files in directories owned by root, as the daemon reads them."""
    if not stat.S_ISDIR(folder.lstat().st_mode):
        raise InvalidImage("The image is invalid: templates is not a directory")
    os.chown(folder, 0, 0)
    folder.chmod(0o755)
    for entry in folder.iterdir():
        if stat.S_ISDIR(entry.lstat().st_mode):
            _own_tree(entry)
        else:
            _own_file(entry)


def _own_file(path: Path) -> None:
    status = path.lstat()
    if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
        raise InvalidImage(f"The image is invalid: {path.name} is not a regular file with a single link")
    os.chown(path, 0, 0)
    path.chmod(0o644)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()

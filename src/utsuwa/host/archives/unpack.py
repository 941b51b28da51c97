"""Unpacking of untrusted image archives.

`tar`, `unsquashfs` and the decompressors run in a `sandbox`.

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
from pathlib import Path

from utsuwa.core.errors import InvalidImage
from utsuwa.host.archives.check import check_squashfs
from utsuwa.host.archives.formats import DECOMPRESSORS, archive_format
from utsuwa.host.archives.sandbox import DEFAULT_LIMITS, Tree, UnpackLimits, judge, run_job
from utsuwa.host.archives.scan import MAX_METADATA, METADATA
from utsuwa.host.processes.run import run_blocking
from utsuwa.host.processes.stopper import Stopper


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
            check_squashfs(archive, tree, room, stopper)
        with _read_by("unsquashfs", archive, stopper):
            result = run_job(
                archive, target, room, "squashfs", f"/target/{inner}", *left_out, stopper=stopper
            )
        judge(result, "unsquashfs")
        return
    excludes = [f"--exclude={start}{name}" for name in left_out for start in ("", "./", "/")]
    decompressor = DECOMPRESSORS[form]
    with _read_by(decompressor[0], archive, stopper):
        result = run_job(
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
    judge(result, "decompression", "scan", "tar")


def _read_by(program: str, archive: Path, stopper: Stopper | None) -> AbstractContextManager[None]:
    """Have the stopper tell how much of the archive a program has read."""
    return nullcontext() if stopper is None else stopper.reading(program, archive.stat().st_size)


def _judge_ahead(archive: Path, tree: Tree, limits: UnpackLimits, stopper: Stopper | None) -> None:
    """Check a squashfs, which takes a separate pass; a tar is checked while it is unpacked."""
    if archive_format(archive) == "squashfs":
        check_squashfs(archive, tree, limits, stopper)


def _room(target: Path, limits: UnpackLimits) -> UnpackLimits:
    """Return the limits, reduced to the free space of the target's file system."""
    disk = os.statvfs(target)
    return UnpackLimits(min(limits.size, disk.f_bavail * disk.f_frsize), limits.entries, limits.seconds)


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

"""Trees of files as drivers copy and measure them."""

from __future__ import annotations

import errno
import os
import shutil
import stat
from contextlib import nullcontext
from pathlib import Path

from utsuwa.core.errors import InvalidImage
from utsuwa.host.files.filetree import remove_tree
from utsuwa.host.mounts.overlays import attribute_prefix
from utsuwa.host.processes.run import run_blocking
from utsuwa.host.processes.stopper import Stopper
from utsuwa.storage.drivers.small_trees import copy_small_tree

_COPY_TIMEOUT = 3600
_METADATA = "metadata.yaml"
_TEMPLATES = "templates"
_MAX_TEMPLATE = 1024 * 1024
_MAX_TEMPLATES = 1000


def copy_tree(
    source: Path, target: Path, stopper: Stopper | None = None, descriptor: int | None = None
) -> None:
    """Copy a tree with all attributes, hard links and holes, sharing blocks if the file system supports it.

    `descriptor` is passed on if `source` is a path below it in /proc/self/fd. The copying ends with the
    daemon; what was copied so far is removed at its next start. Raises ProcessFailed, also if `stopper` is
    stopped.
    """
    if copy_small_tree(source, target, stopper):
        return
    options = ["--archive", "--reflink=auto", "--one-file-system", "--no-target-directory"]
    passed = () if descriptor is None else (descriptor,)
    copy = ["cp", *options, "--", str(source), str(target)]
    with nullcontext() if stopper is None else stopper.reading("cp"):
        run_blocking(
            ["setpriv", "--pdeathsig", "KILL", *copy],
            timeout=_COPY_TIMEOUT,
            stopper=stopper,
            pass_fds=passed,
        )


def copy_metadata(image: Path, folder: Path) -> None:
    """Give an instance its own `metadata.yaml` and `templates/` from an image's folder.

    Only plain files are copied, no symlink is followed. Raises InvalidImage for others and past the limits.
    """
    _copy_file(image / _METADATA, folder / _METADATA)
    templates = image / _TEMPLATES
    if templates.is_symlink():
        raise InvalidImage(f"{_TEMPLATES} is not a directory")
    if not templates.exists():
        return
    count = 0
    for below, folders, files in os.walk(templates):
        target = folder / _TEMPLATES / Path(below).relative_to(templates)
        target.mkdir(mode=0o755)
        count += len(folders) + len(files)
        if count > _MAX_TEMPLATES:
            raise InvalidImage(f"The image holds more than {_MAX_TEMPLATES} templates")
        for name in files:
            _copy_file(Path(below) / name, target / name)


def remove_metadata(folder: Path) -> None:
    """Remove what `copy_metadata` has copied."""
    (folder / _METADATA).unlink(missing_ok=True)
    remove_tree(folder / _TEMPLATES)


def _copy_file(source: Path, target: Path) -> None:
    fd = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(fd, "rb") as file:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or status.st_size > _MAX_TEMPLATE:
            raise InvalidImage(f"{source.name} in the image is not a file of at most {_MAX_TEMPLATE} bytes")
        made = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        with os.fdopen(made, "wb") as out:
            shutil.copyfileobj(file, out)


def link_or_copy(source: Path, target: Path) -> None:
    """The pool keeps the file, whatever becomes of the image outside of it."""
    try:
        target.hardlink_to(source)
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EPERM, errno.EMLINK):
            raise
        shutil.copyfile(source, target)


def look_alike(source: Path, target: Path) -> None:
    """Copy owner, mode, attributes and times of a directory: the root of an overlay is its upper layer's."""
    status = source.stat()
    os.chown(target, status.st_uid, status.st_gid)
    target.chmod(stat.S_IMODE(status.st_mode))
    for name in _own_attributes(source):
        if name.startswith(("user.", "system.posix_acl_")):
            os.setxattr(target, name, os.getxattr(source, name))
    os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))


def looks_alike(first: Path, second: Path) -> bool:
    """Return whether owner, mode, attributes and modification time of two directories are the same."""
    return _look(first) == _look(second)


def _look(path: Path) -> tuple[object, ...]:
    status = path.stat()
    attributes = {name: os.getxattr(path, name) for name in _own_attributes(path)}
    return status.st_uid, status.st_gid, status.st_mode, status.st_mtime_ns, attributes


def _own_attributes(path: Path) -> list[str]:
    """Return the names of extended attributes that are not those of overlayfs.

    There are none if the file system has none (a squashfs built without).
    """
    try:
        return [name for name in os.listxattr(path) if not name.startswith(attribute_prefix())]
    except OSError as error:
        if error.errno != errno.ENOTSUP:
            raise
        return []


def bytes_below(folder: Path) -> int:
    """Bytes on disk of a tree that may change meanwhile; a file with several names counts once."""
    total = 0
    linked: set[int] = set()
    for _, folders, files, fd in os.fwalk(folder):
        for name in (*folders, *files):
            try:
                status = os.lstat(name, dir_fd=fd)
            except FileNotFoundError:
                continue
            if status.st_nlink > 1 and not stat.S_ISDIR(status.st_mode):
                if status.st_ino in linked:
                    continue
                linked.add(status.st_ino)
            total += status.st_blocks * 512
    return total

"""Watches of files (inotify) in the images of CRIU: those of files on an overlay get paths.

CRIU notes the path of a watched file only if the kernel shows the number of its inode as `stat` does. On an
overlay whose layers are on several file systems, that is not so. A restore has the handle of the inode alone
then, which is not valid on another server, or when the file has been copied.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import ClassVar

from utsuwa.core import protobuf
from utsuwa.core.protobuf import Field, Message
from utsuwa.host import syscalls
from utsuwa.host.checkpoint.image_format import messages, with_messages
from utsuwa.host.mounts.mounts import Mount, parse_mountinfo

_PROC = Path("/proc")
_IMAGE = "files.img"
_INOTIFY_WATCHES = (13, 5)
"""The numbers of the nested fields of a file with its watches."""


@dataclass
class _Handle(Message):
    size: int | None = None
    kind: int | None = None
    words: list[int] = field(default_factory=list)
    path: str | None = None
    mount: int | None = None

    FIELDS: ClassVar = {
        1: Field("size", "int"),
        2: Field("kind", "int"),
        3: Field("words", "int", repeated=True),
        4: Field("path", "string"),
        5: Field("mount", "int"),
    }


@dataclass
class _Watch(Message):
    id: int | None = None
    inode: int | None = None
    mask: int | None = None
    ignored: int | None = None
    device: int | None = None
    number: int | None = None
    handle: _Handle | None = None

    FIELDS: ClassVar = {
        1: Field("id", "int"),
        2: Field("inode", "int"),
        3: Field("mask", "int"),
        4: Field("ignored", "int"),
        5: Field("device", "int"),
        6: Field("number", "int"),
        7: Field("handle", _Handle),
    }


def name(images: Path, init_pid: int, proc: Path = _PROC) -> None:
    """Give the watches of a frozen container's root file system paths, if that is an overlay. Blocking.

    Raises OSError, InvalidMessage.
    """
    process = proc / str(init_pid)
    found = parse_mountinfo((process / "mountinfo").read_bytes())
    mount = next((one for one in found if str(one.target) == "/" and one.fstype == "overlay"), None)
    if mount is None:
        return
    root = os.open(process / "root", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        file = images / _IMAGE
        before = file.read_bytes()
        change = partial(_with_path, mount, root)
        after = with_messages(before, [_changed(one, _INOTIFY_WATCHES, change) for one in messages(before)])
        if after != before:
            file.write_bytes(after)
    finally:
        os.close(root)


def _changed(message: bytes, place: Sequence[int], change: Callable[[bytes], bytes]) -> bytes:
    """Return a message with a change of those nested in it, at a place of field numbers."""
    if not place:
        return change(message)
    out = bytearray()
    for number, wire_type, value in protobuf.fields(memoryview(message)):
        if isinstance(value, int):
            out += protobuf.encoded(number, wire_type, value)
        else:
            part = bytes(value)
            part = _changed(part, place[1:], change) if number == place[0] else part
            out += protobuf.encoded(number, wire_type, part)
    return bytes(out)


def _with_path(mount: Mount, root: int, message: bytes) -> bytes:
    """Return a watch with the path of what it watches, if it lacks that and it can be found."""
    watch = _Watch.decode(message)
    handle = watch.handle
    major, minor = map(int, mount.device.split(":"))
    if handle is None or handle.path is not None or watch.device != major << 20 | minor:
        return message
    path = _path_of(root, handle)
    if path is None:
        return message
    handle.path, handle.mount = path, mount.id
    return watch.encode()


def _path_of(root: int, handle: _Handle) -> str | None:
    """Return the path of a file in the container; None if it has none any more."""
    data = b"".join((word % 2**64).to_bytes(8, "little") for word in handle.words)[: handle.size or 0]
    try:
        opened = syscalls.open_by_handle_at(root, handle.kind or 0, data)
    except OSError:  # it was removed
        return None
    try:
        path = os.fsdecode(Path(f"/proc/self/fd/{opened}").readlink())
        there = os.stat(f".{path}", dir_fd=root, follow_symlinks=False)  # noqa: PTH116 - below a descriptor
        return path if os.path.samestat(there, os.fstat(opened)) else None
    except OSError:
        return None
    finally:
        os.close(opened)

"""What is beside the trees of instances: `metadata.yaml` and `templates/`, in a directory for a moment.

For several volumes at once: each has a directory there, named by its number. A document lists the files of
each volume with their sizes, and a stream has their contents: they are few and small, so that programs like
those that transfer trees would take much longer to start than to run.
"""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated

import msgspec

from utsuwa.core.errors import InvalidImage, InvalidRequest, OutOfSpace
from utsuwa.core.threads import Threads
from utsuwa.host.files.filetree import remove_tree
from utsuwa.migration import extents
from utsuwa.migration.channel import Stream
from utsuwa.storage.drivers.trees import copy_metadata, remove_metadata

_MAX_BYTES = 64 * 2**20
_MAX_FILES = 1001
"""Of a volume: as many templates as an instance may have, and `metadata.yaml`."""
_MAX_DEPTH = 50
"""Names in a path."""
_MAX_NAMES = 200_000
"""Names in all paths of all volumes, each of which may be a file or directory to create."""
_threads = Threads(4, "metadata")
"""For lists that take seconds, as other servers may send them."""

_Path = Annotated[list[bytes], msgspec.Meta(max_length=_MAX_DEPTH)]
"""The names of a file and the directories that it is in, which need not be UTF-8, the outermost first."""
_Size = Annotated[int, msgspec.Meta(ge=0, le=_MAX_BYTES)]
_Files = Annotated[list[tuple[_Path, _Size]], msgspec.Meta(max_length=_MAX_FILES)]
"""The files of a volume with their sizes."""


@asynccontextmanager
async def scratch(parent: Path) -> AsyncIterator[Path]:
    """Create a directory for the block."""
    folder = parent / secrets.token_hex(8)
    try:
        await _threads.run(folder.mkdir, mode=0o700)
        yield folder
    finally:
        await _threads.run(remove_tree, folder)


async def send(files: Stream, parent: Path, volumes: Sequence[Path]) -> None:
    """Send what is beside the trees of volumes, given by their directories."""
    async with scratch(parent) as folder:
        listed = await _threads.run(_gather, folder, volumes)
        await files.send_document(msgspec.json.encode(listed))
        paths = [_place(folder, number, path) for number, own in enumerate(listed) for path, _ in own]
        await extents.send(files, extents.contents(paths), lambda _: None)


def _gather(folder: Path, volumes: Sequence[Path]) -> list[_Files]:
    """Copy what is beside the trees into a directory, and list it."""
    listed = []
    for number, volume in enumerate(volumes):
        own = folder / str(number)
        own.mkdir(mode=0o700)
        if (volume / "metadata.yaml").exists():
            copy_metadata(volume, own)
        found = [Path(below, name) for below, _, names in os.walk(own) for name in names]
        listed.append(
            [([*map(os.fsencode, one.relative_to(own).parts)], one.stat().st_size) for one in sorted(found)]
        )
    return listed


async def receive(files: Stream, folder: Path, count: int) -> None:
    """Receive what `send` sends of as many volumes.

    Raises InvalidRequest, also if it is too much, OutOfSpace, Unavailable.
    """
    document = await files.document()
    listed = await _threads.run(_checked, document, count)
    try:
        places = await _threads.run(_prepare, folder, listed)
        await extents.receive(files, extents.Extents(places), lambda _: None)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise OutOfSpace(
                "No space left for the metadata of the instance: free some space, and try again"
            ) from error
        raise invalid(error) from error


def _checked(document: bytes, count: int) -> list[_Files]:
    """Return the files of each volume. Raises InvalidRequest."""
    try:
        listed = msgspec.json.decode(document, type=list[_Files])
    except (msgspec.MsgspecError, RecursionError) as error:
        raise InvalidRequest(f"The other server lists an instance's metadata wrongly: {error}") from error
    paths = [path for own in listed for path, _ in own]
    if len(listed) != count or not all(map(_may_be, paths)):
        raise InvalidRequest("The other server lists other metadata of an instance than there can be")
    if sum(size for own in listed for _, size in own) > _MAX_BYTES or sum(map(len, paths)) > _MAX_NAMES:
        raise InvalidRequest("The metadata of the other server's instance is too large")
    return listed


def _may_be(path: _Path) -> bool:
    """Return whether this may be the path of a file, which then is below the directory of its volume."""
    plain = all(name not in (b"", b".", b"..") and not (b"/" in name or b"\0" in name) for name in path)
    return plain and (path == [b"metadata.yaml"] or (len(path) > 1 and path[0] == b"templates"))


def _prepare(folder: Path, listed: Sequence[_Files]) -> list[tuple[Path, int, int]]:
    """Create the directories of volumes; return where the files are written, as `Extents` takes them."""
    places = []
    for number, own in enumerate(listed):
        of_volume(folder, number).mkdir(mode=0o700)
        for path, size in own:
            place = _place(folder, number, path)
            place.parent.mkdir(parents=True, exist_ok=True)
            places.append((place, 0, size))
    return places


def _place(folder: Path, number: int, path: _Path) -> Path:
    return of_volume(folder, number).joinpath(*map(os.fsdecode, path))


def of_volume(folder: Path, number: int) -> Path:
    """Return the directory with what was received of a volume."""
    return folder / str(number)


def take(beside: Path, folder: Path) -> None:
    """Take over `metadata.yaml` and `templates/`, if there are any. Raises InvalidRequest."""
    if not (beside / "metadata.yaml").exists():
        return
    remove_metadata(folder)
    try:
        copy_metadata(beside, folder)
    except (InvalidImage, OSError) as error:
        raise invalid(error) from error


def invalid(error: InvalidImage | OSError) -> InvalidRequest:
    """Return the error for metadata that is not what it should be."""
    reason = error.message if isinstance(error, InvalidImage) else error.strerror
    return InvalidRequest(f"The metadata of the other server's instance is invalid: {reason}")

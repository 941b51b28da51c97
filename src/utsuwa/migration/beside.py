"""What is beside the trees of instances: `metadata.yaml` and `templates/`, in a directory for a moment.

For several volumes at once: each has a directory there, named by its number.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from utsuwa.core.errors import InvalidImage, InvalidRequest
from utsuwa.core.tasks import finish
from utsuwa.host.archives import streams
from utsuwa.host.files.filetree import remove_tree
from utsuwa.migration.channel import Stream
from utsuwa.migration.rsync import exchange
from utsuwa.storage.drivers.trees import copy_metadata, remove_metadata

_MAX_BYTES = 64 * 2**20


@asynccontextmanager
async def scratch(parent: Path) -> AsyncIterator[Path]:
    """Create a directory for the block."""
    folder = parent / secrets.token_hex(8)
    try:
        await finish(asyncio.to_thread(folder.mkdir, mode=0o700))
        yield folder
    finally:
        await finish(asyncio.to_thread(remove_tree, folder))


async def send(files: Stream, parent: Path, volumes: Sequence[Path]) -> None:
    """Send what is beside the trees of volumes, given by their directories."""

    def gather(folder: Path) -> None:
        for number, volume in enumerate(volumes):
            own = folder / str(number)
            own.mkdir(mode=0o700)
            if (volume / "metadata.yaml").exists():
                copy_metadata(volume, own)

    async with scratch(parent) as folder:
        await finish(asyncio.to_thread(gather, folder))
        await exchange(files, streams.sending(folder), lambda _: None)


async def receive(files: Stream, folder: Path) -> None:
    """Receive what `send` sends. Raises InvalidRequest, also if it is too much, Unavailable."""
    received = 0

    def count(size: int) -> None:
        nonlocal received
        received += size
        if received > _MAX_BYTES:
            raise InvalidRequest("The metadata of the other server's instance is too large")

    await exchange(files, streams.receiving(folder), count)


def of_volume(folder: Path, number: int) -> Path:
    """Return what was received of a volume. Raises InvalidRequest if it is not a directory."""
    found = folder / str(number)
    if found.is_symlink() or not found.is_dir():
        raise InvalidRequest("The other server did not send the metadata of an instance")
    return found


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

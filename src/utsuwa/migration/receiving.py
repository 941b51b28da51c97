"""The side of a migration that gets the files: the same for instances and custom volumes."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from utsuwa.core import faults
from utsuwa.core.errors import InvalidImage, InvalidRequest
from utsuwa.core.idmap import IdMap
from utsuwa.core.tasks import finish
from utsuwa.host import rsync
from utsuwa.host.files.filetree import remove_tree
from utsuwa.migration import index
from utsuwa.migration.channel import ControlChannel, Stream
from utsuwa.migration.index import Index
from utsuwa.migration.messages import NOT_LIVE, Header
from utsuwa.migration.negotiation import answer_to, check_names, options_of
from utsuwa.migration.progress import Progress
from utsuwa.migration.rsync import exchange
from utsuwa.operations.operations import Operation
from utsuwa.storage.drivers.trees import copy_metadata, remove_metadata
from utsuwa.storage.receiving import Incoming

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@dataclass(frozen=True)
class Agreed:
    """What is received, and how, after the headers were exchanged."""

    name: str
    offer: Header
    answer: Header
    owners: IdMap
    """The id map with which the other server's files are owned."""
    beside: Path | None
    """A directory for what is beside the trees of instances, for a moment; None for trees alone."""


async def receive_offer(control: ControlChannel, *, without_snapshots: bool) -> Header:
    """Return what the other server offers. Raises InvalidRequest, InvalidName, Unavailable."""
    offer = await control.receive_soon(Header)
    check_names(offer)
    if offer.snapshot_names and without_snapshots:
        raise InvalidRequest("The other server sends snapshots, which were not asked for")
    return offer


async def agree(
    control: ControlChannel,
    offer: Header,
    names: list[str],
    *,
    name: str,
    owners: IdMap,
    compress: bool,
    refresh: bool,
    beside: Path | None,
) -> Agreed:
    """Answer an offer, of which the snapshots `names` are wanted; `compress` if this side allows it.

    Raises Unavailable.
    """
    answer = answer_to(offer, compress=compress, refresh=refresh, names=names)
    await control.send(answer)
    faults.point("migration agreed")
    return Agreed(name, offer, answer, owners, beside)


async def receive_index(files: Stream, agreed: Agreed) -> Index:
    """Receive and confirm the index; an empty one if the other server has none. Raises InvalidRequest."""
    if not agreed.answer.index_version:
        return Index()
    found = await asyncio.to_thread(index.decode, await files.document())
    await files.send(index.answer(refresh=bool(agreed.answer.refresh)))
    await files.end()
    return found


async def receive_trees(files: Stream, agreed: Agreed, incoming: Incoming, operation: Operation) -> None:
    """Receive the snapshots, oldest first, and then the volume itself.

    Raises InvalidRequest, OutOfSpace, Unavailable, HostError.
    """
    for name in agreed.answer.snapshot_names:
        await _receive(files, agreed, incoming, operation, f"{agreed.name}/{name}")
        faults.point("migration received snapshot")
        await incoming.snapshot(name)
    passes = 2 if agreed.answer.criu == NOT_LIVE else 1
    for _ in range(passes):
        await _receive(files, agreed, incoming, operation, agreed.name)
    faults.point("migration received")


async def _receive(
    files: Stream, agreed: Agreed, incoming: Incoming, operation: Operation, label: str
) -> None:
    options = options_of(agreed.offer, agreed.answer)
    async with incoming.opened(agreed.owners) as folder, _beside(agreed.beside) as beside:
        command = rsync.receiving(folder / "rootfs", beside, agreed.owners, options)
        await exchange(files, command, Progress(operation, label).add)
        if beside is not None:
            await incoming.threads.fill.run(_take_metadata, beside, folder)


@asynccontextmanager
async def _beside(parent: Path | None) -> AsyncIterator[Path | None]:
    """Create a directory for the block."""
    if parent is None:
        yield None
        return
    folder = parent / secrets.token_hex(8)
    try:
        await finish(asyncio.to_thread(folder.mkdir, mode=0o700))
        yield folder
    finally:
        await finish(asyncio.to_thread(remove_tree, folder))


def _take_metadata(beside: Path, folder: Path) -> None:
    """Take over `metadata.yaml` and `templates/`, if there are any. Raises InvalidRequest."""
    if not (beside / "metadata.yaml").exists():
        return
    remove_metadata(folder)
    try:
        copy_metadata(beside, folder)
    except (InvalidImage, OSError) as error:
        reason = error.message if isinstance(error, InvalidImage) else error.strerror
        raise InvalidRequest(f"The metadata of the other server's instance is invalid: {reason}") from error


def lacking(there: Sequence[tuple[str, int]], others: Sequence[tuple[str, int]]) -> list[str]:
    """Return the names of the snapshots that are not among the others, by name and second of creation."""
    known = set(others)
    return [name for name, moment in there if (name, moment) not in known]

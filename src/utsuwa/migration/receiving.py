"""The side of a migration that gets the files: the same for instances and custom volumes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from utsuwa.core import faults
from utsuwa.core.errors import InvalidRequest
from utsuwa.core.idmap import IdMap
from utsuwa.core.threads import in_thread
from utsuwa.host import rsync
from utsuwa.host.archives import streams
from utsuwa.migration import beside, index, messages
from utsuwa.migration.channel import ControlChannel, Stream
from utsuwa.migration.index import Index
from utsuwa.migration.messages import LIVE, Header, LiveTerms, OwnFeatures
from utsuwa.migration.negotiation import answer_to, check_names, common, options_of
from utsuwa.migration.progress import Progress
from utsuwa.migration.rsync import exchange
from utsuwa.migration.states import ReceivedStates
from utsuwa.operations.operations import Operation
from utsuwa.storage.receiving import Incoming


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
    states: ReceivedStates | None = None
    """The saved running states, if any are received."""

    @property
    def handover(self) -> bool:
        """Whether this server starts the instance before it confirms that it has it."""
        return bool(self.own.handover)

    @property
    def passes(self) -> int:
        """The number of times that the tree itself is sent, at least."""
        return 3 if self.handover else 1 if self.answer.criu is None else 2

    @property
    def own(self) -> OwnFeatures:
        """What only two servers of this program do."""
        return common(self.offer.own, self.answer.own)


async def receive_offer(control: ControlChannel, *, without_snapshots: bool) -> Header:
    """Return what the other server offers. Raises InvalidRequest, InvalidName, Unavailable."""
    offer = await control.receive_header()
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
    layers: bool = False,
    empty: bool = False,
    states: ReceivedStates | None = None,
    live: LiveTerms | None = None,
) -> Agreed:
    """Answer an offer, of which the snapshots `names` are wanted; `compress` if this side allows it.

    `layers` says that layers can be received, `empty` that the volume has no files yet. With `live`, the
    running state is received as well. Raises Unavailable.
    """
    able = OwnFeatures(
        links=True,
        stream=empty and owners.privileged,
        layers=layers,
        zeros=True,
        handover=True,
        states=None if states is None else states.wanted,
    )
    answer = answer_to(offer, compress=compress, refresh=refresh, names=names, able=able, live=live)
    await control.send(answer)
    faults.point("migration agreed")
    return Agreed(name, offer, answer, owners, beside, states)


async def receive_index(files: Stream, agreed: Agreed) -> Index:
    """Receive and confirm the index; an empty one if the other server has none. Raises InvalidRequest."""
    files.counts_zeros = bool(agreed.own.zeros)
    if not agreed.answer.index_version:
        return Index()
    found = await in_thread(index.decode, await files.document())
    await files.send(index.answer(refresh=bool(agreed.answer.refresh)))
    await files.end()
    return found


async def _nothing() -> None:
    pass


async def receive_trees(
    files: Stream,
    agreed: Agreed,
    incoming: Incoming,
    operation: Operation,
    after_first: Callable[[], Awaitable[None]] = _nothing,
) -> None:
    """Receive the snapshots, oldest first, and then the volume itself.

    `after_first` is called when that has been received once; if it is that of a running instance, it is
    received again.

    Raises InvalidRequest, OutOfSpace, Unavailable, HostError.
    """
    stream = bool(agreed.own.stream)  # the first tree; what follows is mostly the same
    for name in agreed.answer.snapshot_names:
        await _receive(files, agreed, incoming, operation, f"{agreed.name}/{name}", stream=stream)
        stream = False
        faults.point("migration received snapshot")
        await incoming.snapshot(name)
    await _receive(files, agreed, incoming, operation, agreed.name, stream=stream)
    await after_first()
    for _ in range(1, agreed.passes):
        await _receive(files, agreed, incoming, operation, agreed.name, stream=False)
    while agreed.answer.criu == LIVE and await _another(files):
        await _receive(files, agreed, incoming, operation, agreed.name, stream=False)
    faults.point("migration received")


async def _another(files: Stream) -> bool:
    """Return whether the tree follows once more. Raises InvalidRequest."""
    said = await files.document()
    if said not in (b"", messages.ANOTHER):
        raise InvalidRequest("The other server does not say whether files follow")
    return said == messages.ANOTHER


async def _receive(
    files: Stream, agreed: Agreed, incoming: Incoming, operation: Operation, label: str, *, stream: bool
) -> None:
    progress = Progress(operation, label)
    async with (
        incoming.opened(agreed.owners) as folder,
        nullcontext() if agreed.beside is None else beside.scratch(agreed.beside) as metadata,
    ):
        if stream:
            if metadata is not None:
                await beside.receive(files, metadata, 1)
                metadata = beside.of_volume(metadata, 0)
            await exchange(files, streams.receiving(folder / "rootfs"), progress.add, archive=True)
        else:
            options = options_of(agreed.offer, agreed.answer)
            command = rsync.receiving(folder / "rootfs", metadata, agreed.owners, options)
            await exchange(files, command, progress.add)
        if metadata is not None:
            await incoming.threads.fill.run(beside.take, metadata, folder)


def lacking(there: Sequence[tuple[str, int]], others: Sequence[tuple[str, int]]) -> list[str]:
    """Return the names of the snapshots that are not among the others, by name and second of creation."""
    known = set(others)
    return [name for name, moment in there if (name, moment) not in known]

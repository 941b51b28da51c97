"""The side of a migration that has the files: the same for instances and custom volumes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path

from utsuwa.core import faults
from utsuwa.core.errors import InvalidRequest
from utsuwa.core.pool_keys import bytes_per_second
from utsuwa.host import rsync
from utsuwa.host.archives import streams
from utsuwa.migration import ahead, beside, index, layers_sending, states
from utsuwa.migration.channel import ControlChannel, Stream
from utsuwa.migration.layers_sending import Layered
from utsuwa.migration.messages import ANOTHER, NOT_LIVE, Header
from utsuwa.migration.negotiation import chosen_snapshots, chosen_states, common, options_of
from utsuwa.migration.progress import Progress
from utsuwa.migration.racing import all_of
from utsuwa.migration.rsync import exchange
from utsuwa.operations.operations import Operation


@dataclass(frozen=True)
class Tree:
    """A tree that can be sent now, and the directory with what is beside it, if that is sent as well."""

    rootfs: Path
    beside: Path | None


def _no_folder(_name: str | None) -> Path:
    raise InvalidRequest("There are no running states to be sent")


@dataclass(frozen=True)
class Offered:
    """What is offered to another server."""

    name: str
    header: Header
    index: Callable[[Sequence[str]], Awaitable[bytes]]
    """Returns the index with these snapshots."""
    opened: Callable[[str | None], AbstractAsyncContextManager[Tree]]
    """Has the tree of one of the snapshots for a block, or that of what is offered itself (None)."""
    quiet: Callable[[], AbstractAsyncContextManager[None]]
    """Keeps what is offered from being changed for a block, while it is sent for the last time."""
    scratch: Path
    """A directory for what is needed for a moment."""
    inconsistent: bool = False
    """Whether files may disappear meanwhile."""
    bandwidth: str = ""
    layered: Layered | None = None
    """Set if layers are offered."""
    folder: Callable[[str | None], Path] = _no_folder
    """Returns the directory of a snapshot's volume, or of what is offered itself (None)."""


async def send(control: ControlChannel, files: Stream, offered: Offered, operation: Operation) -> None:
    """Send what is offered, and return once the other server has it.

    Raises InvalidRequest if the other server fails or sends nonsense, Unavailable if it disappears.
    """
    sending = await begin(control, files, offered, operation)
    await all_of(sending.everything(), control.verdict())


async def begin(control: ControlChannel, files: Stream, offered: Offered, operation: Operation) -> Sending:
    """Have the other server choose of what is offered. Raises InvalidRequest, Unavailable."""
    await control.send(offered.header)
    answer = await control.receive_header()
    faults.point("migration agreed")
    return Sending(files, offered, answer, operation)


class Sending:
    """One transfer after the headers were exchanged; its parts raise as `send`."""

    def __init__(self, files: Stream, offered: Offered, answer: Header, operation: Operation) -> None:
        self.answer = answer
        self._files = files
        self._offered = offered
        self._options = options_of(offered.header, answer)
        self._own = common(offered.header.own, answer.own)
        files.counts_zeros = bool(self._own.zeros)
        self._names = chosen_snapshots(offered.header, answer)
        self._states = chosen_states(offered.header, answer)
        self._indexed = (answer.index_version or 0) > 0
        self._twice = offered.header.criu == NOT_LIVE and answer.criu == NOT_LIVE
        self._operation = operation
        self._rate = bytes_per_second(offered.bandwidth)

    async def everything(self) -> None:
        if self._own.layers and self._offered.layered is not None:
            await self._layers(self._offered.layered)
            await self._send_states()
            faults.point("migration sent")
            return
        await self.describe()
        await self.snapshots()
        if self._twice:
            await self.tree(changing=True)
        async with self._offered.quiet():
            await self.tree(changing=self._offered.inconsistent)
        faults.point("migration sent")

    async def _layers(self, layered: Layered) -> None:
        """Send all in layers. What does not depend on the other server's answers does not wait for these."""
        progress = Progress(self._operation, self._offered.name)
        async with ahead.transfers(layered.build, start=True) as transfers:
            await self._send_index()
            async with layered.opened(self._names) as found:
                scratch = self._offered.scratch
                await layers_sending.offer(self._files, layered, found, self._names, scratch=scratch)
                await self._index_confirmed()
                await layers_sending.send(self._files, found, transfers, progress=progress, rate=self._rate)

    async def describe(self) -> None:
        """Send the index."""
        await self._send_index()
        await self._index_confirmed()

    async def _send_index(self) -> None:
        if self._indexed:
            await self._files.send(await self._offered.index(self._names))
            await self._files.end()

    async def _index_confirmed(self) -> None:
        if self._indexed:
            index.check_answer(await self._files.document())

    async def snapshots(self) -> None:
        """Send the trees of the snapshots."""
        for name in self._names:
            async with self._offered.opened(name) as tree:
                await self._send(tree, f"{self._offered.name}/{name}")

    async def tree(self, *, changing: bool = False, gate: asyncio.Event | None = None) -> None:
        """Send the tree itself once, of which files may disappear meanwhile if it is `changing`.

        With a `gate`, all is prepared, and the files are looked at when that is set. Of a running state, what
        follows is told afterwards (`follows`).
        """
        async with self._offered.opened(None) as tree:
            await self._send(tree, self._offered.name, changing=changing, gate=gate)
        await self._send_states()

    async def follows(self, *, another: bool) -> None:
        """Tell whether the tree is sent once more, in a move with the running state."""
        await self._files.send_document(ANOTHER if another else b"")

    async def _send_states(self) -> None:
        """Send the saved running states that the other server wants, if that has not been done."""
        wanted, self._states = self._states, None
        if wanted is not None:
            for name in states.in_order(wanted):
                await states.send(
                    self._files, self._offered.folder(name), self._offered.name, self._operation
                )

    async def _send(
        self, tree: Tree, label: str, *, changing: bool = False, gate: asyncio.Event | None = None
    ) -> None:
        progress = Progress(self._operation, label)
        if self._own.stream:
            self._own.stream = False  # what follows is mostly the same
            if tree.beside is not None:
                await beside.send(self._files, self._offered.scratch, [tree.beside])
            command = streams.sending(tree.rootfs)
            await exchange(self._files, command, progress.add, rate=self._rate, archive=True)
            return
        command = rsync.sending(tree.rootfs, tree.beside, self._options, bandwidth=self._offered.bandwidth)
        accept = (0, rsync.VANISHED) if changing else (0,)
        await exchange(self._files, command, progress.add, accept, gate=gate)

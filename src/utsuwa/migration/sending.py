"""The side of a migration that has the files: the same for instances and custom volumes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path

from utsuwa.core import faults
from utsuwa.host import rsync
from utsuwa.migration import index
from utsuwa.migration.channel import ControlChannel, Stream
from utsuwa.migration.messages import NOT_LIVE, Header
from utsuwa.migration.negotiation import chosen_snapshots, options_of
from utsuwa.migration.progress import Progress
from utsuwa.migration.racing import all_of
from utsuwa.migration.rsync import exchange
from utsuwa.operations.operations import Operation


@dataclass(frozen=True)
class Tree:
    """A tree that can be sent now, and the directory with what is beside it, if that is sent as well."""

    rootfs: Path
    beside: Path | None


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
    inconsistent: bool = False
    """Whether files may disappear meanwhile."""
    bandwidth: str = ""


async def send(control: ControlChannel, files: Stream, offered: Offered, operation: Operation) -> None:
    """Send what is offered, and return once the other server has it.

    Raises InvalidRequest if the other server fails or sends nonsense, Unavailable if it disappears.
    """
    await control.send(offered.header)
    answer = await control.receive_soon(Header)
    faults.point("migration agreed")
    await all_of(_Sending(files, offered, answer, operation).run(), control.verdict())


class _Sending:
    def __init__(self, files: Stream, offered: Offered, answer: Header, operation: Operation) -> None:
        self._files = files
        self._offered = offered
        self._options = options_of(offered.header, answer)
        self._names = chosen_snapshots(offered.header, answer)
        self._indexed = (answer.index_version or 0) > 0
        self._twice = offered.header.criu == NOT_LIVE and answer.criu == NOT_LIVE
        self._operation = operation

    async def run(self) -> None:
        offered = self._offered
        if self._indexed:
            await self._files.send(await offered.index(self._names))
            await self._files.end()
            index.check_answer(await self._files.document())
        for name in self._names:
            async with offered.opened(name) as tree:
                await self._send(tree, f"{offered.name}/{name}")
        async with offered.opened(None) as tree:
            if self._twice:
                await self._send(tree, offered.name, changing=True)
            async with offered.quiet():
                await self._send(tree, offered.name, changing=offered.inconsistent)
        faults.point("migration sent")

    async def _send(self, tree: Tree, label: str, *, changing: bool = False) -> None:
        command = rsync.sending(tree.rootfs, tree.beside, self._options, bandwidth=self._offered.bandwidth)
        accept = (0, rsync.VANISHED) if changing else (0,)
        await exchange(self._files, command, Progress(self._operation, label).add, accept)

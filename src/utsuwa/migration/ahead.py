"""Sandboxes that transfer layers, built before it is known which ones.

Meanwhile, both sides agree on the rest.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

from utsuwa.core.tasks import finish
from utsuwa.host.helper.sandbox import Job, Sandbox
from utsuwa.migration.channel import Stream
from utsuwa.migration.rsync import Ends, connect

Build = Callable[[], Awaitable[Sandbox]]
"""Has a sandbox built."""


class LayerTransfer:
    """A sandbox that is being built for one layer. It is to be ended in any case (`end`)."""

    def __init__(self, build: Build) -> None:
        self._building = asyncio.ensure_future(build())

    async def send(self, stream: Stream, tree: Path, count: Callable[[int], None], rate: int = 0) -> None:
        """Send a tree. Raises as `rsync.connect`, and HostError."""
        await self._exchange("send", stream, tree, count, rate)

    async def receive(self, stream: Stream, tree: Path, count: Callable[[int], None]) -> None:
        """Receive what `send` sends into an empty directory. Raises as `send`."""
        await self._exchange("receive", stream, tree, count, 0)

    async def _exchange(
        self, job: Job, stream: Stream, tree: Path, count: Callable[[int], None], rate: int
    ) -> None:
        sandbox = await self._building
        ends = Ends()
        try:
            await sandbox.tell(job, tree, ends.their_input, ends.their_output)
            ends.close_theirs()
            await connect(stream, ends, sandbox.wait(), count, rate=rate, archive=True)
        finally:
            ends.close()

    async def end(self) -> None:
        """End it, and wait for that."""
        await finish(self._end())

    async def _end(self) -> None:
        self._building.cancel()
        await asyncio.wait([self._building])
        if not self._building.cancelled() and self._building.exception() is None:
            await self._building.result().end()


class LayerTransfers:
    """The sandbox that waits for the next layer, and another one when that is used and more are needed."""

    def __init__(self, build: Build) -> None:
        self._build = build
        self._waiting: LayerTransfer | None = None

    def start(self) -> None:
        """Have one built, if none is waiting."""
        if self._waiting is None:
            self._waiting = LayerTransfer(self._build)

    @contextlib.asynccontextmanager
    async def next(self, *, more: bool) -> AsyncIterator[LayerTransfer]:
        """Have one for the block, and another one built if there will be `more`."""
        self.start()
        transfer, self._waiting = self._waiting, None
        assert transfer is not None  # noqa: S101 - `start`
        try:
            if more:
                self.start()
            yield transfer
        finally:
            await transfer.end()

    async def end(self) -> None:
        """End the one that is not used."""
        if self._waiting is not None:
            await self._waiting.end()
            self._waiting = None


@contextlib.asynccontextmanager
async def transfers(build: Build, *, start: bool) -> AsyncIterator[LayerTransfers]:
    """Have them for the block; the first one is built now, if `start`."""
    found = LayerTransfers(build)
    try:
        if start:
            found.start()
        yield found
    finally:
        await found.end()

"""Programs that transfer layers, started before it is known which ones.

Most of the time that such a program takes passes until it can begin: meanwhile, both sides agree on the rest.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

from utsuwa.host.archives import streams
from utsuwa.migration.rsync import Program


class Programs:
    """A waiting program (`streams.waiting`), and another one when that is used and more are needed."""

    def __init__(self) -> None:
        self._waiting: Program | None = None

    def start(self) -> None:
        """Start one, if none is waiting."""
        if self._waiting is None:
            self._waiting = Program(streams.waiting())

    @contextlib.asynccontextmanager
    async def next(self, *, more: bool) -> AsyncIterator[Program]:
        """Have a program for the block, and start another one if there will be `more`."""
        self.start()
        program, self._waiting = self._waiting, None
        assert program is not None  # noqa: S101 - `start`
        try:
            if more:
                self.start()
            yield program
        finally:
            await program.end()

    async def end(self) -> None:
        """End the one that is not used."""
        if self._waiting is not None:
            await self._waiting.end()
            self._waiting = None


@contextlib.asynccontextmanager
async def programs(*, start: bool) -> AsyncIterator[Programs]:
    """Have programs for the block; the first one is started now, if `start`."""
    found = Programs()
    try:
        if start:
            found.start()
        yield found
    finally:
        await found.end()

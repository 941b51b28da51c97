"""Storing of what is received, by a thread that may lag behind: hashing must not slow down a transfer."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable

from utsuwa.core.threads import Threads

ROOM = 1024 * 1024
"""Bytes of a buffer."""
MOST = 32
"""Buffers that exist at most, of one transfer; only one that is faster than hashing needs more than two."""

_threads = Threads(4, "store-received")


class Behind:
    """Passes buffers to a function that blocks, one after the other. `finish` or `abandon` it."""

    def __init__(self, store: Callable[[memoryview], object]) -> None:
        self._store = store
        self._loop = asyncio.get_running_loop()
        self._lock = threading.Lock()
        self._filled: deque[memoryview] = deque()
        self._free: list[memoryview] = []
        self._made = 0
        self._running = False
        self._job: asyncio.Task[None] | None = None
        self._error: BaseException | None = None
        self._wanted: asyncio.Event | None = None

    async def room(self) -> memoryview:
        """Return an empty buffer, once there is one. Raises what storing has raised."""
        while True:
            with self._lock:
                self._check()
                if (room := self._empty()) is not None:
                    return room
                self._wanted = wanted = asyncio.Event()
            await wanted.wait()

    @property
    def error(self) -> BaseException | None:
        """What storing has raised."""
        return self._error

    def spare(self) -> memoryview | None:
        """Return an empty buffer if there is one now, and nothing has failed; otherwise, wait for `room`."""
        with self._lock:
            return self._empty() if self._error is None else None

    def put(self, data: memoryview) -> None:
        """Have what is in a buffer stored, or in the first bytes of one; the buffer is used again."""
        with self._lock:
            self._filled.append(data)
            if self._running:
                return
            self._running = True
        self._job = asyncio.create_task(_threads.run(self._drain))

    async def finish(self) -> None:
        """Wait until everything is stored. Raises what storing has raised."""
        if self._job is not None:
            await self._job
        self._check()

    async def abandon(self) -> None:
        """Store nothing more, and wait for what is being stored."""
        with self._lock:
            self._filled.clear()
        if self._job is not None:
            await self._job

    def _empty(self) -> memoryview | None:
        if self._free:
            return self._free.pop()
        if self._made == MOST:
            return None
        self._made += 1
        return memoryview(bytearray(ROOM))

    def _check(self) -> None:
        if self._error is not None:
            raise self._error

    def _drain(self) -> None:
        """Store until nothing is left. Runs in a thread."""
        while True:
            with self._lock:
                if not self._filled or self._error is not None:
                    self._running = False
                    self._wake()
                    return
                data = self._filled.popleft()
            try:
                self._store(data)
            except BaseException as error:
                self._error = error
                continue
            with self._lock:
                self._free.append(memoryview(data.obj))
                self._wake()

    def _wake(self) -> None:
        if self._wanted is not None:
            self._loop.call_soon_threadsafe(self._wanted.set)
            self._wanted = None

"""Places: where the files of an instance are reached, with the sessions that work there.

A place and its idle sessions are kept for a moment after use, so that a series of requests is fast.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from utsuwa.core.errors import Busy
from utsuwa.core.refs import InstanceRef
from utsuwa.host.helper.client import Helper
from utsuwa.host.helper.session import FileSession

IDLE_SECONDS = 2.0
"""How long a place is kept when nothing uses it."""
GRACE = 10.0
"""Seconds that transfers get to finish when something else wants to have a stopped instance."""
MAX_SESSIONS = 32
"""Maximum number of sessions of one instance; further requests wait."""


class Place:
    """The root directory of an instance, and the user namespace in which its files are used.

    Both descriptors belong to the place. None stands for the host's user namespace.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._root: int | None = None
        self._closed = False
        self._namespace: int | None = None
        self._idle: list[FileSession] = []
        self._busy: set[FileSession] = set()
        self._slots = asyncio.Semaphore(MAX_SESSIONS)
        self._beginning = 0
        self._users = 0
        self._used = asyncio.get_running_loop().time()
        """When it was used last."""
        self._deadline: float | None = None
        """When transfers are cut short, once the place has been recalled."""
        self._changed = asyncio.Event()
        """Set if the place was recalled, and then when something ends: not by each request."""
        self._gone = asyncio.Event()

    def open(self, root: int, namespace: int | None) -> None:
        self._root, self._namespace = root, namespace

    @property
    def recalled(self) -> bool:
        """Whether nothing new may begin here."""
        return self._deadline is not None

    def recall(self, grace: float = GRACE) -> None:
        """Have `until_unused` return when nothing uses the place, at the latest after `grace` seconds."""
        if self._deadline is None:
            self._deadline = asyncio.get_running_loop().time() + grace
        self._changed.set()

    async def wait_until_gone(self) -> None:
        await self._gone.wait()

    @asynccontextmanager
    async def session(self, helper: Helper) -> AsyncIterator[FileSession]:
        """A session of one's own within the block. Raises Busy if the place is closed meanwhile."""
        self._users += 1
        try:
            async with self._slots:
                session = await self._taken(helper)
                try:
                    yield session
                finally:
                    await self._give_back(session)
        finally:
            self._users -= 1
            self._used = asyncio.get_running_loop().time()
            if self._deadline is not None:
                self._changed.set()

    async def _taken(self, helper: Helper) -> FileSession:
        if self._idle:
            session = self._idle.pop()
        else:
            session = await self._begun(helper)
        self._busy.add(session)
        return session

    async def _begun(self, helper: Helper) -> FileSession:
        if self._root is None:
            raise self.closed_meanwhile()
        self._beginning += 1
        try:
            session = await helper.files(self._root, self._namespace)
            if self._closed:
                await session.end()
                raise self.closed_meanwhile()
            return session
        finally:
            self._beginning -= 1
            if self._closed:
                self._changed.set()

    def closed_meanwhile(self) -> Busy:
        """Return the error of a request that was under way when the place was closed."""
        return Busy(f"The instance {self._name!r} is being started, stopped or changed: try again")

    def explain(self, error: Exception) -> Exception:
        """Return what to raise for an error of a session: Busy if the place was closed."""
        return self.closed_meanwhile() if self._closed else error

    async def _give_back(self, session: FileSession) -> None:
        self._busy.discard(session)
        if not self._closed and not session.closed and not session.handles:
            self._idle.append(session)
        else:
            await session.end()

    async def until_unused(self) -> None:
        """Wait until nothing has used the place for a moment, or it was recalled and its grace is over."""
        while (patience := self._patience(asyncio.get_running_loop().time())) > 0:
            self._changed.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(patience):
                    await self._changed.wait()

    def _patience(self, now: float) -> float:
        """Return how many seconds may pass before it has to be seen again whether the place is used."""
        if self._deadline is not None:
            return self._deadline - now if self._users else 0
        return IDLE_SECONDS if self._users else self._used + IDLE_SECONDS - now

    async def close(self) -> None:
        """End all sessions and release the root: nothing keeps its mount busy any more."""
        self.recall(0)
        root, self._root, self._closed = self._root, None, True
        try:
            while self._beginning:  # with the root, which is not to be closed before
                self._changed.clear()
                await self._changed.wait()
            sessions, self._idle = [*self._idle, *self._busy], []
            await asyncio.gather(*(session.end() for session in sessions))
        finally:
            for fd in (root, self._namespace):
                if fd is not None:
                    os.close(fd)
            self._namespace = None

    def set_gone(self) -> None:
        """Wake who waits until the place is gone, which nobody finds any more."""
        self._gone.set()


class Places:
    """The places in use, by instance."""

    def __init__(self) -> None:
        self._places: dict[InstanceRef, Place] = {}

    def get(self, ref: InstanceRef) -> Place | None:
        return self._places.get(ref)

    def add(self, ref: InstanceRef, place: Place) -> None:
        self._places[ref] = place

    def remove(self, ref: InstanceRef, place: Place) -> None:
        """Remove a closed place, and only then wake who waits for that: they would find it here again."""
        if self._places.get(ref) is place:
            del self._places[ref]
        place.set_gone()

    async def release(self, ref: InstanceRef) -> None:
        """Close an instance's place at once, before its root file system is unmounted."""
        place = self._places.get(ref)
        if place is not None:
            place.recall(0)
            await place.wait_until_gone()

    async def release_all(self) -> None:
        for ref in list(self._places):
            await self.release(ref)

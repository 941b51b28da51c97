"""The daemon's side of sessions for mounts in running containers (see `mounts`): asyncio, no threads.

A session serves all containers, one call at a time, and is kept for a moment after a call: to fork a worker
takes several times the processor time of a mount.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from utsuwa.core.errors import HostError
from utsuwa.host.helper.session import Send, Session, begin
from utsuwa.host.processes.pidfds import Process

IDLE_SECONDS = 10.0
"""How long a session is kept when nothing uses it."""
MAX_IDLE = 2
"""Maximum number of sessions that are kept."""


@dataclass(frozen=True)
class InnerPath:
    """A path in a running container."""

    init: Process
    path: str
    """Absolute; resolved in the container."""
    uid: int
    """The host's ids of the container's root, who owns what is created."""
    gid: int


class Mounting:
    """The sessions of one helper. Methods raise HostError with the reason.

    They raise ProcessLookupError if the container has ended.
    """

    def __init__(self, send: Send) -> None:
        self._send = send
        self._idle: list[Session] = []
        self._expiry: asyncio.TimerHandle | None = None
        self._expiring: asyncio.Task[None] | None = None

    async def mount(self, inside: InnerPath, tree: int, propagation: int = 0) -> None:
        """Attach a detached mount at a path that is created if it does not exist.

        `propagation` are flags of mount(2).
        """
        await self._call("mount", inside, propagation, fds=(tree,))

    async def mount_bpf(self, inside: InnerPath, options: Sequence[tuple[str, str]]) -> None:
        """Mount a BPF file system of the container's with these options, as `mount`."""
        await self._call("mount_bpf", inside, options)

    async def unmount(self, inside: InnerPath, *, remove_file: bool = False) -> bool:
        """Unmount what is mounted at a path; return whether anything was.

        With `remove_file`, the empty file that it was mounted on is removed.
        """
        found: bool = await self._call("unmount", inside, remove_file)
        return found

    async def mounted(self, inside: InnerPath) -> bool:
        """Return whether anything is mounted at a path."""
        found: bool = await self._call("mounted", inside)
        return found

    async def close(self) -> None:
        """End all sessions that are not in use."""
        if self._expiry is not None:
            self._expiry.cancel()
        if self._expiring is not None:
            await self._expiring
        await self._end_idle()

    async def _call(self, name: str, inside: InnerPath, *args: object, fds: tuple[int, ...] = ()) -> Any:
        fds = (inside.init.fileno(), *fds)
        session = await self._taken()
        try:
            return await session.call(name, inside.path, inside.uid, inside.gid, *args, fds=fds)
        except ProcessLookupError:
            raise
        except OSError as error:
            raise HostError(error.strerror or str(error)) from error
        finally:
            await self._give_back(session)

    async def _taken(self) -> Session:
        while self._idle:
            session = self._idle.pop()
            if not session.lost:
                return session
            await session.end()
        return Session(*await begin(self._send))

    async def _give_back(self, session: Session) -> None:
        if session.closed or len(self._idle) >= MAX_IDLE:
            await session.end()
            return
        self._idle.append(session)
        if self._expiry is not None:
            self._expiry.cancel()
        self._expiry = asyncio.get_running_loop().call_later(IDLE_SECONDS, self._expire)

    def _expire(self) -> None:
        self._expiring = asyncio.create_task(self._end_idle())

    async def _end_idle(self) -> None:
        while self._idle:
            await self._idle.pop().end()

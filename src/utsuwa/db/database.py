"""The daemon's database: runs functions as transactions, on connections that are opened at start."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from functools import partial
from typing import Concatenate, ParamSpec, TypeVar

from utsuwa.core import faults
from utsuwa.core.errors import Unavailable
from utsuwa.core.locks import ClusterLocks
from utsuwa.core.names import LONE_MEMBER
from utsuwa.core.tasks import finish
from utsuwa.db.engine import Engine
from utsuwa.db.members import MemberRow
from utsuwa.db.schema import FIRST_MEMBER
from utsuwa.db.session import Session
from utsuwa.db.transaction import Transaction

log = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

_SLOW_SECONDS = 0.5
_WAIT_SECONDS = 60
"""Seconds for which a transaction waits for a free connection."""


class Database:
    """`read` and `write` call `fn(tx, *args, **kwargs)` in a thread of the database, as one transaction.

    The function is synchronous, touches nothing but `tx`, and may be called again where another transaction
    got in its way. A read sees one moment, and is never held up by a write.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._readers = _Pool([Session(engine, read_only=True) for _ in range(engine.readers)])
        self._writers = _Pool([Session(engine, read_only=False) for _ in range(engine.writers)])
        self._locks = engine.locks()
        self.member = MemberRow(FIRST_MEMBER, LONE_MEMBER, "")
        """Whose transactions these are."""
        self.locks: ClusterLocks = self._locks
        """Locks that exclude all other members."""

    @classmethod
    async def open(cls, engine: Engine) -> Database:
        """Prepare the tables and open all connections. Raises HostError, OutOfSpace, Unavailable."""
        await asyncio.to_thread(engine.prepare)
        database = cls(engine)
        try:
            # Now and not later: the daemon's descriptors do not grow with its first requests.
            for session in (*database._readers.sessions, *database._writers.sessions):
                await session.run(lambda tx: tx.execute_sql("SELECT 1").all())
            await database._locks.open()
        except BaseException:
            await database.close()
            raise
        return database

    def act_as(self, member: MemberRow) -> None:
        """Have all transactions from now on be those of a member; until then they are the first one's."""
        self.member = member
        for session in (*self._readers.sessions, *self._writers.sessions):
            session.member = member.id

    async def look_after_locks(self) -> None:
        """Have this member's lock again soon after its connection has broken. Raises Unavailable."""
        await self._locks.open()

    async def keep_member(self, seconds: float) -> bool:
        """Let no other daemon work as this member, until the end; False where one does.

        Raises Unavailable.
        """
        return await self._locks.keep("member", str(self.member.id), seconds=seconds)

    async def close(self) -> None:
        """Close every connection; a write that runs is awaited first."""
        await self._writers.close()
        await self._readers.close()
        await self._locks.close()

    async def read(
        self, name: str, fn: Callable[Concatenate[Transaction, P], T], /, *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """What `fn` returns; `name` says in the log what it is for."""
        session = await self._readers.take(name)
        try:
            return await session.run(partial(_call, fn, args, kwargs))
        finally:
            self._readers.give_back(session)

    async def write(
        self, name: str, fn: Callable[Concatenate[Transaction, P], T], /, *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """What `fn` returns, when its changes are on disk; where it raises, nothing of it is stored.

        A caller that is cancelled is let go when the transaction has ended, one way or the other.
        """
        session = await self._writers.take(name)
        started = time.monotonic()
        faults.point(f"before {name}")
        try:
            result = await finish(session.run(partial(_call, fn, args, kwargs)))
            faults.point(f"after {name}")
            return result
        finally:
            self._writers.give_back(session)
            seconds = time.monotonic() - started
            if seconds > _SLOW_SECONDS:
                log.warning("transaction %r took %.2f s", name, seconds)

    async def begin(
        self, name: str, fn: Callable[Concatenate[Transaction, P], T], /, *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """As `write`, for the first of several steps, whose undoing needs space in the database as well.

        Raises OutOfSpace while little is left.
        """
        self.engine.check_room()
        return await self.write(name, fn, *args, **kwargs)


def _call(fn: Callable[..., T], args: tuple[object, ...], kwargs: dict[str, object], tx: Transaction) -> T:
    return fn(tx, *args, **kwargs)


class _Pool:
    """Sessions of one kind; whoever finds none free waits in order."""

    def __init__(self, sessions: list[Session]) -> None:
        self.sessions = sessions
        # The one that was used last is used next: what it has read is still in its cache.
        self._idle: asyncio.LifoQueue[Session] = asyncio.LifoQueue()
        for session in sessions:
            self._idle.put_nowait(session)

    async def take(self, name: str) -> Session:
        try:
            return self._idle.get_nowait()
        except asyncio.QueueEmpty:
            try:
                async with asyncio.timeout(_WAIT_SECONDS):
                    return await self._idle.get()
            except TimeoutError:
                raise Unavailable(
                    f"The database is busy: {name!r} found no free connection in {_WAIT_SECONDS} s"
                ) from None

    def give_back(self, session: Session) -> None:
        self._idle.put_nowait(session)

    async def close(self) -> None:
        """Wait for every session to be free, and close it: from then on they refuse transactions."""
        for session in [await self._idle.get() for _ in self.sessions]:
            await asyncio.wrap_future(session.close())
            self._idle.put_nowait(session)

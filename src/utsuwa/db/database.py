"""The daemon's database: runs functions as transactions, on a fixed pool of connections."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Concatenate, ParamSpec, TypeVar, cast

from utsuwa.core import faults
from utsuwa.core.errors import Unavailable
from utsuwa.core.locks import ClusterLocks
from utsuwa.core.names import LONE_MEMBER
from utsuwa.core.tasks import Held
from utsuwa.db.durability import Durability
from utsuwa.db.engine import Engine
from utsuwa.db.members import MemberRow
from utsuwa.db.schema import FIRST_MEMBER
from utsuwa.db.session import Session
from utsuwa.db.transaction import Transaction

log = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

_SLOW_SECONDS = 0.5
_SYNC_SECONDS = 0.2
"""After which a commit that nobody waits for is synced; usually another one has covered it by then."""
_MOST_REMEMBERED = 100
"""Maximum number of results that are remembered."""
_WAIT_SECONDS = 60
"""Seconds that a transaction waits for a free connection."""


class Database:
    """`read` and `write` run `fn(tx, *args, **kwargs)` in a database thread, as one transaction.

    The function is synchronous, accesses nothing but `tx`, and is retried after a conflict with another
    transaction. A read sees a consistent snapshot and is never blocked by a write.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._durability = Durability(engine)
        self._sync_timer: asyncio.TimerHandle | None = None
        self._begun = self._ended = 0
        """Numbers of transactions that write."""
        self._remembered: dict[tuple[object, ...], object] = {}
        self._remembered_at: int | None = None
        """The moment of all that is remembered."""
        self._readers = _Pool([Session(engine) for _ in range(engine.readers)])
        self._writers = _Pool([Session(engine, self._durability) for _ in range(engine.writers)])
        self._locks = engine.locks()
        self.member = MemberRow(FIRST_MEMBER, LONE_MEMBER, "")
        """The id of the member on whose behalf transactions run."""
        self.locks: ClusterLocks = self._locks
        """Locks shared with all other members."""

    @classmethod
    async def open(cls, engine: Engine) -> Database:
        """Create or upgrade the tables, open all connections. Raises HostError, OutOfSpace, Unavailable."""
        await asyncio.to_thread(engine.prepare)
        database = cls(engine)
        try:
            # Opened eagerly, so that the number of file descriptors does not grow with the first requests.
            for session in (*database._readers.sessions, *database._writers.sessions):
                await session.run(lambda tx: tx.execute_sql("SELECT 1").all(), sync=False)
            await database._locks.open()
        except BaseException:
            await database.close()
            raise
        return database

    def act_as(self, member: MemberRow) -> None:
        """Run all further transactions on behalf of a member; before, they run as the first member."""
        self.member = member
        self._remembered.clear()
        for session in (*self._readers.sessions, *self._writers.sessions):
            session.member = member.id

    async def look_after_locks(self) -> None:
        """Reacquire this member's lock if its connection has been lost. Raises Unavailable."""
        await self._locks.open()

    async def keep_member(self, seconds: float) -> bool:
        """Hold the member's lock until the daemon ends; return False if another daemon holds it.

        Raises Unavailable.
        """
        return await self._locks.keep("member", str(self.member.id), seconds=seconds)

    async def close(self) -> None:
        """Close all connections, after waiting for running transactions."""
        await self._writers.close()
        self.sync_soon()
        await asyncio.wrap_future(self._durability.close())
        await self._readers.close()
        await self._locks.close()

    async def read(
        self, name: str, fn: Callable[Concatenate[Transaction, P], T], /, *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Run a read transaction and return the result of `fn`; `name` identifies it in the log."""
        session = await self._readers.take(name)
        try:
            return await session.run(partial(_call, fn, args, kwargs))
        finally:
            self._readers.release(session)

    async def recall(
        self, name: str, fn: Callable[Concatenate[Transaction, P], T], /, *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """As `read`, but return the result of the last call if nothing was written since.

        For lists, which clients poll more often than they change, and for what a client reads to change it.
        Nobody must modify the result. Arguments are hashable, and `fn` is the same object each time.
        """
        key = (fn, args, tuple(kwargs.items()))
        if not self.unchanged_since(self._remembered_at):
            self._remembered.clear()
            self._remembered_at = self.moment()
        elif key in self._remembered:
            return cast(T, self._remembered[key])
        moment = self._remembered_at
        result = await self.read(name, fn, *args, **kwargs)
        if moment == self._remembered_at and self.unchanged_since(moment):
            if len(self._remembered) >= _MOST_REMEMBERED:
                del self._remembered[next(iter(self._remembered))]
            self._remembered[key] = result
        return result

    def moment(self) -> int | None:
        """Return a mark for `unchanged_since`, to be taken before reading; None if others may write now."""
        return self._begun if self._begun == self._ended and not self.engine.shared else None

    def unchanged_since(self, moment: int | None) -> bool:
        """Return whether what was read after a `moment` is certainly still so."""
        return moment is not None and moment == self._begun

    def moment_after(self, moment: int | None, writes: int) -> int | None:
        """Return a mark for what was read at a `moment` and changed by that many writes of the caller since.

        None if anybody else may have written.
        """
        return None if moment is None or self.moment() != moment + writes else moment + writes

    async def write(
        self, name: str, fn: Callable[Concatenate[Transaction, P], T], /, *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Run a write transaction and return the result of `fn` once it is on disk; roll back if it raises.

        Others see the change as soon as it is committed. Cancellation takes effect when the transaction has
        ended.
        """
        result, on_disk = await self._commit(name, partial(_call, fn, args, kwargs))
        if on_disk is not None:
            await Held.following(on_disk)
        faults.point(f"after {name}")
        return result

    async def commit(
        self, name: str, fn: Callable[Concatenate[Transaction, P], T], /, *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """As `write`, but return the result once it is committed, without waiting for the disk.

        For steps that the next start makes or reverts if a power failure undoes them: the last one of a
        deletion, after the state `deleting` was written, or one between the first of a change and the last.
        """
        result, _ = await self._commit(name, partial(_call, fn, args, kwargs), sync=False)
        if self._sync_timer is None:
            loop = asyncio.get_running_loop()
            self._sync_timer = loop.call_later(_SYNC_SECONDS, self.sync_soon)
        faults.point(f"after {name}")
        return result

    async def settle(self) -> None:
        """Wait until everything that was committed is on disk. Raises HostError if that failed."""
        on_disk = self._durability.settle()
        if on_disk is not None:
            await Held.following(on_disk)

    def sync_soon(self) -> None:
        """Have what was committed written to disk now, without waiting for that."""
        if self._sync_timer is not None:
            self._sync_timer.cancel()
            self._sync_timer = None
        self._durability.settle()

    async def _commit(
        self, name: str, work: Callable[[Transaction], T], *, sync: bool = True
    ) -> tuple[T, Future[None] | None]:
        """Run a write transaction; return its result, and what is done when it is on disk."""
        work = partial(_begin_at, self.moment(), work)
        self._begun += 1
        try:
            return await self._commit_in_turn(name, work, sync=sync)
        finally:
            self._ended += 1

    async def _commit_in_turn(
        self, name: str, work: Callable[[Transaction], T], *, sync: bool
    ) -> tuple[T, Future[None] | None]:
        session = await self._writers.take(name)
        started = time.monotonic()
        faults.point(f"before {name}")
        try:
            result = await session.run(work, sync=sync)
            return result, session.on_disk
        finally:
            self._writers.release(session)
            seconds = time.monotonic() - started
            if seconds > _SLOW_SECONDS:
                log.warning("transaction %r took %.2f s", name, seconds)

    async def begin(
        self, name: str, fn: Callable[Concatenate[Transaction, P], T], /, *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """As `write`, for the first of several steps, whose undo steps need space in the database as well.

        Raises OutOfSpace if there is little space left.
        """
        self.engine.check_room()
        return await self.write(name, fn, *args, **kwargs)

    async def note(
        self, name: str, fn: Callable[Concatenate[Transaction, P], T], /, *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """As `begin`, for steps that only change what a power failure ends (interfaces, mounts and cgroups of
        running containers), or what the next start removes unless it is mentioned (files of images).

        Only the next start of a killed daemon needs what was written, so this does not have it synced. Other
        callers have something else to do until that has happened (`settle`).
        """
        self.engine.check_room()
        result, _ = await self._commit(name, partial(_call, fn, args, kwargs), sync=False)
        faults.point(f"after {name}")
        return result


def _call(fn: Callable[..., T], args: tuple[object, ...], kwargs: dict[str, object], tx: Transaction) -> T:
    return fn(tx, *args, **kwargs)


def _begin_at(moment: int | None, work: Callable[[Transaction], T], tx: Transaction) -> T:
    tx.moment = moment
    return work(tx)


class _Pool:
    """Sessions of one kind; waiters are served in order."""

    def __init__(self, sessions: list[Session]) -> None:
        self.sessions = sessions
        # Last in, first out: the most recently used session has a warm cache.
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

    def release(self, session: Session) -> None:
        self._idle.put_nowait(session)

    async def close(self) -> None:
        """Wait for every session to be free, and close it; transactions are rejected from then on."""
        for session in [await self._idle.get() for _ in self.sessions]:
            await session.close()
            self._idle.put_nowait(session)

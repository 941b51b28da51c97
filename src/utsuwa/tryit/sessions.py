"""Sessions of visitors: who has which container, and until when."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import re
import secrets
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from utsuwa.core import clock
from utsuwa.core.errors import Conflict, NotFound, Unavailable, UtsuwaError
from utsuwa.tryit.addresses import shares
from utsuwa.tryit.inside import Inside
from utsuwa.tryit.metrics import Metrics
from utsuwa.tryit.records import Records
from utsuwa.tryit.rest import Rest, settle
from utsuwa.tryit.settings import Settings
from utsuwa.tryit.terminal import Terminal
from utsuwa.tryit.tour import STEPS, Look, Step, Verdict, docker_instances
from utsuwa.tryit.turns import Place, Turns
from utsuwa.tryit.visitors import Container, Visitors
from utsuwa.tryit.watch import Watch

log = logging.getLogger(__name__)

COOKIE = re.compile(r"[A-Za-z0-9_-]{43}\Z")
"""What cookies look like."""
_COOKIE_BYTES = 32
_HOUR = 3600.0
_REMEMBERED = 3600.0
"""Seconds for which an ended session is still known, for its feedback."""
_MOST_REMEMBERED = 10_000
_LOOK_SECONDS = 1.0
"""Between two looks at which sessions are over."""
_CHECK_SECONDS = 1.0
"""Least time between two questions to one visitor's daemon."""
_MOST_ATTEMPTS = 10
"""To see whether Docker is still there, if the visitor's daemon does not answer."""
_PAUSE_SECONDS = 5.0
"""Between them."""
_IN_TURNS = frozenset(step.id for step in STEPS if step.in_turns)


class Full(Unavailable):
    """All sessions are in use."""

    key = "full"


class TooMany(UtsuwaError):
    """One address has too many sessions, or begins them too often."""

    key = "too-many"
    status = 429


class NoSession(NotFound):
    """The request has no cookie of a session."""

    key = "no-session"


@dataclass(eq=False)
class Session:
    """One visitor with a container."""

    id: str
    networks: Mapping[str, int]
    """In which it counts, as `shares` returns."""
    language: str
    container: Container
    expires_at: datetime
    terminal: Terminal
    watch: Watch
    begun: float
    done: list[str] = field(default_factory=list)
    ended: float | None = None
    """When, by the monotonic clock."""
    feedback: bool = False
    asking: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held while its visitor's daemon is asked something: one question at a time costs the host little."""
    asked: float = 0.0
    deletions: int = 0
    """How many instances had been deleted in it when it was last known whether Docker is still there."""
    look: asyncio.Task[None] | None = None
    """The last look at whether Docker is still there, which may still go on."""

    @property
    def state(self) -> str:
        return "ready" if self.ended is None else "ended"


class Sessions:
    """All sessions, by digests of their cookies."""

    def __init__(
        self, rest: Rest, settings: Settings, visitors: Visitors, records: Records, metrics: Metrics
    ) -> None:
        self._rest = rest
        self._settings = settings
        self._visitors = visitors
        self._records = records
        self._metrics = metrics
        self.turns = Turns(
            settings.docker_at_once, settings.docker_minutes * 60, metrics, clock=time.monotonic
        )
        self._by_cookie: dict[str, Session] = {}
        self._coming: Counter[str] = Counter()
        """Visitors that wait for a container, by network."""
        self._coming_together = 0
        self._starts: dict[str, deque[float]] = {}
        self._task: asyncio.Task[None] | None = None
        self._endings: set[asyncio.Task[None]] = set()

    @property
    def now(self) -> int:
        """How many there are, with those that are about to begin."""
        return sum(1 for _ in self._current()) + self._coming_together

    def start(self) -> None:
        self._task = asyncio.create_task(self._watch(), name="ends of sessions")

    async def stop(self) -> None:
        if self._task is not None:
            await settle(self._task)
        await settle(*(session.look for session in self._by_cookie.values() if session.look))
        for session in self._current():
            self._end_soon(session, "shutdown")
        await asyncio.gather(*self._endings)

    def find(self, cookie: str) -> Session:
        """Return the session of a cookie, which may have ended. Raises NoSession."""
        session = self._by_cookie.get(_digest(cookie)) if cookie else None
        if session is None:
            raise NoSession("There is no session: begin one")
        return session

    def find_current(self, cookie: str) -> Session:
        """As `find`. Raises NoSession also if it has ended."""
        session = self.find(cookie)
        if session.ended is not None:
            raise NoSession("The session has ended: begin another one")
        return session

    async def begin(self, network: str, language: str) -> tuple[Session, str]:
        """Give a visitor a container; returns the session and its cookie.

        Raises Full, TooMany, Unavailable.
        """
        networks = shares(network)
        try:
            self._admit(networks)
        except UtsuwaError as error:
            self._metrics.refused[error.key] += 1
            raise
        self._coming.update(networks.keys())
        self._coming_together += 1
        begun = time.monotonic()
        try:
            container = await self._visitors.take()
            self._metrics.waits.add(time.monotonic() - begun)
            return self._begin(networks, language, container)
        finally:
            self._coming_together -= 1
            self._coming.subtract(networks.keys())
            self._coming = +self._coming  # without zeros

    async def end(self, session: Session, reason: str) -> None:
        """End a session and delete its container; does nothing if it has ended."""
        if session.ended is not None:
            return
        session.ended = time.monotonic()
        self._metrics.ended[reason] += 1
        self.turns.leave(session.id, "session")
        self._visitors.remove(session.container.name)
        await session.watch.close()
        await session.terminal.close()
        minutes = int((session.ended - session.begun) // 60)
        await self._records.session(
            language=session.language, minutes=minutes, steps=session.done, end=reason
        )

    async def check(self, session: Session, step: Step) -> Verdict:
        """Ask the visitor's daemon whether a step is done, a second after the last time at the earliest.

        Raises Unavailable.
        """
        async with self._asking(session) as inside:
            verdict = await step.check(Look(inside, session.container, session.watch))
        if verdict.done and step.id not in session.done:
            session.done.append(step.id)
            self._metrics.steps[step.id] += 1
        return verdict

    def ask_turn(self, session: Session) -> Place | None:
        """Return where a visitor is who wants a turn; None if it has done the step, and needs none."""
        if not _IN_TURNS.isdisjoint(session.done) and session.id not in self.turns:
            # It may still wait, as the step can be done without a turn.
            self.turns.leave(session.id, "done")
            return None
        return self.turns.ask(session.id)

    async def note_feedback(self, session: Session, stars: int, text: str) -> None:
        """Store what a visitor says, once. Raises Conflict."""
        if session.feedback:
            raise Conflict("You have sent feedback already: thank you")
        session.feedback = True
        self._metrics.stars[str(stars)] += 1
        await self._records.feedback(stars=stars, text=text, language=session.language, steps=session.done)

    # ---- internals

    def _current(self) -> Iterator[Session]:
        return (session for session in self._by_cookie.values() if session.ended is None)

    def _admit(self, networks: Mapping[str, int]) -> None:
        """Raise Full or TooMany."""
        for network, share in networks.items():
            same = sum(network in session.networks for session in self._current())
            if same + self._coming[network] >= self._settings.sessions_per_address * share:
                raise TooMany("Your network has as many sessions as it can have: end one first")
        if self.now >= self._settings.sessions:
            raise Full("All containers are in use: try again in a few minutes")
        now = time.monotonic()
        all_starts = {network: self._starts.setdefault(network, deque()) for network in networks}
        for network, starts in all_starts.items():
            while starts and starts[0] < now - _HOUR:
                starts.popleft()
            if len(starts) >= self._settings.starts_per_hour * networks[network]:
                raise TooMany("Your network has begun many sessions: try again in an hour")
        for starts in all_starts.values():
            starts.append(now)

    def _begin(self, networks: Mapping[str, int], language: str, container: Container) -> tuple[Session, str]:
        cookie = secrets.token_urlsafe(_COOKIE_BYTES)
        session = Session(
            id=secrets.token_hex(8),
            networks=networks,
            language=language,
            container=container,
            expires_at=clock.now() + timedelta(minutes=self._settings.minutes),
            terminal=Terminal(self._rest, container.name),
            watch=Watch(self._rest, container.name),
            begun=time.monotonic(),
        )
        self._by_cookie[_digest(cookie)] = session
        self._metrics.started += 1
        return session, cookie

    async def _watch(self) -> None:
        """End sessions at their time, or with their container, and turns; forget old sessions."""
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            try:
                self._end_over()
                self.turns.look()
                self._look_for_finished_turns()
                self._forget()
            except Exception:
                log.exception("cannot see which sessions are over")

    def _end_over(self) -> None:
        for session in self._current():
            if reason := self._reason_to_end(session):
                self._end_soon(session, reason)

    def _end_soon(self, session: Session, reason: str) -> None:
        """End a session in the background: its browser may not answer, and others do not wait for that."""
        task = asyncio.create_task(self._end_certainly(session, reason), name=f"end of session {session.id}")
        self._endings.add(task)
        task.add_done_callback(self._endings.discard)

    async def _end_certainly(self, session: Session, reason: str) -> None:
        try:
            await self.end(session, reason)
        except Exception:
            log.exception("the end of session %s failed", session.id)

    @asynccontextmanager
    async def _asking(self, session: Session) -> AsyncIterator[Inside]:
        """Ask a visitor's daemon, after other questions to it, and not more often than once a second."""
        async with session.asking:
            wait = session.asked + _CHECK_SECONDS - time.monotonic()
            if wait > 0:
                await asyncio.sleep(wait)
            session.asked = time.monotonic()
            yield Inside(self._rest, session.container.name)

    def _look_for_finished_turns(self) -> None:
        """End the turns of those who have done the step and have no instance with Docker any more.

        They are asked for it after they have deleted an instance.
        """
        for session in self._current():
            finished = session.id in self.turns and not _IN_TURNS.isdisjoint(session.done)
            unknown = session.watch.deletions > session.deletions
            if finished and unknown and (session.look is None or session.look.done()):
                look = self._end_finished_turn(session)
                session.look = asyncio.create_task(look, name=f"turn of {session.id}")

    async def _end_finished_turn(self, session: Session) -> None:
        deletions = session.watch.deletions
        for _ in range(_MOST_ATTEMPTS):
            deletions = session.watch.deletions
            left = await self._has_docker(session)
            if left is False:
                self.turns.leave(session.id, "done")
            if left is not None or session.id not in self.turns:
                break
            await asyncio.sleep(_PAUSE_SECONDS)
        session.deletions = deletions

    async def _has_docker(self, session: Session) -> bool | None:
        """Return None if the visitor's daemon does not say it."""
        try:
            async with self._asking(session) as inside:
                return bool(await docker_instances(inside))
        except UtsuwaError as error:
            log.info("cannot see whether %s still has Docker: %s", session.container.name, error.message)
        except Exception:
            log.exception("cannot see whether %s still has Docker", session.container.name)
        return None

    def _reason_to_end(self, session: Session) -> str:
        """Return an empty string if it goes on."""
        if clock.now() >= session.expires_at:
            return "time"
        if not self._visitors.exists(session.container.name):
            return "gone"
        return "unseen" if session.terminal.unseen_seconds >= self._settings.minutes_unseen * 60 else ""

    def _forget(self) -> None:
        limit = time.monotonic() - _REMEMBERED
        for key, session in list(self._by_cookie.items()):
            if session.ended is not None and (
                session.ended < limit or len(self._by_cookie) > _MOST_REMEMBERED
            ):
                del self._by_cookie[key]
        hour = time.monotonic() - _HOUR
        for network, starts in list(self._starts.items()):
            if not starts or starts[-1] < hour:
                del self._starts[network]


def _digest(cookie: str) -> str:
    return hashlib.sha256(cookie.encode()).hexdigest()

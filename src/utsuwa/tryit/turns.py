"""Whose turn it is: few visitors at a time run Docker, others wait in the order in which they came.

A turn is no right: Docker runs without one, too, within the limits of the visitor's container. Turns keep the
host quick for those who follow the tour.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from utsuwa.tryit.metrics import Metrics

UNSEEN_SECONDS = 90.0
"""How long a visitor whose page no longer asks keeps a turn, or a place in the queue.

Browsers let the timers of hidden pages run once a minute.
"""


@dataclass
class _Turn:
    until: float
    asked: float
    """When its visitor asked last."""


@dataclass
class _Waiting:
    since: float
    asked: float


@dataclass(frozen=True)
class Place:
    """Where a visitor is: `seconds` are left of the turn, or `ahead` visitors are before it."""

    has_turn: bool
    seconds: int = 0
    ahead: int = 0


class Turns:
    """Those who have a turn, and the queue, both by the ids of sessions.

    Times are seconds of one clock that never goes back.
    """

    def __init__(self, most: int, seconds: float, metrics: Metrics, clock: Callable[[], float]) -> None:
        """Let `most` visitors have a turn at a time, each for at most so many seconds."""
        self._most = most
        self._seconds = seconds
        self._metrics = metrics
        self._clock = clock
        self._turns: dict[str, _Turn] = {}
        self._queue: dict[str, _Waiting] = {}

    @property
    def now(self) -> int:
        return len(self._turns)

    @property
    def waiting(self) -> int:
        return len(self._queue)

    def __contains__(self, id: str) -> bool:
        """Whether it is the turn of a visitor."""
        return id in self._turns

    def ask(self, id: str) -> Place:
        """Say that a visitor wants a turn, or still does; one that asks again keeps its place."""
        now = self._clock()
        self.look()
        here = self._turns.get(id) or self._queue.setdefault(id, _Waiting(since=now, asked=now))
        here.asked = now
        self._admit(now)
        turn = self._turns.get(id)
        if turn is None:
            return Place(False, ahead=list(self._queue).index(id))
        return Place(True, seconds=round(turn.until - now))

    def leave(self, id: str, reason: str) -> None:
        """End a visitor's turn, or its waiting, if there is one; the next one's turn begins."""
        self._queue.pop(id, None)
        if self._turns.pop(id, None) is not None:
            self._metrics.turns_ended[reason] += 1
        self._admit(self._clock())

    def look(self) -> None:
        """End what is over: turns that have lasted long enough, and those whose visitors no longer ask."""
        now = self._clock()
        # First the queue: whoever has gone gets no turn.
        for id, waiting in list(self._queue.items()):
            if now >= waiting.asked + UNSEEN_SECONDS:
                self.leave(id, "unseen")
        for id, turn in list(self._turns.items()):
            if now >= turn.until:
                self.leave(id, "time")
            elif now >= turn.asked + UNSEEN_SECONDS:
                self.leave(id, "unseen")

    def _admit(self, now: float) -> None:
        while self._queue and len(self._turns) < self._most:
            id = next(iter(self._queue))
            waited = self._queue.pop(id)
            self._turns[id] = _Turn(until=now + self._seconds, asked=waited.asked)
            self._metrics.turn_waits.add(now - waited.since)

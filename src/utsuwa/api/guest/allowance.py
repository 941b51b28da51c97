"""What one instance may take of the daemon, so that it does not keep other callers waiting."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass

from utsuwa.core.errors import Unavailable


@dataclass(frozen=True)
class Limits:
    """The limits of each instance."""

    connections: int = 64
    """Further ones wait in the kernel until one of these has ended."""
    strangers: int = 8
    """Of them, those of users other than root."""
    lasting: int = 16
    """Of them, those that listen to events or download images."""
    at_once: int = 4
    """Requests that are answered at the same time, lasting ones excepted."""
    rate: float = 200.0
    """Requests and connections per second, on average."""
    burst: float = 400.0
    idle: float = 30.0
    """Seconds for the head of a request, since the connection or the last reply."""
    answer: float = 30.0
    """Seconds to answer a request, until the instance has taken the reply."""


class Rate:
    """A limit of how often something happens: `burst` times at once, and `rate` times a second later."""

    def __init__(self, rate: float, burst: float) -> None:
        self._rate = rate
        self._burst = burst
        self._left = burst
        self._at = time.monotonic()

    def delay(self) -> float:
        """Return the seconds to wait before it happens again, 0 for now."""
        now = time.monotonic()
        self._left = min(self._burst, self._left + (now - self._at) * self._rate)
        self._at = now
        return max(0.0, (1.0 - self._left) / self._rate)

    def take(self) -> None:
        """Count once more, in advance if there was a delay."""
        self._left -= 1.0


class Allowance:
    """The use that one instance makes of its limits."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.rate = Rate(limits.rate, limits.burst)
        self._turns = asyncio.Semaphore(limits.at_once)
        self._lasting = 0

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Wait until a request may be answered."""
        async with self._turns:
            delay = self.rate.delay()
            self.rate.take()
            if delay:
                await asyncio.sleep(delay)
            yield

    @contextmanager
    def lasting(self) -> Iterator[None]:
        """Count a request that takes long. Raises Unavailable if there are too many."""
        if self._lasting >= self.limits.lasting:
            raise Unavailable("too many listeners and downloads of this instance")
        self._lasting += 1
        try:
            yield
        finally:
            self._lasting -= 1

"""The trust password, with which clients add themselves to the trust store."""

from __future__ import annotations

import asyncio
import logging

from utsuwa.core.errors import Forbidden, Unavailable
from utsuwa.security.authorization import NOT_AUTHORIZED
from utsuwa.security.passwords import UNKNOWN_PASSWORD, GuessLimiter, verify_password
from utsuwa.security.server_config import TRUST_PASSWORD, ServerConfig
from utsuwa.security.trust_store import host_of

log = logging.getLogger(__name__)

_CHECKS_AT_ONCE = 2
_CHECKS_WAITING = 32


class TrustPassword:
    """Checks what callers who are not trusted present: the limit is per address, also for wrong tokens."""

    def __init__(self, config: ServerConfig) -> None:
        self._config = config
        self._guesses = GuessLimiter()
        self._checks = asyncio.Semaphore(_CHECKS_AT_ONCE)
        self._waiting = 0

    def count_guess(self, address: str) -> None:
        """Count an attempt of an address. Raises Forbidden after too many."""
        self._guesses.begin(host_of(address))

    async def check(self, password: str, address: str) -> None:
        """Raise Forbidden unless `password` is the trust password, or after too many attempts.

        Without a trust password it takes the same time, so that nobody learns whether there is one.
        """
        if not password:
            raise Forbidden(NOT_AUTHORIZED)
        self.count_guess(address)
        stored = self._config.value(TRUST_PASSWORD)
        if not await self._fits(password, stored or UNKNOWN_PASSWORD) or not stored:
            log.warning("wrong trust password", extra={"address": address})
            raise Forbidden(NOT_AUTHORIZED)
        self._guesses.succeeded(host_of(address))

    async def _fits(self, password: str, stored: str) -> bool:
        """Check in a thread, two at a time, as each check needs memory and CPU time."""
        if self._waiting >= _CHECKS_WAITING:
            raise Unavailable("Too many passwords are being checked, try again in a moment")
        self._waiting += 1
        try:
            async with self._checks:
                return await asyncio.to_thread(verify_password, password, stored)
        finally:
            self._waiting -= 1

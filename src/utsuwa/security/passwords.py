"""The trust password: hashing, and protection against guessing.

With scrypt each guess costs 16 MiB and some tens of milliseconds, so hashing must run in a thread.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import time
from base64 import b64decode, b64encode
from collections import OrderedDict, deque
from collections.abc import Callable

from utsuwa.core.client_networks import network_of
from utsuwa.core.errors import Forbidden

MAX_PASSWORD = 1024
"""Maximum length of a password in bytes (UTF-8)."""

_SCHEME = "scrypt"
_LOG2_COST, _BLOCK, _LANES = 14, 8, 1
_SALT_BYTES = 16

UNKNOWN_PASSWORD = "scrypt$14$8$1$AAAAAAAAAAAAAAAAAAAAAA==$" + "A" * 86 + "=="
"""A hash that costs as much as any to compare, and that nobody knows a password for."""


def hash_password(password: str) -> str:
    """Return `scrypt$14$8$1$<salt>$<hash>`, with a new salt; blocking."""
    salt = os.urandom(_SALT_BYTES)
    digest = _scrypt(password, salt, _LOG2_COST, _BLOCK, _LANES)
    parts = (_SCHEME, str(_LOG2_COST), str(_BLOCK), str(_LANES), _base64(salt), _base64(digest))
    return "$".join(parts)


def verify_password(password: str, stored: str) -> bool:
    """Return whether `password` matches the hash `stored`; blocking, in constant time.

    An invalid hash (edited in the database) matches no password.
    """
    try:
        scheme, cost, block, lanes, salt, digest = stored.split("$")
        if scheme != _SCHEME or len(password.encode()) > MAX_PASSWORD:
            return False
        actual = _scrypt(password, b64decode(salt, validate=True), int(cost), int(block), int(lanes))
        return hmac.compare_digest(actual, b64decode(digest, validate=True))
    except (ValueError, OverflowError):
        return False


def _scrypt(password: str, salt: bytes, log2_cost: int, block: int, lanes: int) -> bytes:
    if not 1 <= log2_cost <= 20:
        raise ValueError("not scrypt parameters that this program has written")
    return hashlib.scrypt(password.encode(), salt=salt, n=1 << log2_cost, r=block, p=lanes, maxmem=1 << 28)


def _base64(data: bytes) -> str:
    return b64encode(data).decode()


class GuessLimiter:
    """Counts the attempts of each address (each /64 of IPv6), to limit guessing.

    An attempt counts when it starts, so that concurrent ones are limited too; the correct password resets it.
    """

    def __init__(
        self,
        tries: int = 10,
        seconds: float = 60,
        addresses: int = 4096,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._tries = tries
        self._seconds = seconds
        self._addresses = addresses
        self._now = now
        self._begun: OrderedDict[str, deque[float]] = OrderedDict()

    def begin(self, host: str) -> None:
        """Count an attempt. Raises Forbidden if this address has made too many recently."""
        now = self._now()
        begun = self._begun.setdefault(network_of(host), deque())
        self._begun.move_to_end(network_of(host))
        while begun and begun[0] <= now - self._seconds:
            begun.popleft()
        if len(begun) >= self._tries:
            wait = begun[0] + self._seconds - now
            raise Forbidden(f"Too many wrong passwords from this address, try again in {wait:.0f} seconds")
        begun.append(now)
        while len(self._begun) > self._addresses:
            self._begun.popitem(last=False)

    def succeeded(self, host: str) -> None:
        self._begun.pop(network_of(host), None)

"""Sessions of the web page, and the tokens that begin them.

A trusted caller asks for a token, which begins one session, once and soon. The session has the caller's
rights, except those of the host's root, until it ends. It consists of two secrets: a cookie, which pages
cannot read, and a key, which the page keeps in the storage of its origin. Browsers send cookies to every port
of a host, so other services there learn them, but not what is stored. Neither secret grants anything alone.

The sessions are kept in a file, by digests of their secrets, so that they survive a restart of the daemon.
Tokens do not.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import secrets
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path

import msgspec

from utsuwa.core import clock
from utsuwa.core.errors import Forbidden, InvalidRequest
from utsuwa.core.threads import in_thread
from utsuwa.host.files.atomic import replace_file
from utsuwa.security.authorization import NOT_AUTHORIZED, Caller, unix_caller
from utsuwa.security.trust_store import TrustStore
from utsuwa.wire.codec import InvalidBody, decode, encode

log = logging.getLogger(__name__)

TOKEN_TIME = timedelta(minutes=5)
SESSION_TIME = timedelta(hours=8)
INVALID_TOKEN = "The token is not valid: it has been used or has expired; get a new one with `utsuwa webui`"
_UNIX = "unix"
_MOST = 200
"""Tokens, and sessions, at a time; the oldest give way."""
_NOBODY = -1
"""A user id that is not root's."""


class _Session(msgspec.Struct, kw_only=True, frozen=True):
    """A session as it is stored; times are seconds since 1970."""

    cookie: str
    """SHA-256 of the cookie's value."""
    key: str
    """SHA-256 of the page's key."""
    protocol: str
    username: str
    certificate: bytes = b""
    """In DER, of a caller over HTTPS."""
    fingerprint: str = ""
    local: bool
    """Whether it is for the loopback address, and not for HTTPS."""
    expires: float


class _File(msgspec.Struct, kw_only=True):
    host: str = ""
    port: int = 0
    sessions: list[_Session] = []


@dataclass(frozen=True)
class Token:
    """An issued token; `secret` is for the page, `id` for asking whether it was used."""

    id: str
    secret: str
    expires_at: datetime


@dataclass(frozen=True)
class Opened:
    """A session that has begun, with its two secrets."""

    cookie: str
    key: str
    expires_at: datetime


@dataclass(frozen=True)
class _Issued:
    session: _Session
    """Without its secrets."""
    expires_at: datetime


class WebSessions:
    """The sessions and tokens of one daemon."""

    def __init__(self, trust: TrustStore, file: Path, now: Callable[[], datetime] = clock.now) -> None:
        self._trust = trust
        self._path = file
        self._now = now
        self._tokens: dict[str, _Issued] = {}
        """By the SHA-256 of the secret."""
        self._stored = _File()
        self._writing = asyncio.Lock()

    async def load(self) -> None:
        """Read the sessions of the daemon's last run; without them if the file is damaged."""
        try:
            self._stored = decode(await in_thread(self._path.read_bytes), _File)
        except FileNotFoundError:
            return
        except (OSError, InvalidBody) as error:
            log.warning("the sessions of the web page are lost, sign in again: %s", error)
        self._drop_expired()

    # ---- the loopback address

    @property
    def address(self) -> tuple[str, int]:
        """The host name and the port of the loopback address; empty and 0 until `use_address`."""
        return self._stored.host, self._stored.port

    async def use_address(self, host: str, port: int) -> None:
        """Remember where the loopback address is; sessions of another address are over."""
        if (host, port) != self.address:
            kept = [session for session in self._stored.sessions if not session.local]
            self._stored = _File(host=host, port=port, sessions=kept)
            await self._save()

    @property
    def local_seconds(self) -> float:
        """The time after which the loopback address is no longer needed, in seconds; 0 for not at all."""
        ends = [session.expires for session in self._stored.sessions if session.local]
        ends += [token.expires_at.timestamp() for token in self._tokens.values() if token.session.local]
        return max(0.0, max(ends, default=0.0) - self._now().timestamp())

    # ---- tokens

    def issue(self, caller: Caller, certificate: bytes, *, local: bool) -> Token:
        """Issue a token for a session of `caller`, who has presented `certificate` (DER) on HTTPS.

        Raises Forbidden for a caller in such a session, which would never end, and InvalidRequest if a local
        session is not wanted on the unix socket.
        """
        if not caller.trusted or caller.web:
            raise Forbidden(NOT_AUTHORIZED)
        if local and caller.protocol != _UNIX:
            raise InvalidRequest("The loopback address is for local users: omit local")
        session = _Session(
            cookie="",
            key="",
            protocol=caller.protocol,
            username=caller.username,
            certificate=certificate,
            fingerprint=caller.fingerprint,
            local=local,
            expires=0,
        )
        secret = secrets.token_urlsafe(32)
        expires_at = self._now() + TOKEN_TIME
        self._drop_expired()
        digest = _digest(secret)
        self._tokens[digest] = _Issued(session, expires_at)
        while len(self._tokens) > _MOST:
            del self._tokens[next(iter(self._tokens))]
        return Token(digest, secret, expires_at)

    def is_waiting(self, token: str) -> bool:
        """Return whether a token, given by its id, can still be used."""
        self._drop_expired()
        return token in self._tokens

    # ---- sessions

    async def begin(self, secret: str, *, local: bool) -> Opened:
        """Use a token on the loopback address or on HTTPS. Raises Forbidden, which does not tell why."""
        self._drop_expired()
        digest = _digest(secret)
        found = self._tokens.get(digest)
        if found is None or found.session.local is not local:
            raise Forbidden(INVALID_TOKEN)
        del self._tokens[digest]
        expires_at = self._now() + SESSION_TIME
        opened = Opened(secrets.token_urlsafe(32), secrets.token_urlsafe(32), expires_at)
        session = msgspec.structs.replace(
            found.session,
            cookie=_digest(opened.cookie),
            key=_digest(opened.key),
            expires=expires_at.timestamp(),
        )
        self._stored.sessions = [*self._stored.sessions, session][-_MOST:]
        await self._save()
        return opened

    def caller(self, cookie: str, key: str, address: str, *, local: bool) -> Caller | None:
        """Return who has a session with these secrets; None if nobody has, or nobody who is trusted."""
        session = self._find(cookie, local)
        if session is None or not hmac.compare_digest(session.key, _digest(key)):
            return None
        if session.protocol == _UNIX:
            found = replace(unix_caller(_NOBODY, session.username), address=address)
        else:
            found = self._trust.identify(session.fingerprint, address, session.certificate)
        return replace(found, web=True) if found.trusted else None

    async def end(self, cookie: str) -> None:
        """End a session; one that does not exist is ended already."""
        digest = _digest(cookie)
        self._stored.sessions = [session for session in self._stored.sessions if session.cookie != digest]
        await self._save()

    def _find(self, cookie: str, local: bool) -> _Session | None:
        digest, now = _digest(cookie), self._now().timestamp()
        for session in self._stored.sessions:
            if session.cookie == digest and session.local is local and now < session.expires:
                return session
        return None

    def _drop_expired(self) -> None:
        now = self._now()
        self._tokens = {key: token for key, token in self._tokens.items() if now < token.expires_at}
        self._stored.sessions = [s for s in self._stored.sessions if now.timestamp() < s.expires]

    async def _save(self) -> None:
        """Write what there is when it is this call's turn. Raises OSError."""
        async with self._writing:
            text = encode(self._stored).decode()
            await in_thread(replace_file, self._path, text)


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode(errors="surrogatepass")).hexdigest()

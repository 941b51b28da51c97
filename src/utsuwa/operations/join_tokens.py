"""Join tokens: each lets one client add its own certificate to the trust store, once and for a limited time.

A token is an operation of the class `token`, as in LXD, whose metadata contains what clients encode as the
token's text. It is kept in memory only, so a restart of the daemon revokes all of them.
"""

from __future__ import annotations

import asyncio
import hmac
import secrets
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime

from utsuwa.core import clock
from utsuwa.core.errors import Cancelled, Forbidden, UtsuwaError
from utsuwa.operations import kinds
from utsuwa.operations.operations import Operation, Operations
from utsuwa.wire.certificates import CertificatesPost

INVALID_TOKEN = (
    "The token is not valid: it has been used, has expired or was revoked; ask the server's administrator "
    "for a new one"
)
_SECRET_BYTES = 32
_EXPIRED = "The token has expired"

ExistingProjects = Callable[[], Awaitable[Sequence[str]]]


class _Token:
    """An issued token."""

    def __init__(self, grant: CertificatesPost, expires_at: datetime | None) -> None:
        self.grant = grant
        self.secret = secrets.token_hex(_SECRET_BYTES)
        self.expires_at = expires_at
        self.taken = False
        """Whether a client is using it."""
        self.used = asyncio.Event()
        self.operation: Operation | None = None

    @property
    def expired(self) -> bool:
        return self.expires_at is not None and clock.now() >= self.expires_at

    async def wait(self, operation: Operation) -> None:
        """Wait until it is used. Raises Cancelled when it expires."""
        self.operation = operation
        left = None if self.expires_at is None else (self.expires_at - clock.now()).total_seconds()
        try:
            async with asyncio.timeout(left):
                await self.used.wait()
        except TimeoutError:
            raise Cancelled(_EXPIRED) from None


class JoinTokens:
    """The tokens of one daemon."""

    def __init__(self, operations: Operations, existing_projects: ExistingProjects) -> None:
        self._operations = operations
        self._existing_projects = existing_projects
        self._tokens: list[_Token] = []

    def issue(
        self,
        grant: CertificatesPost,
        *,
        fingerprint: str,
        addresses: Sequence[str],
        expires_at: datetime | None = None,
    ) -> Operation:
        """Issue a token for a certificate as in `grant`; return its operation.

        `fingerprint` and `addresses` tell the client which server to trust, and where it is. Raises
        Unavailable.
        """
        token = _Token(grant, expires_at)
        request = {
            "name": grant.name,
            "type": grant.type,
            "restricted": grant.restricted,
            "projects": grant.projects,
            "certificate": "",
            "password": "",
            "token": True,
        }
        metadata = {
            "secret": token.secret,
            "fingerprint": fingerprint,
            "addresses": list(addresses),
            "request": request,
        }
        if expires_at is not None:
            metadata["expiresAt"] = clock.to_wire(expires_at)
        # In no project, so that callers who are restricted to some cannot see the secret.
        operation = self._operations.start(kinds.JOIN_TOKEN, "", token.wait, metadata=metadata)
        token.operation = operation
        self._tokens = [*self._open(), token]
        return operation

    def knows(self, secret: str) -> bool:
        """Return whether this is the secret of a token that can be used now."""
        return self._find(secret) is not None

    @contextmanager
    def redeem(self, secret: str) -> Iterator[CertificatesPost]:
        """Use a token in this context; it remains valid if the context fails with an error for the client.

        Raises Forbidden, which does not tell why a token is not valid.
        """
        token = self._find(secret)
        if token is None:
            raise Forbidden(INVALID_TOKEN)
        token.taken = True
        try:
            yield token.grant
        except UtsuwaError:
            token.taken = False
            raise
        except BaseException:  # the certificate may have been added
            token.used.set()
            raise
        token.used.set()

    async def follow_projects(self) -> None:
        """Revoke tokens for projects that were renamed or deleted: another one may take over the name."""
        tokens = [token for token in self._open() if token.grant.projects]
        if not tokens:
            return
        existing = await self._existing_projects()
        for token in tokens:
            if not set(existing).issuperset(token.grant.projects) and token.operation is not None:
                token.taken = True
                if not token.operation.ended:
                    token.operation.cancel()

    def _open(self) -> list[_Token]:
        return [t for t in self._tokens if t.operation is not None and not t.operation.ended]

    def _find(self, secret: str) -> _Token | None:
        """Compare with all tokens, so that the time does not depend on which one it is."""
        given = secret.encode(errors="surrogatepass")
        found = [t for t in self._open() if hmac.compare_digest(t.secret.encode(), given)]
        usable = [t for t in found if not (t.taken or t.used.is_set() or t.expired)]
        return usable[0] if usable else None

"""Images that other servers push to this one: what was agreed on with a client that may create images.

The other server needs no certificate: it sends the secret of such a grant, which is valid once. As with LXD,
a grant is an operation of the class `token`, kept in memory only: cancelling it or a restart of the daemon
revokes it.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from utsuwa.images.new import NewImage
from utsuwa.operations import kinds
from utsuwa.operations.operations import Operation, Operations

UNUSED_SECONDS = 86400.0
"""Seconds after which an unused grant is revoked."""


@dataclass(eq=False)
class _Grant:
    project: str
    fingerprint: str
    image: NewImage
    secret: str = field(default_factory=lambda: secrets.token_hex(32))
    used: asyncio.Event = field(default_factory=asyncio.Event)


class PushedImages:
    """The grants of one daemon."""

    def __init__(self, operations: Operations) -> None:
        self._operations = operations
        self._grants: set[_Grant] = set()

    def grant(self, project: str, fingerprint: str, image: NewImage, shown: Mapping[str, Any]) -> Operation:
        """Let another server upload an image, which becomes `image`.

        Returns the operation, with the secret and what is `shown` in its metadata. Raises Unavailable.
        """
        grant = _Grant(project, fingerprint, image)

        async def run(_: Operation) -> None:
            self._grants.add(grant)
            try:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(grant.used.wait(), UNUSED_SECONDS)
            finally:
                self._grants.discard(grant)

        metadata = {**shown, "secret": grant.secret}
        return self._operations.start(
            kinds.IMAGE_SECRET, project, run, names=[fingerprint], metadata=metadata
        )

    def take(self, project: str, fingerprint: str, secret: str) -> NewImage | None:
        """Return the image of a grant, which is used up by that; None if there is none.

        The time that it takes does not depend on which secret it is.
        """
        given = secret.encode(errors="replace")
        matches = [g for g in self._grants if hmac.compare_digest(g.secret.encode(), given)]
        for grant in matches:
            if (grant.project, grant.fingerprint) == (project, fingerprint) and not grant.used.is_set():
                grant.used.set()
                return grant.image
        return None

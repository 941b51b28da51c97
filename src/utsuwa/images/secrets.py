"""Secrets of private images: each lets one caller without a certificate download an image once.

A secret is in the metadata of an operation of the class `token`, as in LXD. It is kept in memory only, so a
restart of the daemon revokes all of them; cancelling its operation revokes one.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import secrets
from dataclasses import dataclass, field

from utsuwa.operations import kinds
from utsuwa.operations.operations import Operation, Operations

UNUSED_SECONDS = 86400.0
"""Seconds after which an unused secret is revoked."""
USED_SECONDS = 60.0
"""Seconds for a client that has read an image's record to request its files."""

Image = tuple[str, str]
"""The project that holds an image, and its fingerprint."""


@dataclass(eq=False)
class _Secret:
    image: Image
    value: str = field(default_factory=lambda: secrets.token_hex(32))
    used: asyncio.Event = field(default_factory=asyncio.Event)
    ended: asyncio.Event = field(default_factory=asyncio.Event)


class ImageSecrets:
    """The secrets of one daemon."""

    def __init__(self, operations: Operations) -> None:
        self._operations = operations
        self._secrets: set[_Secret] = set()

    def issue(self, project: str, image: Image) -> Operation:
        """Return the operation of a new secret for an image, as seen in `project`. Raises Unavailable."""
        secret = _Secret(image)

        async def run(_: Operation) -> None:
            self._secrets.add(secret)
            try:
                await _passed(secret.used, UNUSED_SECONDS)
                if secret.used.is_set():
                    await _passed(secret.ended, USED_SECONDS)
            finally:
                self._secrets.discard(secret)

        metadata = {"secret": secret.value}
        return self._operations.start(kinds.IMAGE_SECRET, project, run, names=[image[1]], metadata=metadata)

    def opens(self, image: Image, value: str, *, last: bool = False) -> bool:
        """Return whether a secret is that of an image, and revoke it soon, at once if this is its `last` use.

        The time that it takes does not depend on which secret it is.
        """
        given = value.encode(errors="replace")
        matches = [s for s in self._secrets if hmac.compare_digest(s.value.encode(), given)]
        found = [secret for secret in matches if secret.image == image and not secret.ended.is_set()]
        for secret in found:
            secret.used.set()
            if last:
                secret.ended.set()
        return bool(found)


async def _passed(event: asyncio.Event, seconds: float) -> None:
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(event.wait(), seconds)

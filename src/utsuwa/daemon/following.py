"""What a daemon holds in memory of rows that other members change as well: looked at again and again."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence

from utsuwa.core.errors import Unavailable

log = logging.getLogger(__name__)

SECONDS = 2.0
"""Between two looks: so long a member may still trust a certificate that was removed on another one."""


class Following:
    """Calls each of `parts`, which take over what others have stored, until it is stopped."""

    def __init__(self, parts: Sequence[Callable[[], Awaitable[None]]], seconds: float = SECONDS) -> None:
        self._parts = parts
        self._seconds = seconds
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name="other members")

    async def stop(self) -> None:
        """What is just being taken over is cut off."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self._seconds)
            for follow in self._parts:
                try:
                    await follow()
                except Unavailable as error:
                    log.debug("other members' changes are taken over later: %s", error)
                except Exception:
                    log.exception("what another member has changed is not taken over")

"""The target's part of a handover: the instance is started when its source has stopped it and says so."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from utsuwa.core import faults
from utsuwa.core.errors import UtsuwaError
from utsuwa.core.refs import InstanceRef
from utsuwa.instances.context import Context
from utsuwa.instances.lifecycle import delete
from utsuwa.migration.channel import ControlChannel
from utsuwa.migration.messages import Control
from utsuwa.operations.operations import forbid_cancellation

log = logging.getLogger(__name__)

Start = Callable[[], Awaitable[None]]


class Verdict:
    """The verdict of the source: a failure, or the permission to start an instance that it has stopped."""

    def __init__(self, control: ControlChannel) -> None:
        self._control = control
        self._permitted = asyncio.Event()

    async def wait(self) -> None:
        """Raises InvalidRequest if the source has failed, Unavailable if it has disappeared."""
        await self._control.verdict()
        self._permitted.set()

    async def permission(self) -> None:
        """Confirm that everything was received, and wait until the instance may be started."""
        await self._control.send(Control(success=True, message=""))
        faults.point("waiting for handover")
        await self._permitted.wait()
        forbid_cancellation()


async def take_over(ctx: Context, ref: InstanceRef, start: Start, control: ControlChannel) -> None:
    """Start an instance in place of the source; delete it if it does not start."""
    try:
        await start()
    except Exception:
        if ctx.runtime.get(ref) is None:
            await delete.delete(ctx, ref)
        raise
    faults.point("taken over")
    try:
        await control.send(Control(success=True, message=""))
    except UtsuwaError as error:  # the source does not start it any more
        log.warning("the source of instance %r is not told that it runs: %s", ref.name, error.message)

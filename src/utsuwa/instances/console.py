"""What containers say on their console: liblxc's ring buffer where they run, the log file else."""

from __future__ import annotations

import asyncio
import contextlib
import os

from utsuwa.core.errors import HostError, NotFound
from utsuwa.host.helper.client import Helper
from utsuwa.instances import logs
from utsuwa.instances.exec import ExecTarget

CONSOLE_LOG = "console.log"
_TAIL = 1024 * 1024
"""Bytes of the file that are shown: its end."""


class ConsoleLog:
    """Reads and clears the console's log."""

    def __init__(self, helper: Helper) -> None:
        self._helper = helper

    async def read(self, target: ExecTarget) -> bytes:
        """What there is; NotFound where the instance has never been started."""
        if target.running:
            with contextlib.suppress(HostError):  # it keeps no ring buffer, or is just ending
                return await self._helper.console_log(target.storage_name, target.lxcpath)
        try:
            file = await logs.open_log(target.logs, CONSOLE_LOG)
        except NotFound:
            raise NotFound(f"The instance {target.name!r} has no console log yet") from None
        with file:
            return await asyncio.to_thread(_tail, file.fileno())

    async def clear(self, target: ExecTarget) -> None:
        """Empty the log; there may be none."""
        if target.running:
            with contextlib.suppress(HostError):
                await self._helper.clear_console_log(target.storage_name, target.lxcpath)
        await logs.truncate(target.logs, CONSOLE_LOG)


def _tail(fd: int) -> bytes:
    return os.pread(fd, _TAIL, max(0, os.fstat(fd).st_size - _TAIL))

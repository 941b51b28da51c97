"""Console logs of containers, which liblxc writes to a file of limited size.

liblxc's ring buffer would contain the same, but can only be read once.
"""

from __future__ import annotations

import asyncio
import os

from utsuwa.core.errors import NotFound
from utsuwa.instances import logs
from utsuwa.instances.commands.exec import ExecTarget

CONSOLE_LOG = "console.log"
_TAIL = 1024 * 1024
"""Maximum number of bytes to return, from the end of the file."""


async def read(target: ExecTarget) -> bytes:
    """Return the log. Raises NotFound if the instance has never been started."""
    try:
        file = await logs.open_log(target.logs, CONSOLE_LOG)
    except NotFound:
        raise NotFound(f"The instance {target.instance.name!r} has no console log yet") from None
    with file:
        return await asyncio.to_thread(_tail, file.fileno())


async def clear(target: ExecTarget) -> None:
    """Truncate the log, if there is one."""
    await logs.truncate(target.logs, CONSOLE_LOG)


def _tail(fd: int) -> bytes:
    return os.pread(fd, _TAIL, max(0, os.fstat(fd).st_size - _TAIL))

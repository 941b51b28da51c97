"""CRIU while it saves a container: it is started before that is frozen, and waits until it is.

It examines the kernel first. Where /run is not a tmpfs, so that it cannot keep what it finds, this takes as
long as saving a small container.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from io import FileIO
from pathlib import Path

from utsuwa.core import faults
from utsuwa.core.errors import OutOfSpace
from utsuwa.core.tasks import finish
from utsuwa.core.threads import in_thread
from utsuwa.host.checkpoint import commands
from utsuwa.host.processes import pipes
from utsuwa.host.processes.run import run

_TIMEOUT = 600.0
_GATE = "gate"
"""The script at which CRIU waits, in the directory of the images until they are complete."""

Complete = Callable[[], Awaitable[None]]
"""Lets CRIU save the container, which is frozen, and waits for its end. Raises ProcessFailed, also if it has
ended before."""


@contextlib.asynccontextmanager
async def begun(program: str, job: commands.Dump) -> AsyncIterator[Complete]:
    """Start CRIU, and enter the block when it waits for being told to go on, or has ended.

    If it still waits at the end of the block, it is killed; if the daemon is killed before, it ends. Raises
    OutOfSpace.
    """
    gate = job.images / _GATE
    with contextlib.ExitStack() as stack:
        ready, tell_ready, wait, go = (
            stack.enter_context(FileIO(descriptor, mode))
            for pair in (os.pipe2(os.O_CLOEXEC), os.pipe2(os.O_CLOEXEC))
            for descriptor, mode in zip(pair, ("r", "w"), strict=True)
        )
        os.set_blocking(ready.fileno(), False)
        await in_thread(_write, gate, commands.gate(tell_ready.fileno(), wait.fileno()))

        def started() -> None:
            tell_ready.close()
            wait.close()

        process = asyncio.create_task(
            run(
                [*commands.dump(program, job), "--action-script", str(gate)],
                timeout=_TIMEOUT,
                pass_fds=(tell_ready.fileno(), wait.fileno()),
                started=started,
            )
        )
        waits = asyncio.create_task(pipes.read(ready.fileno()))

        async def complete() -> None:
            with contextlib.suppress(BrokenPipeError):
                go.write(b"go\n")
            try:
                await process
            finally:
                await in_thread(gate.unlink, missing_ok=True)

        try:
            await asyncio.wait([process, waits], return_when=asyncio.FIRST_COMPLETED)
            faults.point("CRIU waits for the container")
            yield complete
        finally:
            process.cancel()
            waits.cancel()
            await finish(asyncio.wait([process, waits]))


def _write(gate: Path, text: str) -> None:
    try:
        gate.write_text(text)
        gate.chmod(0o700)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise OutOfSpace(
            "There is no space left for the running state: free some on its storage pool, and try again"
        ) from error

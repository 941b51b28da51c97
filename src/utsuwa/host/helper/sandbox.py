"""The daemon's side of a sandbox of the helper (see `sandboxes`): asyncio, no threads."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from pathlib import Path
from typing import Literal, Self

from utsuwa.core.errors import HostError, ProcessFailed
from utsuwa.core.tasks import finish
from utsuwa.core.threads import in_thread
from utsuwa.host import syscalls
from utsuwa.host.archives import jail
from utsuwa.host.helper import protocol
from utsuwa.host.helper.messages import SandboxJob
from utsuwa.host.helper.replies import judge, receive
from utsuwa.host.helper.session import Send
from utsuwa.host.processes import pipes

Job = Literal["send", "receive"]
"""Write the archive of a tree to the output, or unpack that from the input."""

_END_SECONDS = 5.0
_MOST_SAID = 64 * 1024


class Sandbox:
    """A sandbox that does one job. Always `end` it, which kills its processes if they are still there."""

    def __init__(self, lifeline: socket.socket, calls: socket.socket, said: int) -> None:
        self._lifeline = lifeline
        self._calls = calls
        self._said = said
        """The read end of a pipe to which its processes write what went wrong; at its end, none is left."""
        os.set_blocking(said, False)

    @classmethod
    async def begin(cls, send: Send) -> Self:
        """Have one built, without waiting for that. Raises HostError."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        said, say = os.pipe2(os.O_CLOEXEC)
        try:
            with theirs:
                lifeline = await send((theirs.fileno(), say))
        except BaseException:
            ours.close()
            os.close(said)
            raise
        finally:
            os.close(say)
        return cls(lifeline, ours, said)

    async def tell(self, job: Job, tree: Path, input: int, output: int) -> None:
        """Tell it its job; the descriptors still belong to the caller.

        Raises as `wait` if it could not be built, HostError.
        """
        told: SandboxJob = {"job": job}
        mounts: list[int] = []  # closed also if this is cancelled while the thread makes it

        def view() -> None:
            mounts.append(_view(tree, writable=job == "receive"))

        try:
            await in_thread(view)
            protocol.send(self._calls, told, (*mounts, input, output))
        except ConnectionError as error:
            await self.wait()  # which tells the reason
            raise HostError("The sandbox ended before it had a job") from error
        finally:
            for mount in mounts:
                os.close(mount)

    async def wait(self) -> None:
        """Wait until it has done its job. Raises ProcessFailed if that has failed, HostError."""
        said = await self._read()
        answer, _ = await receive(self._lifeline)
        if code := judge(answer):
            raise ProcessFailed(["tar"], code, said.decode(errors="replace"))

    async def _read(self) -> bytes:
        """Return the beginning of what its processes say; they have ended then."""
        said = b""
        while part := await pipes.read(self._said):
            said = (said + part)[:_MOST_SAID]
        return said

    async def end(self) -> None:
        """End it, and wait until nothing of it is left."""
        self._lifeline.close()
        self._calls.close()
        try:
            await finish(self._ended())
        finally:
            os.close(self._said)

    async def _ended(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_END_SECONDS):
                await self._read()


def _view(tree: Path, *, writable: bool) -> int:
    """Return a detached mount of a tree, as a sandbox shows it. Blocking."""
    mount = syscalls.open_tree(tree)
    attributes = jail.target_attributes(writable=writable)
    try:
        syscalls.mount_setattr(mount, attr_set=attributes, propagation=syscalls.MS_PRIVATE)
    except BaseException:
        os.close(mount)
        raise
    return mount

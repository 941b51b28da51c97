"""Attaching to the console of a container.

Only one session at a time can use it. It has the websockets `0` and `control`; closing either detaches.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno

from utsuwa.core.errors import Conflict, InvalidRequest
from utsuwa.core.refs import InstanceRef
from utsuwa.host.checkpoint import console as kept
from utsuwa.host.helper.client import Helper
from utsuwa.host.processes import pipes
from utsuwa.instances.commands.exec import CONNECT_TIMEOUT, ExecTarget
from utsuwa.instances.commands.exec_streams import Sockets
from utsuwa.operations import kinds
from utsuwa.operations.operations import Operation, Operations
from utsuwa.operations.websocket import WebSocket
from utsuwa.wire.exec import InstanceConsolePost


class ConsoleManager:
    """Keeps track of the sessions of consoles."""

    def __init__(self, operations: Operations, helper: Helper) -> None:
        self._operations = operations
        self._helper = helper
        self._sessions: dict[InstanceRef, Operation] = {}
        """The last session at each container's console."""
        self._connected: set[Operation] = set()
        """The sessions whose clients have connected: others can be replaced."""

    def start(self, target: ExecTarget, request: InstanceConsolePost) -> Operation:
        """Attach in the background, once the client has connected the websocket.

        Raises InvalidRequest if the container is not running, Conflict if another session is using it.
        """
        if request.type != "console":
            raise InvalidRequest(f"Containers have no console of type {request.type[:20]!r}: use 'console'")
        if not target.running:
            raise InvalidRequest(
                f"Instance is not running: start it with `utsuwa start {target.instance.name}`"
            )
        self._sessions = {ref: session for ref, session in self._sessions.items() if not session.ended}
        before = self._sessions.get(target.instance)
        if before in self._connected and not request.force:
            name = target.instance.name
            raise Conflict(
                f"The console of {name!r} is in use by another session: detach that one, or take it over "
                f"with `utsuwa console --force {name}`"
            )

        async def run(operation: Operation) -> None:
            if before is not None:
                before.stop()
                await before.wait()
            await self._attend(target, operation)

        operation = self._operations.start(
            kinds.CONSOLE_SHOW,
            target.instance.project,
            run,
            names=[target.instance.name],
            websockets=("0", "control"),
        )
        self._sessions[target.instance] = operation
        self._operations.events.publish_lifecycle(
            "instance-console", target.instance.url(), target.instance.project, {"type": request.type}
        )
        return operation

    async def _attend(self, target: ExecTarget, operation: Operation) -> None:
        """Serve the session until the client detaches or the container ends."""
        sockets = await Sockets.connected(operation, CONNECT_TIMEOUT)
        self._connected.add(operation)
        try:
            await self._converse(target, sockets)
        finally:
            self._connected.discard(operation)

    async def _converse(self, target: ExecTarget, sockets: Sockets) -> None:
        console = await asyncio.to_thread(kept.connect, target.logs) or await self._helper.console(
            target.instance.storage_name, target.lxcpath
        )
        socket = sockets.streams["0"]
        works = (_show(console.master, socket), _listen(console.master, socket), _wait_for_close(sockets))
        tasks = [asyncio.create_task(work) for work in works]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            console.close()
            with contextlib.suppress(ConnectionError):
                await socket.send_str("")


async def _show(master: int, socket: WebSocket) -> None:
    """Forward the container's output, until its end."""
    with contextlib.suppress(ConnectionError):
        try:
            while data := await pipes.read(master):
                await socket.send_bytes(data)
        except OSError as error:
            if error.errno != errno.EIO:  # the container has ended
                raise


async def _listen(master: int, socket: WebSocket) -> None:
    """Forward the client's input, until it closes the websocket."""
    while (message := await socket.read()) is not None:
        if isinstance(message, bytes):
            with contextlib.suppress(OSError):
                await pipes.write(master, message)


async def _wait_for_close(sockets: Sockets) -> None:
    """Wait until the control channel, which is optional, is closed in order to detach."""
    control = await sockets.control()
    while await control.read() is not None:
        pass

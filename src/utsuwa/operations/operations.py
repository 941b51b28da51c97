"""Background operations: started by requests, published as events, waited for, cancelled.

An operation is a task owned by the manager. Its states are pending, running, then success, failure or
cancelled, in this order; every change is published at once. Completed operations remain visible for a few
seconds, so that late clients can still get the result.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import logging
import secrets
import uuid
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Protocol

from utsuwa.core import clock
from utsuwa.core.errors import Cancelled as CancelledOperation
from utsuwa.core.errors import Forbidden, InvalidRequest, NotFound, Unavailable, UtsuwaError
from utsuwa.core.scope import EVERYTHING, Scope
from utsuwa.core.units import shown_bytes
from utsuwa.core.urls import object_url
from utsuwa.operations.events import EventHub, act_as, current_requestor
from utsuwa.operations.kinds import Kind
from utsuwa.operations.websocket import LastingWebSocket, WebSocket
from utsuwa.wire import operations as wire
from utsuwa.wire.events import Requestor

log = logging.getLogger(__name__)

KEEP_SECONDS = 5.0
"""Seconds for which a completed operation remains visible."""

PENDING = ("Pending", 105)
RUNNING = ("Running", 103)
SUCCESS = ("Success", 200)
FAILURE = ("Failure", 400)
CANCELLED = ("Cancelled", 401)

SHUTTING_DOWN = "The daemon is shutting down: try again when it is running again"
INTERNAL_ERROR = "Internal error: see the daemon's log"
CANCELLED_ERROR = "The operation was cancelled"

current: ContextVar[Operation | None] = ContextVar("current_operation", default=None)
"""The operation whose `run` is executing, if any."""


def forbid_cancellation() -> None:
    """Prevent clients from cancelling the current operation, if any, from now on."""
    operation = current.get()
    if operation is not None:
        operation.may_cancel = False


@contextlib.contextmanager
def cancellable() -> Iterator[None]:
    """Allow clients to cancel the current operation, if any, during the block."""
    operation = current.get()
    if operation is None or operation.may_cancel:
        yield
        return
    operation.may_cancel = True
    try:
        yield
    finally:
        operation.may_cancel = False


def cancelled_by_client() -> bool:
    """Return whether a client has cancelled the current operation; it may also be cancelled by a shutdown."""
    operation = current.get()
    return operation is not None and operation.cancelled_by_client


@dataclass(frozen=True)
class Ticket:
    """The id of an operation and the secret of its only websocket, which both sides know before it starts."""

    id: str
    secret: str

    @classmethod
    def new(cls) -> Ticket:
        return cls(str(uuid.uuid4()), secrets.token_hex(32))


class Lasting(Protocol):
    """The end of websockets that an operation's creator may lose and connect again."""

    async def serve(self, name: str, socket: LastingWebSocket, *, offset: int, window: int) -> None:
        """Serve one connected websocket until it is lost, replaced or not needed any more.

        `offset` is how many bytes of the stream the client has already; `window` is how many it wants to
        get beyond those that it acknowledges, 0 for any number.
        """


class _Socket:
    """One websocket that an operation waits for."""

    def __init__(self, name: str, secret: str) -> None:
        self.name = name
        self.secret = secret
        self.taken = False
        self.connected: asyncio.Future[WebSocket] = asyncio.get_running_loop().create_future()

    def end(self) -> None:
        """Stop waiting for it; a completed operation must not keep a connection's memory."""
        self.connected.cancel()
        self.connected = asyncio.get_running_loop().create_future()
        self.connected.cancel()


class Operation:
    """One operation. `run` gets it to report progress and to take its websockets."""

    def __init__(
        self,
        manager: Operations,
        kind: Kind,
        project: str,
        *,
        names: Sequence[str],
        metadata: Mapping[str, Any] | None,
        websockets: Sequence[str],
        secret: str = "",
        ticket: Ticket | None = None,
        lasting: Lasting | None = None,
    ) -> None:
        self.id = str(uuid.uuid4()) if ticket is None else ticket.id
        self.project = project
        self.kind = kind
        # Without the project, as with LXD: its clients take all that follows the last slash for the name.
        self.resources = {entity: [object_url(entity, name) for name in names] for entity in kind.entities}
        self.metadata = dict(metadata or {})
        self.may_cancel = kind.cancellable or lasting is not None
        self.cancelled_by_client = False
        """Whether a client has cancelled it."""
        self._requestor = current_requestor()
        self.created_at = self.updated_at = clock.now()
        self.error = ""
        self._status = PENDING
        self._manager = manager
        self._sockets = {
            name: _Socket(name, secrets.token_hex(32) if ticket is None else ticket.secret)
            for name in websockets
        }
        self._ended = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._secret = secret
        self._lasting = lasting
        if websockets:
            self.metadata |= self.secrets if kind.flat else {"fds": self.secrets}
        if secret:
            self.metadata["secret"] = secret

    @property
    def url(self) -> str:
        return object_url("operations", self.id)

    @property
    def status(self) -> str:
        return self._status[0]

    @property
    def status_code(self) -> int:
        return self._status[1]

    @property
    def ended(self) -> bool:
        return self._ended.is_set()

    @property
    def secrets(self) -> dict[str, str]:
        """The secrets of the websockets by name, which allow connecting to them."""
        return {name: socket.secret for name, socket in self._sockets.items()}

    def record(self) -> wire.Operation:
        """Return the current record for the API."""
        return wire.Operation(
            id=self.id,
            class_="websocket" if self._sockets else self.kind.class_,
            description=self.kind.text,
            created_at=self.created_at,
            updated_at=self.updated_at,
            status=self.status,
            status_code=self.status_code,
            resources=self.resources or None,
            metadata=dict(self.metadata) or None,
            may_cancel=self.may_cancel and not self.ended,
            err=self.error,
            location=self._manager.events.location,
        )

    def update_metadata(self, changes: Mapping[str, Any]) -> None:
        """Merge `changes` into the metadata and publish it; does nothing after completion."""
        if self.ended:
            return
        self.metadata.update(changes)
        self.updated_at = clock.now()
        self._publish()

    def set_progress(
        self, stage: str, label: str, *, percent: int = 0, processed: int = 0, speed: int = 0
    ) -> None:
        """Set the progress of `stage` (such as `download` or `create_instance_from_image_unpack`).

        `label` is what clients show of it, before the numbers that are known (not 0): the percentage or else
        the bytes that are done, and bytes per second.
        """
        done = f"{percent}%" if percent else shown_bytes(processed) if processed else ""
        rate = f"({shown_bytes(speed)}/s)" if speed else ""
        text = label if not done else f"{label}: {done} {rate}".rstrip()
        if self.metadata.get(f"{stage}_progress") == text:
            return
        numbers = {"percent": percent, "processed": processed, "speed": speed}
        details = {"stage": stage, **{name: str(number) for name, number in numbers.items() if number}}
        self.update_metadata({f"{stage}_progress": text, "progress": details})

    async def wait(self, timeout: float | None = None) -> bool:  # noqa: ASYNC109
        """Wait for completion, at most `timeout` seconds; return whether it has completed."""
        try:
            async with asyncio.timeout(timeout):
                await self._ended.wait()
        except TimeoutError:
            return False
        return True

    def cancel(self) -> None:
        """Cancel a running operation. Raises InvalidRequest if it is not cancellable or has completed."""
        if self.ended:
            raise InvalidRequest("The operation has already ended")
        if not self.may_cancel or self._task is None:
            raise InvalidRequest("This operation cannot be cancelled")
        self.cancelled_by_client = True
        self._task.cancel()

    async def websocket(self, name: str, timeout: float | None = 30) -> WebSocket:  # noqa: ASYNC109
        """Wait for the client to connect the socket `name`. Raises Unavailable after the timeout."""
        try:
            async with asyncio.timeout(timeout):
                return await asyncio.shield(self._sockets[name].connected)
        except TimeoutError:
            raise Unavailable(f"The client did not connect the websocket {name!r} in time") from None

    @property
    def lasts(self) -> bool:
        """Whether its websockets may be connected again."""
        return self._lasting is not None

    def claim(self, secret: str, requestor: Requestor | None = None) -> str:
        """Return the name of the websocket with this secret; each can be claimed once.

        Those that last can be claimed again, but only by who created the operation: everybody who sees an
        operation sees the secrets. Raises Forbidden for a wrong secret, which reveals nothing else.
        """
        if self.lasts and not self._was_created_by(requestor):
            raise Forbidden("not authorized")
        for socket in self._sockets.values():
            if hmac.compare_digest(socket.secret.encode(), secret.encode()) and not socket.taken:
                if self.ended:
                    break
                socket.taken = not self.lasts
                return socket.name
        raise Forbidden("not authorized")

    def _was_created_by(self, requestor: Requestor | None) -> bool:
        creator = self._requestor
        if requestor is None or creator is None:
            return False
        return (requestor.protocol, requestor.username) == (creator.protocol, creator.username)

    def connect(self, name: str, socket: WebSocket) -> None:
        """Set the connected socket of a claimed name; it is ignored after completion."""
        if not self.ended:
            self._sockets[name].connected.set_result(socket)

    async def serve(self, name: str, socket: LastingWebSocket, *, offset: int = 0, window: int = 0) -> None:
        """Hand over the connected socket of a claimed name, and wait until it is not needed any more."""
        if self._lasting is None:
            self.connect(name, socket)
            await self.wait()
        elif not self.ended:
            await self._lasting.serve(name, socket, offset=offset, window=window)

    def knows_secret(self, secret: str) -> bool:
        """Return whether `secret` is its own, or that of one of its websockets."""
        given = secret.encode()
        known = [*self.secrets.values(), *([self._secret] if self._secret else [])]
        matches = [hmac.compare_digest(one.encode(), given) for one in known]
        return any(matches)

    def start(self, run: Run) -> None:
        """Start the task; called once by the manager."""
        self._publish()
        self._set_status(RUNNING)
        self._task = asyncio.get_running_loop().create_task(self._run(run), name=f"operation {self.id}")
        self._task.add_done_callback(self._finish)

    def stop(self) -> asyncio.Task[None] | None:
        """Cancel the task regardless of `may_cancel`, when the daemon stops."""
        if self._task is not None:
            self._task.cancel()
        return self._task

    async def _run(self, run: Run) -> None:
        current.set(self)
        actor = act_as(self._requestor) if self._requestor is not None else None
        try:
            await run(self)
        finally:
            if actor is not None:
                actor.active = False

    def _finish(self, task: asyncio.Task[None]) -> None:
        """Handle the task's completion, also if it was cancelled before its first step."""
        status = FAILURE
        error = CancelledOperation(CANCELLED_ERROR) if task.cancelled() else task.exception()
        match error:
            case None:
                status = SUCCESS
            case CancelledOperation():
                status = CANCELLED
                self.error = error.message
            case UtsuwaError():
                self.error = error.message
            case _:
                self.error = INTERNAL_ERROR
                log.error("operation failed: %s", self.kind.text, exc_info=error)
        for socket in self._sockets.values():
            socket.end()
        self._task = None  # its context refers to this operation
        self._ended.set()
        self._set_status(status)
        self._manager.ended(self)

    def _set_status(self, status: tuple[str, int]) -> None:
        self._status = status
        self.updated_at = clock.now()
        self._publish()

    def _publish(self) -> None:
        self._manager.events.publish_operation(self.record(), self.project)


Run = Callable[[Operation], Awaitable[None]]
"""The work of an operation."""


class Operations:
    """All operations of the daemon."""

    def __init__(self, events: EventHub, keep_seconds: float = KEEP_SECONDS) -> None:
        self.events = events
        self._keep_seconds = keep_seconds
        self._operations: dict[str, Operation] = {}
        self._stopping = False
        self._listeners: list[Callable[[Operation], None]] = []

    def on_start(self, listener: Callable[[Operation], None]) -> None:
        """Call `listener` with each operation that starts."""
        self._listeners.append(listener)

    def start(
        self,
        kind: Kind,
        project: str,
        run: Run,
        *,
        names: Sequence[str] = (),
        metadata: Mapping[str, Any] | None = None,
        websockets: Sequence[str] = (),
        secret: str = "",
        ticket: Ticket | None = None,
        lasting: Lasting | None = None,
    ) -> Operation:
        """Start `run` in the background, on behalf of the requestor of this context.

        `names` are the names of the objects concerned. `websockets` are the names of the sockets that the
        client must connect; their secrets are in the metadata under `fds`. Callers who know `secret`, which
        is in the metadata as well, may wait for it. With a `ticket`, its id and the secret of its websocket
        are known. With `lasting`, that gets each websocket that the creator connects, also again; clients may
        cancel such an operation. Raises Unavailable.
        """
        if self._stopping:
            raise Unavailable(SHUTTING_DOWN)
        operation = Operation(
            self,
            kind,
            project,
            names=names,
            metadata=metadata,
            websockets=websockets,
            secret=secret,
            ticket=ticket,
            lasting=lasting,
        )
        self._operations[operation.id] = operation
        operation.start(run)
        for listener in self._listeners:
            listener(operation)
        return operation

    def get(self, scope: Scope, operation_id: str, secret: str = "") -> Operation:
        """Return an operation that is in the scope or has this secret. Raises NotFound."""
        operation = self._operations.get(operation_id)
        if operation is None or not (scope.sees(operation.project) or operation.knows_secret(secret)):
            raise NotFound("Operation not found")
        return operation

    def all(self, scope: Scope, project: str | None = None) -> list[Operation]:
        """Return the operations of one project and of none, or all if `project` is None, oldest first."""
        return [
            op
            for op in self._operations.values()
            if scope.sees(op.project) and (project is None or op.project in ("", project))
        ]

    def ended(self, operation: Operation) -> None:
        """Called by an operation on completion, which is removed a little later."""
        asyncio.get_running_loop().call_later(self._keep_seconds, self._forget, operation)

    def _forget(self, operation: Operation) -> None:
        if self._operations.get(operation.id) is operation:  # and not one that has the same ticket
            del self._operations[operation.id]

    def refuse_new(self) -> None:
        """Make `start` raise Unavailable; running operations continue."""
        self._stopping = True

    @property
    def refuses_new(self) -> bool:
        """Whether the daemon is stopping."""
        return self._stopping

    async def complete(self, timeout: float, hurry: asyncio.Event) -> None:  # noqa: ASYNC109
        """Refuse new operations, and wait for the running ones, at most `timeout` seconds or until `hurry`.

        Those that clients may cancel are cancelled, as in LXD.
        """
        self.refuse_new()
        running = [op for op in self.all(EVERYTHING) if not op.ended]
        for op in running:
            if op.may_cancel:
                op.cancel()
        if not running or timeout <= 0 or hurry.is_set():
            return
        log.info("waiting for running operations", extra={"count": len(running), "seconds": timeout})
        waits = [asyncio.ensure_future(wait) for wait in (_all_ended(running), hurry.wait())]
        await asyncio.wait(waits, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()
        if late := [op for op in running if not op.ended]:
            log.warning("some operations did not end in time", extra={"count": len(late)})

    async def stop(self, timeout: float = 10) -> None:  # noqa: ASYNC109
        """Refuse new operations, cancel the running ones and wait for their undo steps."""
        self.refuse_new()
        tasks = [task for op in self.all(EVERYTHING) if not op.ended and (task := op.stop()) is not None]
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=timeout)
            for task in late:
                log.warning("an operation did not stop in time", extra={"task": task.get_name()})


async def _all_ended(operations: Sequence[Operation]) -> bool:
    for operation in operations:
        await operation.wait()
    return True

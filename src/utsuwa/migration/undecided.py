"""Moves of running instances of which one side does not know whether the instance runs on the other one.

The target decides: the instance runs there as soon as its processes do. Each side has a record of the move
from the moment on in which the target could restore them, until the target has told its decision. If their
connection is lost or one of them is killed meanwhile, the side that had connected connects again, until the
target has told what it has decided, and the source has confirmed that.

The last word of an exchange may be lost, so the side that was connected to forgets the move before it sends
that, and the side that connects asks until it hears it or that the other one knows nothing of the move:

- A target that runs the instance, and connects, may forget the move then. It runs the instance only after
  the source has allowed that, which has stored its record before. The source removes the record only after it
  has acted on what the target had decided: its own processes have ended, and are not started by themselves
  (unless users have had them go on before, as they said that they do not run on the target).
- A source that connects, and has acted on the decision, may forget the move: it has nothing left to do.

In all other cases it proves nothing, and the side goes on asking. A source that still has its record says so,
also while nobody can connect to it, and is told the decision however late it comes back.

A side that vanishes without a word, as by a loss of power, does not answer to the heartbeat of the other one
(`Kind.heartbeat`), so that the connection is lost and another one is made. A side that is busy acting on the
decision may lose its connection as well: it is told again, and acts once. Records survive a loss of power.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Literal

import msgspec
from yarl import URL

from utsuwa.core import faults
from utsuwa.core.errors import InvalidRequest, Unavailable, UtsuwaError
from utsuwa.core.refs import InstanceRef
from utsuwa.host.files.atomic import remove_file, replace_file
from utsuwa.migration.channel import ControlChannel
from utsuwa.migration.connecting import Remote, UnknownOperation, opened
from utsuwa.migration.context import MigrationContext
from utsuwa.migration.messages import Control
from utsuwa.operations import kinds
from utsuwa.operations.operations import Operation, Ticket

log = logging.getLogger(__name__)

SUFFIX = ".undecided"
"""Of the names of records, in the directory for migrations."""
_NAMES = ("control",)
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 15.0
"""Seconds between two attempts."""
_PATIENCE = 7 * 86400.0
"""Seconds for which a target tells a source that an instance does not run there."""
_CONFIRMATION = 10.0
"""Seconds for which a source confirms the decision on the connection of the move, before another is made."""


class Record(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """One side of an undecided move."""

    side: Literal["source", "target"]
    project: str
    name: str
    row_id: int
    """Of the instance on this side."""
    operation: str
    """The id of the operation of the side that is connected to."""
    secret: str
    url: str = ""
    """The other server, if this side connects to it."""
    certificate: str = ""
    runs: bool | None = None
    """Whether the instance runs on the target; None as long as that is not decided, or not acted on."""

    @property
    def ref(self) -> InstanceRef:
        return InstanceRef(self.project, self.name)

    @property
    def ticket(self) -> Ticket:
        return Ticket(self.operation, self.secret)

    @property
    def settled_if_unknown(self) -> bool:
        """Whether it is settled if the other side, to which this one connects, knows nothing of the move."""
        return self.runs is True or (self.side == "source" and self.runs is not None)


Act = Callable[[bool], Awaitable[None]]
"""What the source does when it learns whether the instance runs on the target, each time that it does."""


class UndecidedMoves:
    """The records of one server."""

    def __init__(self, ctx: MigrationContext) -> None:
        self._ctx = ctx
        self._tasks: set[asyncio.Task[None]] = set()

    def store(self, record: Record) -> None:
        """Store a record, which survives the end of the daemon and of its host. Blocking."""
        replace_file(self._path(record), msgspec.json.encode(record).decode(), sync=True)

    def forget(self, record: Record) -> None:
        """Forget a record for good. Blocking."""
        remove_file(self._path(record))

    def load(self) -> list[Record]:
        """Return the stored records. Blocking."""
        found = []
        for path in sorted(self._ctx.folder.glob(f"*{SUFFIX}")):
            try:
                found.append(msgspec.json.decode(path.read_bytes(), type=Record))
            except (OSError, msgspec.MsgspecError) as error:
                log.error("cannot read the record of a move %s: %s", path, error)
        return found

    def _path(self, record: Record) -> Path:
        return self._ctx.folder / f"{record.operation}{SUFFIX}"

    def knows(self, operation: str) -> bool:
        """Whether there is a record by the id of an operation, which may be any text. Blocking."""
        return f"{operation}{SUFFIX}" in {path.name for path in self._ctx.folder.glob(f"*{SUFFIX}")}

    async def ask(self, record: Record, act: Act) -> None:
        """Wait until the target says whether the instance runs there; act on that, and confirm it."""

        async def exchange(control: ControlChannel) -> None:
            runs = bool((await control.receive(Control)).success)
            await act(runs)
            record.runs = runs
            await self._confirm(record, control)

        await self._meet(record, exchange)
        await asyncio.to_thread(self.forget, record)

    async def confirm(self, record: Record, control: ControlChannel, act: Act, *, runs: bool) -> None:
        """Confirm a decision that was acted on, on the connection of the move, or else in the background."""
        record.runs = runs
        try:
            async with asyncio.timeout(_CONFIRMATION):
                await self._confirm(record, control)
        except (TimeoutError, Unavailable, InvalidRequest):
            if record.url:
                self.in_background(self.ask(record, act), record.name)

    async def _confirm(self, record: Record, control: ControlChannel) -> None:
        if record.url:
            await asyncio.to_thread(self.store, record)
            faults.point("source has recorded the decision")
            await control.send(Control(success=True))
            await control.receive(Control)
            await asyncio.to_thread(self.forget, record)
        else:
            await asyncio.to_thread(self.forget, record)
            faults.point("source has forgotten the move")
            with suppress(Unavailable):
                await control.send(Control(success=True))

    async def confirmed(self, record: Record, control: ControlChannel) -> None:
        """Wait until the source, which was told the decision, has confirmed it. Raises as `receive`."""
        await control.receive(Control)
        await asyncio.to_thread(self.forget, record)
        if not record.url:
            faults.point("target has forgotten the move")
            with suppress(Unavailable):
                await control.send(Control(success=True))

    async def tell(self, record: Record) -> None:
        """Tell the source whether the instance runs here, until it has confirmed that."""

        async def exchange(control: ControlChannel) -> None:
            await control.send(Control(success=bool(record.runs)))
            await self.confirmed(record, control)

        # A source to which an instance has not gone over need not wait for this.
        with suppress(TimeoutError):
            async with asyncio.timeout(None if record.runs else _PATIENCE):
                await self._meet(record, exchange)
        await asyncio.to_thread(self.forget, record)

    async def _meet(self, record: Record, exchange: Callable[[ControlChannel], Awaitable[None]]) -> None:
        """Have an exchange with the other side, as often as it takes."""
        pause = _FIRST_PAUSE
        while True:
            try:
                if record.url:
                    remote = Remote(URL(record.url), {"control": record.secret}, record.certificate)
                    heartbeat = kinds.INSTANCE_SETTLE.heartbeat
                    async with opened(remote, self._ctx.proxies, _NAMES, heartbeat) as (socket,):
                        await exchange(ControlChannel(socket))
                else:
                    await self._serve(record, exchange)
                return
            except (Unavailable, InvalidRequest) as error:
                if isinstance(error, UnknownOperation) and record.settled_if_unknown:
                    return
                log.info("the move of instance %r is not settled yet: %s", record.name, error)
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    async def _serve(self, record: Record, exchange: Callable[[ControlChannel], Awaitable[None]]) -> None:
        async def run(operation: Operation) -> None:
            await exchange(ControlChannel(await operation.websocket("control", None)))

        operation = self._ctx.instances.operations.start(
            kinds.INSTANCE_SETTLE,
            record.project,
            run,
            names=[record.name],
            websockets=_NAMES,
            ticket=record.ticket,
        )
        await operation.wait()
        if operation.error:
            raise Unavailable(operation.error)

    def in_background(self, work: Awaitable[object], name: str) -> None:
        """Settle a move while the daemon runs."""

        async def run() -> None:
            try:
                await work
            except UtsuwaError as error:
                log.error("the move of instance %r cannot be settled: %s", name, error.message)

        task = asyncio.create_task(run(), name=f"settle the move of {name}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def stop(self) -> None:
        """Leave the rest to the next start of the daemon."""
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

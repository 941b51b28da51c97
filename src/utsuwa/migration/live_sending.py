"""Moves of running instances to another server: the side on which they run.

The files are sent while the instance runs, then its memory, in rounds if that is wanted. For the rest it is
stopped: what has changed of both. Its processes stay frozen and its disk untouched until the target says that
they run there; whatever fails, they go on here.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from utsuwa.core import faults
from utsuwa.core.config_keys import parse_bool
from utsuwa.core.errors import InvalidRequest, Unavailable, UtsuwaError
from utsuwa.core.tasks import finish
from utsuwa.core.threads import in_thread
from utsuwa.host.checkpoint.program import Criu
from utsuwa.host.files.filetree import remove_tree
from utsuwa.instances.context import load
from utsuwa.instances.lifecycle import stop
from utsuwa.instances.model import Loaded, Running
from utsuwa.instances.running_state import leave, save, saved
from utsuwa.migration import images
from utsuwa.migration.channel import ControlChannel, Stream, check_verdict, reporting
from utsuwa.migration.connecting import Remote
from utsuwa.migration.context import MigrationContext
from utsuwa.migration.instance_sending import Wanted, check, offer
from utsuwa.migration.messages import LIVE, Control, LiveTerms
from utsuwa.migration.progress import Progress
from utsuwa.migration.racing import all_of
from utsuwa.migration.sending import Sending, begin
from utsuwa.migration.undecided import Record, UndecidedMoves
from utsuwa.operations.operations import Operation, Ticket, forbid_cancellation

STAGE = "live_migrate_instance"
STOPPED_STALL_SECONDS = 30
"""Seconds for which a transfer may stand still while the instance is stopped for it."""
_DECISION_SECONDS = 60
"""Seconds to wait for the target's decision on the connection of the move, and as long on another one; after
that it is waited for in the background, while users can decide it."""


Decided = Callable[[Record, bool], Awaitable[None]]
"""What is done when it is known whether the instance runs on the target, if that is not known in time."""


async def check_live(ctx: MigrationContext, wanted: Wanted) -> None:
    """Raise what moving a running instance would raise now: InvalidRequest, Unavailable (CRIU, pool)."""
    container = stop.running(ctx.instances, wanted.ref)
    try:
        await save.check(ctx.instances, container)
    except Unavailable as error:
        raise Unavailable(f"{error.message}, or use --stateless") from error
    await check(ctx, wanted)
    for name, device in container.devices.items():
        if device.get("type") == "disk" and device.get("pool") and device.get("path") != "/":
            raise InvalidRequest(
                f"The custom volume of the device {name!r} does not move along with a running instance: "
                "detach it first, or use --stateless"
            )


async def send_live(
    ctx: MigrationContext,
    moves: UndecidedMoves,
    decided: Decided,
    wanted: Wanted,
    remote: Remote | None,
    operation: Operation,
) -> None:
    """Move a running instance to the other server; its lock is held meanwhile. It is stopped afterwards.

    Raises as `check_live` and `sending.send`, and NotSaved, OutOfSpace.
    """
    async with (
        ctx.connected_live(operation, remote) as (control, files, state),
        reporting(control) as report,
        ctx.instances.locks.hold("instance", wanted.ref),
    ):
        await check_live(ctx, wanted)
        container = stop.running(ctx.instances, wanted.ref)
        criu = await ctx.instances.criu.find()
        instance = await load(ctx.instances, wanted.ref)
        ticket = Ticket.new() if remote is None else None
        offered = await offer(ctx, wanted, instance, live=terms(wanted.ref.name, ticket))
        operation.set_progress(STAGE, f"{instance.name}: files")
        sending = await begin(control, files, offered, operation)
        record = _record(instance, remote, ticket, sending)
        leaving = _Leaving(
            ctx, moves, decided, instance, container, criu, sending, control, files, state, record, operation
        )
        try:
            await leaving.run()
        finally:
            report.wanted = not leaving.undecided
    await container.settled.wait()


def terms(name: str, ticket: Ticket | None) -> LiveTerms:
    """Return the terms of a move; with a ticket, those of the side that is connected to."""
    if ticket is None:
        return LiveTerms(name=name)
    return LiveTerms(name=name, operation=ticket.id, secret=ticket.secret)


def _record(instance: Loaded, remote: Remote | None, ticket: Ticket | None, sending: Sending) -> Record:
    """Return the record of the move. Raises InvalidRequest if the target does not take the running state."""
    answer = sending.answer
    theirs = answer.own.live if answer.own is not None else None
    if answer.criu != LIVE or theirs is None:
        raise InvalidRequest("The other server does not take over running instances: use --stateless")
    return record_of("source", instance, remote, ticket, theirs)


def record_of(
    side: str, instance: Loaded, remote: Remote | None, ticket: Ticket | None, theirs: LiveTerms
) -> Record:
    """Return the record of a move for this side. Raises InvalidRequest if no side connects to the other."""
    if remote is None:
        if ticket is None or theirs.operation:
            raise InvalidRequest(
                "A running instance can only be moved if one server connects to the other: "
                "use --mode pull or push, or --stateless"
            )
        url, certificate, known = "", "", ticket
    else:
        if not theirs.operation or not theirs.secret:
            raise InvalidRequest("The other server does not say how to ask what has become of the move")
        known = Ticket(theirs.operation, theirs.secret)
        there = Remote.of(
            str(remote.url.with_path(f"/1.0/operations/{known.id}")),
            {"control": known.secret, "fs": known.secret},
            remote.certificate,
        )
        url, certificate = str(there.url), remote.certificate
    return Record(
        side="source" if side == "source" else "target",
        project=instance.project,
        name=instance.name,
        row_id=instance.row.id,
        operation=known.id,
        secret=known.secret,
        url=url,
        certificate=certificate,
    )


@dataclass
class _Leaving:
    """One move after the headers were exchanged."""

    ctx: MigrationContext
    moves: UndecidedMoves
    decided: Decided
    instance: Loaded
    container: Running
    criu: Criu
    sending: Sending
    control: ControlChannel
    files: Stream
    state: Stream
    record: Record
    operation: Operation
    _pass: asyncio.Task[None] = field(init=False)
    """The last pass of the files, which looks at them when `_frozen` is set."""
    _frozen: asyncio.Event = field(init=False)
    _told: asyncio.Future[bool] = field(init=False)
    """Whether the instance runs on the target, as soon as that has said so on any connection."""
    _acting: asyncio.Task[None] | None = None
    """What is done when that is known."""
    _left: bool = False
    """Whether the decision is waited for in the background, where the instance's lock is not held."""
    _refused: bool = False
    """Whether the target has said, on this connection, that the instance does not run there."""
    undecided: bool = False
    """Whether the target decides: what happens to this connection means nothing then, and that must not be
    told that the instance goes on here."""

    async def run(self) -> None:
        self._told = asyncio.get_running_loop().create_future()
        verdict = asyncio.create_task(self.control.receive(Control))
        try:
            await all_of(self._send(verdict), watched_by=self._watch(verdict))
        finally:
            if self._refused:  # the container runs on, so that it does not wait for this as well
                await finish(self.moves.confirm(self.record, self.control, self._act, runs=False))
            verdict.cancel()
            await asyncio.wait([verdict])

    async def _watch(self, verdict: asyncio.Task[Control]) -> None:
        try:
            check_verdict(await asyncio.shield(verdict))
        except UtsuwaError:
            if not self.undecided:  # then it is judged there
                raise

    def _phase(self, text: str) -> None:
        self.operation.set_progress(STAGE, f"{self.instance.name}: {text}")

    async def _send(self, verdict: asyncio.Task[Control]) -> None:
        await self.sending.describe()
        await self.sending.snapshots()
        await self.sending.tree(changing=True)
        sender = images.Sender(self.state, Progress(self.operation, f"{self.instance.name}: memory").add)
        try:
            await self._rounds(sender)
            await self._stop(sender, verdict)
        finally:
            await finish(in_thread(sender.close))

    async def _stop(self, sender: images.Sender, verdict: asyncio.Task[Control]) -> None:
        """Freeze the container, and have the target go on with it."""
        self._phase("stopped, memory and the last files")
        last = partial(self._last, sender, verdict)
        self._prepare_pass()
        try:
            await save.save(
                self.ctx.instances,
                self.instance,
                self.container,
                self.criu,
                last,
                ends=True,
                held=self._begin_pass,
            )
        finally:
            self._pass.cancel()
            await asyncio.wait([self._pass])

    def _prepare_pass(self) -> None:
        """Start what will send the files of the frozen container, at the same time as its state is saved."""
        self._frozen = asyncio.Event()
        self._pass = asyncio.create_task(self.sending.tree(changing=True, gate=self._frozen))

    async def _begin_pass(self) -> None:
        if self._frozen.is_set():  # the state was not saved, and the container ran on
            await self._pass
            await self.sending.follows(another=True)
            self._prepare_pass()
        self.files.hurry(STOPPED_STALL_SECONDS)
        self.state.hurry(STOPPED_STALL_SECONDS)
        self._frozen.set()

    async def _end_pass(self) -> None:
        await self._pass
        await all_of(self.sending.follows(another=False), watched_by=self.files.watch())

    async def _rounds(self, sender: images.Sender) -> None:
        """Send the memory while the instance runs on, until enough of it stays the same."""
        config = self.container.config
        if not parse_bool(config.get("migration.incremental.memory", "")):
            return
        goal = int(config.get("migration.incremental.memory.goal") or 70)
        folder = self.ctx.storage.volumes.folder(self.instance.pool, self.instance.ref.volume) / saved.ROUND
        for number in range(1, int(config.get("migration.incremental.memory.iterations") or 10) + 1):
            self._phase(f"memory, round {number}")
            try:
                await save.save(
                    self.ctx.instances,
                    self.instance,
                    self.container,
                    self.criu,
                    lambda fresh: asyncio.to_thread(saved.keep_round, fresh, folder),
                )
                share = await sender.send(folder, last=False)
            finally:
                await finish(asyncio.to_thread(remove_tree, folder))
            faults.point("memory round sent")
            if number > 1 and share.percent >= goal:
                return

    async def _last(
        self,
        sender: images.Sender,
        verdict: asyncio.Task[Control],
        fresh: Path,
    ) -> None:
        """Send what a frozen container has, and let the target go on with it."""
        await all_of(self._end_pass(), sender.send(fresh, last=True))
        faults.point("running state sent")
        if verdict.done():
            check_verdict(await verdict)
            raise InvalidRequest("The other server claims to run the instance, which it was not told to")
        await finish(self._hand_over(verdict))

    async def _hand_over(self, verdict: asyncio.Task[Control]) -> None:
        """Allow the target to run the instance, and do what follows from its decision."""
        forbid_cancellation()
        self.undecided = True
        await asyncio.to_thread(self.moves.store, self.record)
        await leave.begin(self.ctx.instances, self.container, self.record.operation)
        faults.point("move is undecided")
        self._phase("starting on the other server")
        with contextlib.suppress(InvalidRequest, Unavailable, TimeoutError):
            async with asyncio.timeout(_DECISION_SECONDS):
                await self.state.end()
                await asyncio.shield(verdict)
        said = _understood(verdict)
        if said is None:  # whatever else was received, it may run there
            await self._ask(verdict)
            return
        await self._act(bool(said.success))
        self._refused = not said.success
        check_verdict(said)
        await self.moves.confirm(self.record, self.control, self._act, runs=True)

    async def _ask(self, verdict: asyncio.Task[Control]) -> None:
        """Learn the decision on another connection, or late on the first one, and act on it.

        It is confirmed on the other one: the target tells it there, unless it was confirmed before. If there
        is none in time, the rest of the move is left to the background. Raises Unavailable, or InvalidRequest
        with the target's reason, if the instance does not run there.
        """
        self._phase("waiting for the other server, to learn whether it runs there")
        self.moves.in_background(self.moves.ask(self.record, self._act), self.record.name)
        first: list[asyncio.Future[Any]] = [self._told, verdict]
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_DECISION_SECONDS):
                await asyncio.wait(first, return_when=asyncio.FIRST_COMPLETED)
                if _understood(verdict) is None:
                    await asyncio.wait([self._told])
        if (said := _understood(verdict)) is not None:
            await self._act(bool(said.success))
            check_verdict(said)
        elif not self._told.done():
            self._left = self.container.frozen = True  # frozen for users, who can decide it now
            raise Unavailable(
                f"The other server does not say whether {self.instance.name!r} runs there: it stays frozen "
                "here until that is known. If it does not run there, have it go on here with "
                f"`utsuwa start {self.instance.name}`; otherwise delete it here"
            )
        else:
            await self._act(self._told.result())
            if not self._told.result():
                raise Unavailable("The connection to the other server was lost")

    async def _act(self, runs: bool) -> None:  # noqa: FBT001 - the type of `undecided.Act`
        """Do what follows from the decision, once: it may be told again, and on two connections."""
        if self._left:
            await self.decided(self.record, runs)
            return
        if self._acting is None:
            self._told.set_result(runs)
            self._acting = asyncio.create_task(self._decided(runs=runs))
        await asyncio.shield(self._acting)

    async def _decided(self, *, runs: bool) -> None:
        if runs:
            faults.point("moved container is told")
            await leave.go(self.ctx.instances, self.instance, self.container)
        else:
            await leave.stay(self.ctx.instances, self.container)


def _understood(verdict: asyncio.Task[Control]) -> Control | None:
    """Return the verdict, if it was received and can be understood."""
    if not verdict.done() or verdict.cancelled() or verdict.exception() is not None:
        return None
    return verdict.result()

"""Moves of running instances with a planned downtime: this server stops the instance, the target starts it.

The files are sent twice while it runs; the second time tells how long the files will take in the downtime.
When the client has agreed to that, nothing depends on it any more. The instance is stopped, and what has
changed is sent. The target confirms that it has everything; this server records that it will not start the
instance by itself; the target is told to start it, and confirms that it runs. Until it is told, any failure
has this server start the instance again. Afterwards, only the target's word that it has failed does: so it
never runs twice.
"""

from __future__ import annotations

import asyncio
import contextlib
import time

import msgspec

from utsuwa.core import faults
from utsuwa.core.errors import Cancelled, InvalidRequest, Unavailable, UtsuwaError
from utsuwa.instances.context import load
from utsuwa.instances.lifecycle import delete, restart, shutdown, stop
from utsuwa.instances.manager import InstanceManager
from utsuwa.instances.model import Loaded, Running
from utsuwa.migration.channel import ControlChannel, Stream, reporting
from utsuwa.migration.connecting import Remote
from utsuwa.migration.context import MigrationContext
from utsuwa.migration.instance_sending import Wanted, check, offer, snapshots_of
from utsuwa.migration.messages import Control
from utsuwa.migration.racing import all_of
from utsuwa.migration.sending import Sending, begin
from utsuwa.operations.operations import Operation
from utsuwa.operations.websocket import WebSocket

CLIENT = "downtime"
"""The websocket on which the client is told the expected downtime, and agrees to it."""
GO = "go"
_ANSWER_SECONDS = 300
"""Seconds within which the client has to agree; the target waits meanwhile."""
_HURRY_SECONDS = 120
"""Seconds for which the transfer, or the target, may stand still while the instance is stopped."""


async def check_handover(ctx: MigrationContext, wanted: Wanted) -> Running:
    """Raise what prevents a handover: as `instance_sending.check`, InvalidRequest, Forbidden."""
    await check(ctx, wanted)
    container = stop.running(ctx.instances, wanted.ref)
    stop.check_thawed(container)
    delete.refuse_protected(await load(ctx.instances, wanted.ref))
    return container


async def hand_over(
    ctx: MigrationContext,
    instances: InstanceManager,
    wanted: Wanted,
    remote: Remote | None,
    operation: Operation,
) -> None:
    """Move a running instance to the other server, and return once it runs there and is deleted here.

    Raises as `check_handover` and `sending.send`; Cancelled without the client's consent, InDoubt.
    """
    async with ctx.connected(operation, remote) as (control, files), reporting(control):
        client = await operation.websocket(CLIENT)
        async with ctx.instances.locks.hold("instance", wanted.ref):
            container = await check_handover(ctx, wanted)
            before = await load(ctx.instances, wanted.ref)
            sending = await begin(control, files, await offer(ctx, wanted, before), operation)
            if sending.answer.own is None or not sending.answer.own.handover:
                raise InvalidRequest(
                    "The other server cannot start the instance in place of this one: copy it with "
                    "--stateless, stop it, and copy it again with --refresh"
                )
            snapshots = [row.id for row in await snapshots_of(ctx, wanted)]
            limit = shutdown.clean_stop_seconds(container)
            consent = asyncio.Event()
            sync = _sync(sending, client, consent, operation, limit)
            await all_of(sync, _listen(client, consent), watched_by=control.verdict())
        handover = _Handover(ctx, wanted, before, snapshots, control, files, sending)
        began = time.monotonic()
        await instances.hand_over(wanted.ref, seconds=limit, meanwhile=handover.run)
        operation.update_metadata({"downtime": round(handover.ended - began, 1)})


async def _sync(
    sending: Sending, client: WebSocket, consent: asyncio.Event, operation: Operation, limit: int
) -> None:
    """Send everything while the instance runs, and wait for the client's consent to stop it."""
    await sending.describe()
    await sending.snapshots()
    await sending.tree(changing=True)
    began = time.monotonic()
    await sending.tree(changing=True)
    expected = {"files": round(time.monotonic() - began, 1), "stop_limit": limit}
    operation.update_metadata({"expected_downtime": expected})
    with contextlib.suppress(ConnectionError, RuntimeError):  # it may have agreed before it left
        await client.send_str(msgspec.json.encode(expected).decode())
    try:
        async with asyncio.timeout(_ANSWER_SECONDS):
            await consent.wait()
    except TimeoutError:
        raise Cancelled(f"The downtime was not agreed to within {_ANSWER_SECONDS} seconds") from None


async def _listen(client: WebSocket, consent: asyncio.Event) -> None:
    """Wait for the client's consent, which may come at any time. Raises Cancelled if it does not agree."""
    if await client.read() != GO:
        raise Cancelled("The move was given up before the instance was stopped: it runs on")
    consent.set()


class _Handover:
    """What is done while the instance is stopped."""

    def __init__(
        self,
        ctx: MigrationContext,
        wanted: Wanted,
        before: Loaded,
        snapshots: list[int],
        control: ControlChannel,
        files: Stream,
        sending: Sending,
    ) -> None:
        self._ctx, self._wanted, self._before, self._snapshots = ctx, wanted, before, snapshots
        self._control, self._files, self._sending = control, files, sending
        self.ended = 0.0
        """When the instance ran on the other server."""

    async def run(self) -> None:
        """Raises InDoubt if it is unknown whether the other server runs the instance."""
        faults.point("stopped for handover")
        control, ctx, ref = self._control, self._ctx.instances, self._wanted.ref
        async with ctx.locks.hold("instance", ref):
            await self._check_unchanged()
            self._files.hurry(_HURRY_SECONDS)
            await self._send_changes()
            await restart.record_moved(ctx, self._before.row.id)
        faults.point("handed over")
        try:
            await control.send(Control(success=True, message=""))
            async with asyncio.timeout(_HURRY_SECONDS):
                verdict = await control.receive(Control)
        except (UtsuwaError, TimeoutError) as error:
            raise restart.InDoubt(
                f"The other server was told to start {ref.name!r}, and has not said whether it runs. If it "
                f"does not run there, start it here with `utsuwa start {ref.name}`; otherwise delete it here"
            ) from error
        if not verdict.success:
            raise InvalidRequest(f"The other server failed: {(verdict.message or 'no reason')[:500]}")
        self.ended = time.monotonic()

    async def _send_changes(self) -> None:
        """Send what has changed, and wait until the target has it."""
        received = asyncio.Event()

        async def verdict() -> None:
            await self._control.verdict()
            received.set()

        async def changes() -> None:
            await self._sending.tree()
            try:
                async with asyncio.timeout(_HURRY_SECONDS):
                    await received.wait()
            except TimeoutError:
                raise Unavailable("The other server does not confirm that it has everything") from None

        await all_of(changes(), watched_by=verdict())

    async def _check_unchanged(self) -> None:
        """Raise InvalidRequest if the instance is not what was sent any more."""
        ctx, ref = self._ctx.instances, self._wanted.ref
        now = await load(ctx, ref)
        snapshots = [row.id for row in await snapshots_of(self._ctx, self._wanted)]
        same = now.row.id == self._before.row.id and snapshots == self._snapshots
        if not same or _lasting(now) != _lasting(self._before) or ctx.runtime.get(ref) is not None:
            raise InvalidRequest(f"The instance {ref.name!r} was changed while it was being moved: try again")


def _lasting(instance: Loaded) -> object:
    """Return what an instance is, without what starts and stops change."""
    data = instance.data
    config = {key: value for key, value in data.config.items() if not key.startswith("volatile.")}
    return config, data.devices, data.profiles, data.ephemeral, data.description

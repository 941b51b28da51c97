"""Stops of containers that are to run again: here, or on another server that takes the instance over."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

from utsuwa.core.errors import Conflict, InvalidRequest
from utsuwa.core.refs import InstanceRef
from utsuwa.instances.context import Context
from utsuwa.instances.lifecycle import end, start, stop
from utsuwa.instances.model import MOVED, POWER, PendingRestart, Running
from utsuwa.operations import operations


class InDoubt(Conflict):
    """Another server was told to start an instance, and did not say whether it has."""

    key = "in-doubt"


@contextlib.asynccontextmanager
async def stopped(
    ctx: Context,
    ref: InstanceRef,
    *,
    force: bool,
    seconds: float,
    reboot: bool,
    keeps_mounts: bool = False,
) -> AsyncIterator[tuple[Running, PendingRestart]]:
    """Stop a container for the block, which has it run again. Raises InvalidRequest, NotStoppedInTime.

    If it does not stop, or the client cancels the operation before it has stopped, it keeps running
    unchanged. With `keeps_mounts`, its files stay mounted for the start. If the daemon ends during the block,
    its next start starts the container.
    """
    stop.running(ctx, ref)
    await start.check_restart(ctx, ref)
    running = stop.running(ctx, ref)
    if running.forced:
        raise InvalidRequest(f"The instance {ref.name!r} is being stopped: start it afterwards")
    ctx.runtime.cancel_restarts(running.ref)  # this restart replaces an earlier one
    with ctx.runtime.expect_restart(running.ref) as restart:
        restart.keeps_mounts = keeps_mounts
        running.pending_restart = restart
        try:
            await end.record_boot_id(ctx, running, None)
            await stop.stop(ctx, ref, force=force, seconds=seconds, reboot=reboot)
        except BaseException as error:
            if isinstance(error, Exception) or operations.cancelled_by_client():
                await end.restart_failed(ctx, running, restart)
            raise
        operations.forbid_cancellation()
        yield running, restart


async def record_moved(ctx: Context, row_id: int) -> None:
    """Record that another server is told to start an instance: from now on, this one does not by itself."""
    await ctx.patch_config(row_id, {POWER: MOVED})

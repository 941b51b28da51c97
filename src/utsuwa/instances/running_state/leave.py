"""Containers whose running state has been sent to another server, where they may go on.

Until the other server says whether a container runs there, nobody knows whether it does: its processes stay
frozen here, also when the daemon is started again. If they are lost with the power of the host, the instance
is not started before that.
"""

from __future__ import annotations

from pathlib import Path

from utsuwa.core import faults
from utsuwa.core.config_keys import parse_bool
from utsuwa.core.errors import NotFound, UtsuwaError
from utsuwa.core.refs import InstanceRef
from utsuwa.core.tasks import finish
from utsuwa.core.threads import in_thread
from utsuwa.host.files.atomic import replace_file
from utsuwa.instances.context import Context, load
from utsuwa.instances.lifecycle import freeze
from utsuwa.instances.model import BOOT_ID, MOVED, POWER, Loaded, Running
from utsuwa.instances.running_state.stop import kill_frozen


async def begin(ctx: Context, container: Running, move: str) -> None:
    """Have a frozen container stay frozen if the daemon dies; `move` is the id of its move.

    If its processes are lost, that tells the daemon not to start it by itself.
    """
    await in_thread(replace_file, ctx.runtime_paths(container).undecided, move, sync=True)


async def stay(ctx: Context, container: Loaded | Running) -> None:
    """It is decided that a container does not run elsewhere; the caller thaws it."""
    await in_thread(ctx.runtime_paths(container).undecided.unlink, missing_ok=True)


async def go(ctx: Context, instance: Loaded, container: Running) -> None:
    """Stop a frozen container that runs elsewhere now; it is not started by itself again."""
    container.moved = True
    await ctx.patch_config(instance.row.id, {POWER: MOVED})
    faults.point("moved container recorded")
    await finish(kill_frozen(ctx, instance, container))


async def decide(ctx: Context, ref: InstanceRef, row_id: int, move: str, *, runs: bool) -> bool:
    """Do what follows from the decision on a move, unless that was done, or a user has decided it, meanwhile.

    The container may be frozen for a later move then, on which this decision says nothing. Returns whether
    the caller is to start the instance, whose processes are gone.
    """
    async with ctx.locks.hold("instance", ref):
        container = ctx.runtime.get(ref)
        instance = await _waiting(ctx, ref, row_id, move)
        if instance is None:
            return False
        if container is None:
            return await _decide_lost(ctx, instance, runs=runs)
        if runs:
            await go(ctx, instance, container)
    if runs:
        await container.settled.wait()
        return False
    try:
        await freeze.unfreeze(ctx, ref)
    except UtsuwaError:
        if not container.init.ended:
            raise
        await container.settled.wait()
        return await decide(ctx, ref, row_id, move, runs=runs)
    return False


async def _decide_lost(ctx: Context, instance: Loaded, *, runs: bool) -> bool:
    """As `decide`, for an instance of which no processes are known here."""
    if runs:  # if its monitor did not respond to this daemon, the next start ends its processes
        await ctx.patch_config(instance.row.id, {POWER: MOVED})
        return False
    again = False
    if instance.data.config.get(POWER) == MOVED:
        # Whether the caller's start succeeds or not, it is again an instance that was running here.
        again = parse_bool(instance.expanded.config.get("boot.autostart") or "true")
        await ctx.patch_config(instance.row.id, {POWER: "RUNNING" if again else "STOPPED", BOOT_ID: None})
    await stay(ctx, instance)
    return again


async def _waiting(ctx: Context, ref: InstanceRef, row_id: int, move: str) -> Loaded | None:
    """Return the instance if it waits for the decision on a move."""
    try:
        instance = await load(ctx, ref)
    except NotFound:
        return None
    if instance.row.id != row_id or await in_thread(_move_of, ctx.runtime_paths(instance).undecided) != move:
        return None
    return instance


def _move_of(undecided: Path) -> str:
    """Return the id of the move for which a container is frozen; empty if there is none."""
    try:
        return undecided.read_text()
    except FileNotFoundError:
        return ""

"""Containers whose running state has been sent to another server, where they may go on.

Until the other server says whether a container runs there, nobody knows whether it does: its processes stay
frozen here, also when the daemon is started again. If they are lost with the power of the host, the instance
is not started before that.
"""

from __future__ import annotations

from pathlib import Path

from utsuwa.core import faults
from utsuwa.core.config_keys import parse_bool
from utsuwa.core.errors import NotFound
from utsuwa.core.refs import InstanceRef
from utsuwa.core.tasks import finish
from utsuwa.core.threads import in_thread
from utsuwa.host import lxc
from utsuwa.host.files.atomic import replace_file
from utsuwa.instances.context import Context, load
from utsuwa.instances.lifecycle import freeze, recover
from utsuwa.instances.model import MOVED, POWER, Loaded, Running
from utsuwa.instances.running_state.stop import kill_frozen


async def begin(ctx: Context, container: Running, move: str) -> None:
    """Have a frozen container stay frozen if the daemon dies; `move` is the id of its move.

    If the host loses its power, that tells the next start not to start it (`keep_stopped`).
    """
    await in_thread(replace_file, ctx.runtime_paths(container).undecided, move, sync=True)


async def stay(ctx: Context, container: Running) -> None:
    """It is decided that a container does not run elsewhere; the caller thaws it."""
    await in_thread(ctx.runtime_paths(container).undecided.unlink, missing_ok=True)


async def go(ctx: Context, instance: Loaded, container: Running) -> None:
    """Stop a frozen container that runs elsewhere now; it is not started by itself again."""
    container.moved = True
    await ctx.patch_config(instance.row.id, {POWER: MOVED})
    faults.point("moved container recorded")
    await finish(kill_frozen(ctx, instance, container))


async def keep_stopped(ctx: Context, ref: InstanceRef, row_id: int, move: str) -> None:
    """Have an instance not be started by itself if its frozen processes are gone, as after a loss of power.

    It may run on the other server. Called before instances are recovered, while the move is undecided.
    """
    instance = await _waiting(ctx, ref, row_id, move)
    if instance is None:
        return
    busy = ref.storage_name in await in_thread(lxc.active, ctx.paths.containers)
    if await recover.find_init(ctx, instance, busy=busy) is None:
        await ctx.patch_config(row_id, {POWER: MOVED})


async def decide(ctx: Context, ref: InstanceRef, row_id: int, move: str, *, runs: bool) -> bool:
    """Do what follows from the decision on a move, unless that was done, or a user has decided it, meanwhile.

    The container may be frozen for a later move then, on which this decision says nothing. Returns whether
    the caller is to start the instance, whose processes are gone.
    """
    container = ctx.runtime.get(ref)
    if container is None:
        waiting = await _waiting(ctx, ref, row_id, move)
        if runs or waiting is None or waiting.data.config.get(POWER) != MOVED:
            return False
        return parse_bool(waiting.expanded.config.get("boot.autostart") or "true")
    async with ctx.locks.hold("instance", ref):
        instance = await _waiting(ctx, ref, row_id, move)
        if instance is None:
            return False
        if runs:
            await go(ctx, instance, container)
    if runs:
        await container.settled.wait()
    else:
        await freeze.unfreeze(ctx, ref)
    return False


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

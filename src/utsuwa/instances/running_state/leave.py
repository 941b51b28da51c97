"""Containers whose running state has been sent to another server, where they may go on.

Until the other server says whether a container runs there, nobody knows whether it does: its processes stay
frozen here, also when the daemon is started again.
"""

from __future__ import annotations

from pathlib import Path

from utsuwa.core import faults
from utsuwa.core.refs import InstanceRef
from utsuwa.core.tasks import finish
from utsuwa.core.threads import in_thread
from utsuwa.host.files.atomic import replace_file
from utsuwa.instances.context import Context, load
from utsuwa.instances.lifecycle import freeze
from utsuwa.instances.model import MOVED, POWER, Loaded, Running
from utsuwa.instances.running_state.stop import kill_frozen


async def begin(ctx: Context, container: Running, move: str) -> None:
    """Have a frozen container stay frozen if the daemon dies; `move` is the id of its move."""
    await in_thread(replace_file, ctx.runtime_paths(container).undecided, move)


async def stay(ctx: Context, container: Running) -> None:
    """It is decided that a container does not run elsewhere; the caller thaws it."""
    await in_thread(ctx.runtime_paths(container).undecided.unlink, missing_ok=True)


async def go(ctx: Context, instance: Loaded, container: Running) -> None:
    """Stop a frozen container that runs elsewhere now; it is not started by itself again."""
    container.moved = True
    await ctx.patch_config(instance.row.id, {POWER: MOVED})
    faults.point("moved container recorded")
    await finish(kill_frozen(ctx, instance, container))


async def decide(ctx: Context, ref: InstanceRef, row_id: int, move: str, *, runs: bool) -> None:
    """Do what follows from the decision on a move, unless that was done, or a user has decided it, meanwhile.

    The container may be frozen for a later move then, on which this decision says nothing.
    """
    container = ctx.runtime.get(ref)
    if container is None or container.row_id != row_id:
        return
    async with ctx.locks.hold("instance", ref):
        if await in_thread(_move_of, ctx.runtime_paths(container).undecided) != move:
            return
        instance = await load(ctx, ref)
        if runs:
            await go(ctx, instance, container)
    if runs:
        await container.settled.wait()
    else:
        await freeze.unfreeze(ctx, ref)


def _move_of(undecided: Path) -> str:
    """Return the id of the move for which a container is frozen; empty if there is none."""
    try:
        return undecided.read_text()
    except FileNotFoundError:
        return ""

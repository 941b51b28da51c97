"""The saved running state that an instance itself has, as distinct from those of its snapshots."""

from __future__ import annotations

import asyncio
import logging

from utsuwa.core.errors import InvalidRequest, UtsuwaError
from utsuwa.db import instances as instance_rows
from utsuwa.host.checkpoint import packets, program
from utsuwa.instances.context import Context
from utsuwa.instances.model import Loaded
from utsuwa.instances.running_state import saved
from utsuwa.instances.running_state.saved import Saved

log = logging.getLogger(__name__)


async def load(ctx: Context, instance: Loaded) -> Saved | None:
    """Return the saved state of a stopped instance, None if it has none.

    Raises InvalidRequest if it is damaged.
    """
    if not instance.data.stateful:
        return None
    folder = ctx.storage.volumes.folder(instance.pool, instance.ref.volume)
    what = f"the instance {instance.name!r}"
    try:
        return await asyncio.to_thread(saved.load, folder, what, own=True)
    except InvalidRequest as error:
        raise InvalidRequest(
            f"{error.message}: start it without the state with `utsuwa start --stateless {instance.name}`"
        ) from error


async def discard(ctx: Context, instance: Loaded) -> None:
    """Forget the saved state of an instance, if it has one, and remove its files."""
    if not instance.data.stateful:
        return
    await ctx.database.write(
        "instance has no saved state", instance_rows.set_stateful, instance.row.id, stateful=False
    )
    folder = ctx.storage.volumes.folder(instance.pool, instance.ref.volume)
    try:
        await asyncio.to_thread(saved.remove, folder)
    except UtsuwaError as error:  # the next start of the daemon tries again
        log.warning("the saved state of %r was not removed: %s", instance.name, error)


async def tidy(ctx: Context, instance: Loaded, pid: int | None) -> None:
    """Put right what an interrupted save or restore has left, when the daemon starts.

    `pid` is that of the container's init if it is running: then it has no saved state, and neither has one
    that has run since it was saved.
    """
    try:
        folder = ctx.storage.volumes.folder(instance.pool, instance.ref.volume)
    except UtsuwaError:  # its pool is not available
        return
    if await asyncio.to_thread(saved.exists, folder) or instance.data.stateful:
        obsolete = pid is not None or await asyncio.to_thread(saved.is_obsolete, folder)
        if obsolete:
            await discard(ctx, instance)
        await asyncio.to_thread(saved.tidy, folder, keep=instance.data.stateful and not obsolete)


async def end_interrupted(ctx: Context, instance: Loaded, pid: int) -> None:
    """Wait for a CRIU that was saving a running container when the daemon died, before that is thawed."""
    try:
        folder = ctx.storage.volumes.folder(instance.pool, instance.ref.volume)
    except UtsuwaError:  # its pool is not available
        return
    fresh = folder / saved.FRESH
    if await asyncio.to_thread(fresh.exists):
        log.info("ending the interrupted saving of the state of instance %r", instance.name)
        await program.wait_until_gone(fresh)
        await packets.let_through(pid)

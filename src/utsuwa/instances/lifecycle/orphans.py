"""Clean-up after a killed monitor of liblxc: processes, cgroups and a missing record."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from collections.abc import Collection, Sequence
from pathlib import Path

from utsuwa.core.errors import UtsuwaError
from utsuwa.core.threads import in_thread
from utsuwa.db import instances as instance_rows
from utsuwa.host.cgroups import tree as cgroups
from utsuwa.host.helper.cgroups import PAYLOAD_PREFIX
from utsuwa.host.processes import pidfds
from utsuwa.instances.context import Context
from utsuwa.instances.model import Loaded, Running

log = logging.getLogger(__name__)

INIT_GRACE = 1.0
"""Seconds that a container's init has to end after its monitor, when the kernel kills it."""
KILL_GRACE = 10.0
"""Seconds that killed processes have to exit."""
_ROUNDS = 5
"""How often to look for processes that were forked while others were killed."""
_PAUSES = (0.0, 0.01, 0.05, 0.2, 1.0)


async def wait_for_end(running: Running) -> None:
    """Wait until a container's init has ended. If its monitor was killed, init is killed as well.

    liblxc lets the kernel do this, which does not affect a frozen init.
    """
    if running.monitor is None:
        await running.init.wait()
        return
    init = asyncio.ensure_future(running.init.wait())
    monitor = asyncio.ensure_future(running.monitor.wait())
    try:
        await asyncio.wait((init, monitor), return_when=asyncio.FIRST_COMPLETED)
        if not init.done():
            await asyncio.wait((init,), timeout=INIT_GRACE)
        if not init.done():
            log.warning("the monitor of instance %r has exited: killing its processes", running.name)
            await kill_container(running.ref.storage_name, running.init_pid)
            running.init.send_signal(signal.SIGKILL)
        await init
    finally:
        for task in (init, monitor):
            task.cancel()
        await asyncio.wait((init, monitor))


async def kill_container(storage_name: str, init_pid: int) -> None:
    """Kill all processes of a container, frozen or not, and wait for them to exit.

    Cgroups of another name are left alone: if its init has ended, another process may have the pid.
    """
    folders = set((await in_thread(cgroups.folders_of, init_pid)).values())
    await kill([folder for folder in folders if cgroups.is_payload_of(folder, storage_name)])


async def kill(folders: Collection[Path]) -> None:
    """Kill all processes in some cgroups, frozen or not, and wait for them to exit."""

    def begin() -> set[int]:
        found: set[int] = set()
        for folder in folders:
            found |= cgroups.processes(folder)
        for pid in found:
            pidfds.kill(pid)
        for folder in folders:
            cgroups.thaw(folder)
        return found

    pids = await in_thread(begin)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(KILL_GRACE):
            for pid in pids:
                await pidfds.wait(pid)


async def kill_left(ctx: Context, storage_name: str) -> None:
    """Kill what a failed start has left in the cgroups of a container, also what is forked meanwhile."""
    try:
        left = (await _unused(ctx, failed=storage_name)).get(storage_name, [])
    except UtsuwaError:  # the database is not available
        folders = await in_thread(cgroups.payloads, ctx.cgroup)
        left = [f for f in folders if f.name == PAYLOAD_PREFIX + storage_name]
    for _ in range(_ROUNDS):
        if not await in_thread(_have_processes, left):
            return
        await kill(left)


async def kill_orphans(ctx: Context, stopped: Sequence[Loaded]) -> None:
    """Kill processes of containers without a monitor, when the daemon starts."""
    unused = await _unused(ctx)
    for instance in stopped:
        left = unused.get(instance.ref.storage_name, [])
        if await in_thread(_have_processes, left):
            log.warning("instance %r has no monitor: killing its processes", instance.name)
            await kill(left)


async def _unused(ctx: Context, *, failed: str = "") -> dict[str, list[Path]]:
    """Return the cgroups of containers that are not known to run, by the storage names of their instances.

    Those of the instance `failed` are among them in any case. liblxc calls a second one of `web` like the
    first one of `web-1`: it belongs to that, if it exists.
    """
    folders = await in_thread(cgroups.payloads, ctx.cgroup)
    if not folders:
        return {}
    rows = await ctx.database.read("instances", instance_rows.get_here)
    names = {row.ref.storage_name for row in rows}
    known: set[Path] = set()
    for running in ctx.runtime.all():
        if running.ref.storage_name != failed:
            known.update((await in_thread(cgroups.folders_of, running.init_pid)).values())
    found: dict[str, list[Path]] = {}
    for folder in folders:
        if folder not in known and (name := cgroups.container_of(folder, names)) is not None:
            found.setdefault(name, []).append(folder)
    return found


def _have_processes(folders: list[Path]) -> bool:
    return any(cgroups.processes(folder) for folder in folders)


async def remove_cgroups(ctx: Context, storage_name: str) -> None:
    """Remove the cgroups of a container that has ended, if its monitor did not."""
    for pause in _PAUSES:
        await asyncio.sleep(pause)
        if await in_thread(cgroups.remove_unused, ctx.cgroup, container=storage_name):
            return
    log.warning("cannot remove the cgroups of %s: they still contain processes", storage_name)

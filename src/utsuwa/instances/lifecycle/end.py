"""The end of a container: detected by pidfds, cleaned up, and followed by a deletion or a restart."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Awaitable, Callable, Mapping
from contextlib import ExitStack
from enum import Enum
from pathlib import Path

from utsuwa.core.errors import NotFound, UtsuwaError
from utsuwa.host import lxc
from utsuwa.instances import identity
from utsuwa.instances.confinement import cpu_balance
from utsuwa.instances.confinement import policies as confinement
from utsuwa.instances.context import Context, load
from utsuwa.instances.lifecycle import device_steps, orphans
from utsuwa.instances.model import Comeback, Loaded, Running, RuntimePaths

log = logging.getLogger(__name__)

MONITOR_GRACE = 10.0
"""Seconds that liblxc's monitor gets to tidy up after the container's init has ended."""

STOP_GRACE = 10.0
"""Seconds that what follows an end gets to undo itself when the daemon stops."""

Reboot = Callable[[Loaded, Comeback], Awaitable[None]]
Delete = Callable[[Loaded], Awaitable[None]]


class Sequel(Enum):
    """What follows the end of a container."""

    STOPPED = "stopped"
    """Nothing: it ended by itself, was stopped or killed."""
    BACK = "back"
    """Nothing now: whoever stopped it starts it again, this daemon or its next start."""
    REBOOT = "reboot"
    DELETE = "delete"


def sequel(running: Running, target: str, *, ephemeral: bool) -> Sequel:
    """Judge by who stopped the container and by what the post-stop hook recorded."""
    if running.restarting or running.keep_power:
        return Sequel.BACK
    if target == "reboot" and not running.forced:
        return Sequel.REBOOT
    return Sequel.DELETE if ephemeral else Sequel.STOPPED


_NOTED: Mapping[Sequel, Mapping[str, str | None]] = {
    Sequel.STOPPED: {"volatile.last_state.power": "STOPPED", "volatile.last_state.boot_id": None},
    Sequel.BACK: {"volatile.last_state.boot_id": None},
    # As if it had not been seen: a daemon that is killed before the sequel is complete finds at its next
    # start that the container has ended meanwhile, and carries it out then.
    Sequel.REBOOT: {},
    Sequel.DELETE: {},
}


class Watch:
    """Waits for containers to end. `reboot` and `delete` are the verbs that may follow."""

    def __init__(self, ctx: Context, reboot: Reboot, delete: Delete) -> None:
        self._ctx = ctx
        self._reboot = reboot
        self._delete = delete
        self._tasks: set[asyncio.Task[None]] = set()

    def begin(self, running: Running) -> None:
        """Watch a container that has just been entered into the runtime table."""
        task = asyncio.create_task(self._follow(running), name=f"watch {running.name}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(lambda _task: running.release())

    async def stop(self) -> None:
        """Stop watching: the daemon ends, the containers run on. What was just following an end is undone."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=STOP_GRACE)

    async def _follow(self, running: Running) -> None:
        comeback: Comeback | None = None
        with ExitStack() as stack:
            try:
                await orphans.wait_for_end(running)
                comeback = stack.enter_context(self._ctx.runtime.coming_back(running.key))
                instance, follows = await self._clean(running)
            except Exception:
                log.exception("cleaning up after instance %r failed", running.name)
                self._ctx.runtime.remove(running)
                instance, follows = None, Sequel.STOPPED
            running.ended.set()
            if follows is not Sequel.DELETE:
                running.settled.set()
            if instance is not None and comeback is not None:
                self._tell(follows, running)
                await self._try(self._carry_out(follows, instance, comeback))
        running.settled.set()

    async def _wait_for_monitor(self, running: Running) -> None:
        """The monitor runs the post-stop hook and takes its cgroups away; then it ends by itself."""
        if running.monitor is None:  # init had ended when it was looked for
            await lxc.wait_until_gone(running.storage_name, self._ctx.paths.containers)
            return
        try:
            await asyncio.wait_for(running.monitor.wait(), MONITOR_GRACE)
        except TimeoutError:
            log.warning("the monitor of instance %r did not end: killed", running.name)
            running.monitor.send_signal(signal.SIGKILL)

    async def _clean(self, running: Running) -> tuple[Loaded | None, Sequel]:
        """Take away what the container had on the host; gives the instance, None where it is gone.

        Init has ended, so nothing in the container uses its files any more: they are unmounted while
        liblxc's monitor still ends.
        """
        ctx = self._ctx
        async with ctx.locks.hold("instance", *running.key):
            try:
                instance = await load(ctx, *running.key)
            except NotFound:
                await self._wait_for_monitor(running)
                ctx.runtime.remove(running)
                return None, Sequel.STOPPED
            cleaned, _ = await asyncio.gather(
                clean_host(ctx, instance), self._wait_for_monitor(running), return_exceptions=True
            )
            if running.hastened is not None:
                await asyncio.wait([running.hastened])
            paths = ctx.runtime_paths(instance)
            if not read_small(paths.target):  # the monitor did not come to its end
                await orphans.remove_cgroups(ctx, running.storage_name)
            target = read_target(paths)
            follows = sequel(running, target, ephemeral=instance.row.ephemeral)
            running.noted_as_stopped = follows is not Sequel.BACK
            if isinstance(cleaned, UtsuwaError):  # its end is noted all the same; the next start tries again
                log.error("not all of instance %r is taken away: %s", running.name, cleaned)
            elif cleaned is not None:
                raise cleaned
            await clean_up(ctx, instance, running.devices, {**_NOTED[follows]})
            ctx.runtime.remove(running)
            return instance, follows

    def _tell(self, follows: Sequel, running: Running) -> None:
        """At once, so that nothing else is heard of the instance before."""
        if follows is not Sequel.REBOOT and (follows is not Sequel.BACK or running.comeback is None):
            self._ctx.lifecycle("stopped" if running.forced else "shutdown", *running.key)

    async def _carry_out(self, follows: Sequel, instance: Loaded, comeback: Comeback) -> None:
        await cpu_balance.try_to_rebalance(self._ctx)
        if follows is Sequel.DELETE:
            await self._delete(instance)
        elif follows is Sequel.REBOOT and not await self._try(self._reboot(instance, comeback)):
            await note_stopped(self._ctx, *instance.key)

    async def _try(self, follow: Awaitable[None]) -> bool:
        try:
            await follow
        except Exception:
            log.exception("what should follow the end of a container failed")
            return False
        return True


async def note_boot(ctx: Context, running: Running, boot_id: str | None) -> None:
    """None before a container is stopped to come back: the daemon's next start sees to it where this one
    cannot any more. The boot's id takes that back where the container has not ended.
    """
    await ctx.patch_config(running.row_id, {"volatile.last_state.boot_id": boot_id})


async def not_restarted(ctx: Context, running: Running, comeback: Comeback) -> None:
    """A restart has failed or was cancelled before its container had ended: what it noted is taken back."""
    if running.comeback is comeback:
        running.comeback = None
    async with ctx.locks.hold("instance", *running.key):
        if ctx.runtime.get(running.key) is running:
            if running.comeback is None:
                await note_boot(ctx, running, ctx.boot_id)
            return
    await note_stopped(ctx, *running.key)  # it ended after all, just then


async def note_stopped(ctx: Context, project: str, name: str) -> None:
    """A container that was to come back at once did not: it counts as stopped from now on."""
    async with ctx.locks.hold("instance", project, name):
        if ctx.runtime.get((project, name)) is not None:
            return
        try:
            instance = await load(ctx, project, name)
        except NotFound:
            return
        await ctx.patch_config(instance.row.id, _NOTED[Sequel.STOPPED])
    ctx.lifecycle("stopped", project, name)


async def clean_host(ctx: Context, instance: Loaded) -> None:
    """Unmount and unload what belongs to a container that has ended; safe to repeat."""
    await ctx.storage.volumes.unmount(instance.pool, instance.volume)
    await confinement.remove(ctx, instance)


async def clean_up(
    ctx: Context,
    instance: Loaded,
    devices: device_steps.Devices,
    changes: dict[str, str | None],
) -> None:
    """Stop the devices that the container had and store their volatile changes with `changes`."""
    idmap = identity.idmap_of(instance.row.config, "volatile.idmap.current")
    host = device_steps.host_of(ctx, instance, idmap)
    changes.update(await device_steps.stop_all(device_steps.with_devices(host, devices)))
    await ctx.patch_config(instance.row.id, changes)


def read_target(paths: RuntimePaths) -> str:
    """What the post-stop hook recorded: `stop`, `reboot`, or nothing."""
    return read_small(paths.target) or read_small(paths.last_target)


def read_small(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(64).decode("ascii", "replace").strip()
    except OSError:
        return ""

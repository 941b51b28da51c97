"""The end of a container: seen by pidfds, cleaned up once, then deleted, started again or left stopped."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path

from utsuwa.core.errors import NotFound
from utsuwa.host import pidfds
from utsuwa.instances import confinement, cpu_balance, device_steps, identity
from utsuwa.instances.context import Context, load
from utsuwa.instances.model import Loaded, Running, RuntimePaths

log = logging.getLogger(__name__)

MONITOR_GRACE = 10.0
"""Seconds that liblxc's monitor gets to tidy up after the container's init has ended."""

After = Callable[[Loaded], Awaitable[None]]
"""What follows an end: a start (reboot) or a deletion (ephemeral)."""


class Watch:
    """Waits for containers to end. `reboot` and `delete` are the verbs that may follow."""

    def __init__(self, ctx: Context, reboot: After, delete: After) -> None:
        self._ctx = ctx
        self._reboot = reboot
        self._delete = delete

    def begin(self, running: Running) -> None:
        """Watch a container that has just been entered into the runtime table."""
        running.watcher = asyncio.create_task(self._follow(running), name=f"watch {running.name}")

    def stop(self) -> None:
        """Stop watching: the daemon ends, the containers run on."""
        for running in self._ctx.runtime.all():
            if running.watcher is not None:
                running.watcher.cancel()

    async def _follow(self, running: Running) -> None:
        try:
            await pidfds.wait(running.init_pid)
            await self._wait_for_monitor(running)
            instance = await self._clean(running)
            await cpu_balance.rebalance(self._ctx)
        except Exception:
            log.exception("cleaning up after instance %r failed", running.name)
            self._ctx.runtime.remove(running)
            running.ended.set()
            return
        if instance is not None:
            await self._what_follows(running, instance)

    async def _wait_for_monitor(self, running: Running) -> None:
        """The monitor runs the post-stop hook and takes its cgroups away; then it ends by itself."""
        if running.monitor_pid is None:
            return
        try:
            await asyncio.wait_for(pidfds.wait(running.monitor_pid), MONITOR_GRACE)
        except TimeoutError:
            log.warning("the monitor of instance %r did not end: killed", running.name)
            pidfds.kill(running.monitor_pid)

    async def _clean(self, running: Running) -> Loaded | None:
        """Take away what the container had on the host; gives the instance, None where it is gone."""
        ctx = self._ctx
        async with ctx.locks.hold("instance", *running.key):
            try:
                instance = await load(ctx, *running.key)
            except NotFound:
                ctx.runtime.remove(running)
                running.ended.set()
                return None
            await clean_host(ctx, instance)
            changes: dict[str, str | None] = {}
            if not running.keep_power:
                changes["volatile.last_state.power"] = "STOPPED"
            changes["volatile.last_state.boot_id"] = None
            await clean_up(ctx, instance, running.devices, changes)
            ctx.runtime.remove(running)
            running.ended.set()
            return instance

    async def _what_follows(self, running: Running, instance: Loaded) -> None:
        rebooting = not running.forced and read_target(self._ctx.runtime_paths(instance)) == "reboot"
        if running.restarting:
            return
        if rebooting and not running.keep_power:
            await self._try(self._reboot, instance)
            return
        self._ctx.lifecycle("stopped" if running.forced else "shutdown", *running.key)
        if instance.row.ephemeral and not running.keep_power:
            await self._try(self._delete, instance)

    async def _try(self, follow: After, instance: Loaded) -> None:
        try:
            await follow(instance)
        except Exception:
            log.exception("what should follow the end of instance %r failed", instance.name)


async def clean_host(ctx: Context, instance: Loaded) -> None:
    """Unmount and unload what belongs to a container that has ended; safe to repeat."""
    await ctx.storage.unmount_instance(instance.pool, instance.storage_name)
    await confinement.remove(ctx, instance)


async def clean_up(
    ctx: Context,
    instance: Loaded,
    devices: device_steps.Devices,
    changes: dict[str, str | None],
) -> None:
    """Stop the devices that the container had and store their volatile changes with `changes`."""
    idmap = identity.idmap_of(instance.row.config, "volatile.idmap.current")
    host = device_steps.host_of(ctx.paths, instance, idmap)
    changes.update(await device_steps.stop_all(device_steps.with_devices(host, devices)))
    await ctx.patch_config(instance.row, changes)


def read_target(paths: RuntimePaths) -> str:
    """What the post-stop hook recorded: `stop`, `reboot`, or nothing."""
    return read_small(paths.target)


def read_small(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(64).decode("ascii", "replace").strip()
    except OSError:
        return ""

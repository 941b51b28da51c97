"""The end of a container: detected by pidfds, cleaned up, and followed by a deletion or a restart."""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import ExitStack
from enum import Enum
from pathlib import Path

from utsuwa.core.errors import NotFound, UtsuwaError
from utsuwa.core.refs import InstanceRef
from utsuwa.core.threads import in_thread
from utsuwa.core.warning_types import (
    CPUS_NOT_ASSIGNED,
    ENDS_TOO_OFTEN,
    IDS_LOST,
    LEFTOVERS,
    LIMITS_NOT_APPLIED,
)
from utsuwa.host import lxc
from utsuwa.instances import identity
from utsuwa.instances.confinement import cpu_balance
from utsuwa.instances.confinement import policies as confinement
from utsuwa.instances.context import Context, load
from utsuwa.instances.lifecycle import autorestart, device_host, device_steps, orphans
from utsuwa.instances.model import MOVED, POWER, READY, Loaded, PendingRestart, Running, RuntimePaths

log = logging.getLogger(__name__)

MONITOR_GRACE = 10.0
"""Seconds that liblxc's monitor has to clean up after the container's init has ended."""

STOP_GRACE = 10.0
"""Seconds that pending follow-ups have to be undone when the daemon stops."""

Reboot = Callable[[Loaded, PendingRestart], Awaitable[None]]
Delete = Callable[[Loaded], Awaitable[None]]


class FollowUp(Enum):
    """The action after the end of a container."""

    NONE = "none"
    """It ended by itself, or was stopped or killed."""
    RESTART = "restart"
    """The request that stopped it, or the next start of the daemon, starts it again."""
    REBOOT = "reboot"
    DELETE = "delete"


def follow_up(running: Running, target: str, *, ephemeral: bool, autorestart: bool = False) -> FollowUp:
    """Determine the follow-up from how the container was stopped and what the post-stop hook recorded.

    With `autorestart` it is started again if it has ended by itself.
    """
    if running.moved:
        return FollowUp.NONE
    if running.restarting or running.keep_power:
        return FollowUp.RESTART
    if (target == "reboot" or autorestart) and not running.forced:
        return FollowUp.REBOOT
    return FollowUp.DELETE if ephemeral else FollowUp.NONE


_RECORDED: Mapping[FollowUp, Mapping[str, str | None]] = {
    FollowUp.NONE: {
        "volatile.last_state.power": "STOPPED",
        "volatile.last_state.boot_id": None,
        READY: None,
    },
    FollowUp.RESTART: {"volatile.last_state.boot_id": None},
    # Nothing is recorded: if the daemon is killed before the follow-up is complete, its next start finds that
    # the container has ended meanwhile, and performs the follow-up then.
    FollowUp.REBOOT: {},
    FollowUp.DELETE: {},
}


class Watch:
    """Waits for containers to end. `reboot` and `delete` perform follow-ups."""

    def __init__(self, ctx: Context, reboot: Reboot, delete: Delete) -> None:
        self._ctx = ctx
        self._reboot = reboot
        self._delete = delete
        self._tasks: set[asyncio.Task[None]] = set()
        self._restarts = autorestart.RestartLimit()

    def begin(self, running: Running) -> None:
        """Watch a container that was just added to the runtime table."""
        task = asyncio.create_task(self._follow(running), name=f"watch {running.name}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(lambda _task: running.release())

    async def stop(self) -> None:
        """Stop watching when the daemon ends.

        The containers keep running; follow-ups in progress are undone.
        """
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=STOP_GRACE)

    async def _follow(self, running: Running) -> None:
        restart: PendingRestart | None = None
        with ExitStack() as stack:
            try:
                await orphans.wait_for_end(running)
                restart = stack.enter_context(self._ctx.runtime.expect_restart(running.ref))
                instance, follows = await self._clean(running)
            except Exception:
                log.exception("cleaning up after instance %r failed", running.name)
                self._ctx.runtime.remove(running)
                instance, follows = None, FollowUp.NONE
            running.ended.set()
            if follows is not FollowUp.DELETE:
                running.settled.set()
            if instance is not None and restart is not None:
                self._publish(follows, running)
                await self._run_logged(self._perform(follows, instance, restart))
        running.settled.set()

    async def _wait_for_monitor(self, running: Running) -> None:
        """Wait for the monitor, which runs the post-stop hook, removes its cgroups and exits."""
        if running.monitor is None:  # init had already ended when it was looked up
            await lxc.wait_until_gone(running.ref.storage_name, self._ctx.paths.containers)
            return
        try:
            await asyncio.wait_for(running.monitor.wait(), MONITOR_GRACE)
        except TimeoutError:
            log.warning("the monitor of instance %r did not exit and is killed", running.name)
            running.monitor.send_signal(signal.SIGKILL)

    async def _clean(self, running: Running) -> tuple[Loaded | None, FollowUp]:
        """Clean up the host after a container; return the instance, or None if it was deleted.

        As init has ended, nothing in the container uses its files any more: they are unmounted while liblxc's
        monitor is still exiting. For a restart they stay mounted, as unmounting waits until all that was
        changed is on disk; the start mounts them again if its id map is another one.
        """
        ctx = self._ctx
        async with ctx.locks.hold("instance", running.ref):
            try:
                instance = await load(ctx, running.ref)
            except NotFound:
                await self._wait_for_monitor(running)
                ctx.runtime.remove(running)
                return None, FollowUp.NONE
            kept = running.keeps_mounts
            cleaned, _ = await asyncio.gather(
                clean_host(ctx, instance, mounted=kept),
                self._wait_for_monitor(running),
                return_exceptions=True,
            )
            if running.early_cleanup is not None:
                await asyncio.wait([running.early_cleanup])
            paths = ctx.runtime_paths(instance)
            if not read_small(paths.target):  # the monitor did not complete
                await orphans.remove_cgroups(ctx, running.ref.storage_name)
            target = read_target(paths)
            if not running.forced and await in_thread(paths.undecided.exists):
                running.moved = True  # or may have, as long as neither the other server nor a user denies it
            again = (
                target != "reboot"
                and not running.moved
                and await self._restarts_itself(running, instance, paths)
            )
            follows = follow_up(running, target, ephemeral=instance.data.ephemeral, autorestart=again)
            running.recorded_as_stopped = follows is not FollowUp.RESTART
            if kept and running.recorded_as_stopped:  # the restart has been cancelled meanwhile
                (cleaned,) = await asyncio.gather(clean_host(ctx, instance), return_exceptions=True)
            if cleaned is not None and not isinstance(cleaned, UtsuwaError):
                raise cleaned
            _judge_end(ctx, running, cleaned)
            moved: Mapping[str, str | None] = {POWER: MOVED} if running.moved else {}
            await clean_up(ctx, instance, running.devices, {**_RECORDED[follows], **moved})
            ctx.runtime.remove(running)
            return instance, follows

    async def _restarts_itself(self, running: Running, instance: Loaded, paths: RuntimePaths) -> bool:
        """Whether `boot.autorestart` starts a container again; a warning is raised if it ends too often."""
        if running.forced or not await autorestart.wanted(instance, paths):
            return False
        allowed = self._restarts.allows(running.row_id, time.monotonic())
        log.warning("instance %r has ended unexpectedly", running.name, extra={"restarted": allowed})
        self._ctx.warnings.judge(
            ENDS_TOO_OFTEN,
            ""
            if allowed
            else f"instance {running.name!r} has ended unexpectedly more than {autorestart.MAX_RESTARTS} "
            f"times within {autorestart.PERIOD:.0f} s and is not restarted any more: look at its console "
            f"(`utsuwa console --show-log {running.name}`), and start it",
            running.subject,
        )
        return allowed

    def _publish(self, follows: FollowUp, running: Running) -> None:
        """Publish the end before anything else happens to the instance."""
        if follows is not FollowUp.REBOOT and (
            follows is not FollowUp.RESTART or running.pending_restart is None
        ):
            self._ctx.lifecycle("stopped" if running.forced else "shutdown", running.ref)

    async def _perform(self, follows: FollowUp, instance: Loaded, restart: PendingRestart) -> None:
        await cpu_balance.try_to_rebalance(self._ctx)
        if follows is FollowUp.DELETE:
            await self._delete(instance)
        elif follows is FollowUp.REBOOT and not await self._run_logged(self._reboot(instance, restart)):
            await record_stopped(self._ctx, instance.ref)

    async def _run_logged(self, follow: Awaitable[None]) -> bool:
        try:
            await follow
        except Exception:
            log.exception("the follow-up of the end of a container failed")
            return False
        return True


async def record_boot_id(ctx: Context, running: Running, boot_id: str | None) -> None:
    """Store the boot's id of a running container.

    It is None while the container is stopped for a restart, so that the next start of the daemon completes
    the restart if this one cannot; the id is stored again if the container did not stop.
    """
    await ctx.patch_config(running.row_id, {"volatile.last_state.boot_id": boot_id})


async def restart_failed(ctx: Context, running: Running, restart: PendingRestart) -> None:
    """Revert what a restart has recorded that failed or was cancelled before the container had ended."""
    if running.pending_restart is restart:
        running.pending_restart = None
    if running.moved:  # which its end has recorded
        return
    async with ctx.locks.hold("instance", running.ref):
        if ctx.runtime.get(running.ref) is running:
            if running.pending_restart is None:
                await record_boot_id(ctx, running, ctx.boot_id)
            return
    await record_stopped(ctx, running.ref)  # it has ended meanwhile


async def record_stopped(ctx: Context, ref: InstanceRef) -> None:
    """Record that a container which was to be restarted is stopped."""
    async with ctx.locks.hold("instance", ref):
        if ctx.runtime.get(ref) is not None:
            return
        try:
            instance = await load(ctx, ref)
        except NotFound:
            return
        await ctx.patch_config(instance.row.id, _RECORDED[FollowUp.NONE])
        await try_to_clean_host(ctx, instance)
    ctx.lifecycle("stopped", ref)


async def clean_host(ctx: Context, instance: Loaded, *, mounted: bool = False) -> None:
    """Unmount the volume, unless it is to stay `mounted`, and unload the confinement of a container that has
    ended. Idempotent.
    """
    await ctx.files.release(instance.ref)
    if not mounted:
        await ctx.storage.volumes.unmount(instance.pool, instance.ref.volume)
    await confinement.remove(ctx, instance)


async def try_to_clean_host(ctx: Context, instance: Loaded) -> None:
    """As `clean_host`; the next start of the instance tries again what fails."""
    try:
        await clean_host(ctx, instance)
    except UtsuwaError as error:  # such as an unavailable pool
        log.error("instance %r was not cleaned up completely: %s", instance.name, error)


async def clean_up(
    ctx: Context,
    instance: Loaded,
    devices: device_steps.Devices,
    changes: dict[str, str | None],
) -> None:
    """Stop the devices of a container that has ended; store their volatile changes and `changes`."""
    idmap = identity.current_idmap(instance)
    host = device_host.host_of(ctx, instance, idmap)
    changes.update(await device_steps.stop_all(device_host.with_devices(host, devices)))
    await ctx.patch_config(instance.row.id, changes)


def read_target(paths: RuntimePaths) -> str:
    """Return what the post-stop hook recorded: `stop`, `reboot`, or an empty string."""
    return read_small(paths.target) or read_small(paths.last_target)


def read_small(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(64).decode("ascii", "replace").strip()
    except OSError:
        return ""


def _judge_end(ctx: Context, running: Running, failure: UtsuwaError | None) -> None:
    """Resolve the warnings about a container that has ended, and raise one if it was not cleaned up.

    The next start of the instance tries to clean up again.
    """
    for kind in (LIMITS_NOT_APPLIED, CPUS_NOT_ASSIGNED, IDS_LOST):
        ctx.warnings.resolve(kind, running.subject)
    ctx.warnings.judge(
        LEFTOVERS,
        ""
        if failure is None
        else f"instance {running.name!r} was not cleaned up completely: {failure.message}",
        running.subject,
    )

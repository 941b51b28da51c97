"""Stopping: by asking the container's init, or by killing it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal

from utsuwa.core.config_keys import parse_bool
from utsuwa.core.errors import Conflict, HostError, InvalidRequest, NotFound, UtsuwaError
from utsuwa.core.refs import InstanceRef
from utsuwa.core.threads import in_thread
from utsuwa.host.cgroups import moves as cgroup_moves
from utsuwa.host.cgroups import tree as cgroups
from utsuwa.instances.context import Context, load
from utsuwa.instances.lifecycle import device_host, device_steps, signals
from utsuwa.instances.model import Running

log = logging.getLogger(__name__)

CLEAN_STOP_LIMIT = 600.0
"""Seconds that a clean stop waits if the request has no timeout, as in LXD."""
KILL_GRACE = 30.0
"""Seconds that a container has to end after SIGKILL."""
EARLY_CLEANUP_LIMIT = 0.02
"""Seconds that the removal of its interfaces can delay the killing of a container."""
STOP_SIGNAL_GRACE = 5.0
"""Seconds that a container has to end after `lxc.signal.stop`, if configured, before SIGKILL."""


class NotStoppedInTime(UtsuwaError):
    """The container did not stop within the timeout."""

    key = "not-stopped-in-time"
    status = 400


class Moved(Conflict):
    """The container went over to another server while a request waited for it."""

    key = "moved"

    def __init__(self, name: str) -> None:
        super().__init__(f"The instance {name!r} has moved to another server meanwhile")


def running(ctx: Context, ref: InstanceRef) -> Running:
    """Return the running container. Raises InvalidRequest if it is stopped."""
    found = ctx.runtime.get(ref)
    if found is None:
        raise InvalidRequest(f"The instance {ref.name!r} is already stopped")
    return found


async def stop(ctx: Context, ref: InstanceRef, *, force: bool, seconds: float, reboot: bool = False) -> None:
    """Stop a container and wait until it is cleaned up, and deleted if it is ephemeral.

    With `force` it is killed. Otherwise it has `seconds` to stop (CLEAN_STOP_LIMIT if not positive); after
    that, NotStoppedInTime is raised and it keeps running. With `reboot`, its reboot signal is preferred. If
    cancelled while waiting, nothing more is done to the container. Raises Moved if it has gone over to
    another server meanwhile.
    """
    container = running(ctx, ref)
    if force:
        await kill(ctx, container)
        return
    check_thawed(container)
    wanted = await signals.configured(ctx, container, *(("reboot", "halt") if reboot else ("halt",)))
    number = await signals.wait_for_handler(container, wanted)
    async with ctx.locks.hold("instance", ref):
        if ctx.runtime.get(ref) is container:
            check_thawed(container)
            if parse_bool(container.config.get("boot.autorestart", "")):
                marker = ctx.runtime_paths(container).stop_requested
                await in_thread(marker.touch)
            container.init.send_signal(number)
    try:
        await asyncio.wait_for(container.ended.wait(), seconds if seconds > 0 else CLEAN_STOP_LIMIT)
    except TimeoutError:
        raise NotStoppedInTime(
            f"The instance {ref.name!r} did not stop in time: look at its console "
            f"(`utsuwa console --show-log {ref.name}`), or stop it with `utsuwa stop --force {ref.name}`"
        ) from None
    await _settled(container)


async def _settled(container: Running) -> None:
    await container.settled.wait()
    if container.moved:
        raise Moved(container.name)


def check_thawed(container: Running) -> None:
    """Raise InvalidRequest if a container's processes are frozen, which cannot stop."""
    if container.frozen:
        raise InvalidRequest(
            f"The instance {container.name!r} is frozen: resume it with `utsuwa start {container.name}`, or "
            f"kill it with `utsuwa stop --force {container.name}`"
        )


async def kill(ctx: Context, container: Running) -> None:
    """Kill a container's init, and thereby all of its processes, and wait for the end.

    If `lxc.signal.stop` is configured, that signal is tried first. Raises Moved as `stop`.
    """
    container.forced = True
    if container.frozen:
        await ctx.helper.unfreeze(container.ref.storage_name, ctx.paths.containers)
        await in_thread(
            cgroups.thaw_all, container.init_pid
        )  # liblxc does not know of what `held` has frozen
        container.frozen = False
    try:
        number = await signals.configured(ctx, container, "stop")
    except HostError as error:
        log.warning("cannot read the stop signal of instance %r: %s", container.name, error)
        number = None
    if number not in (None, signal.SIGKILL):
        container.init.send_signal(number)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(container.ended.wait(), STOP_SIGNAL_GRACE)
    if not container.ended.is_set():
        await _kill_now(ctx, container)
    await _settled(container)


async def _kill_now(ctx: Context, container: Running) -> None:
    await _send_kill(ctx, container)
    async with cgroup_moves.kept_warm():  # not earlier: meanwhile, the kernel blocks killing by cgroup
        try:
            await asyncio.wait_for(container.ended.wait(), KILL_GRACE)
        except TimeoutError:
            raise NotStoppedInTime(
                f"The instance {container.name!r} was killed, but its processes do not exit: "
                "they may be blocked on a disk or a network file system"
            ) from None


async def _send_kill(ctx: Context, container: Running) -> None:
    cgroup = await in_thread(cgroup_moves.container_folder, container.init_pid, container.ref.storage_name)
    if container.early_cleanup is None:
        container.early_cleanup = asyncio.create_task(_clean_up_early(ctx, container))
    await asyncio.wait([container.early_cleanup], timeout=EARLY_CLEANUP_LIMIT)
    container.init.send_signal(signal.SIGKILL)
    # If it ended by itself just before, it may already have been started again.
    if cgroup is not None and ctx.runtime.get(container.ref) is container:
        await in_thread(cgroup_moves.kill_all, cgroup)


async def _clean_up_early(ctx: Context, container: Running) -> None:
    """Start slow clean-up early, as far as it can be done while the container is ending."""
    try:
        instance = await load(ctx, container.ref)
    except NotFound:
        return
    try:
        # If the daemon is killed after this, the container lacks devices: its next start completes the stop.
        await in_thread(ctx.runtime_paths(instance).killed.touch)
    except OSError:  # such as a full disk
        return
    host = device_host.host_of(ctx, instance, container.idmap)
    await device_steps.killed_all(device_host.with_devices(host, container.devices))

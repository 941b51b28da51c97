"""Stopping: by asking the container's init, or by killing it; freezing and thawing."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal

from utsuwa.core.errors import HostError, InvalidRequest, NotFound, UtsuwaError
from utsuwa.host.cgroups import moves as cgroup_moves
from utsuwa.instances.context import Context, load
from utsuwa.instances.lifecycle import device_steps, signals
from utsuwa.instances.model import Running, not_found

log = logging.getLogger(__name__)

CLEAN_STOP_LIMIT = 600.0
"""Seconds that a clean stop without a time limit of its own waits: LXD's bound."""
KILL_GRACE = 30.0
"""Seconds from SIGKILL until the container must be gone."""
LAST_MOMENT = 0.02
"""Seconds that a container which is to be killed may live on while its interfaces are taken away."""
STOP_SIGNAL_GRACE = 5.0
"""Seconds that a container which has a signal of its own for a forced stop gets to end by it."""


class NotStoppedInTime(UtsuwaError):
    """The container's init was asked to stop and did not within the time given."""

    key = "not-stopped-in-time"
    status = 400


def running(ctx: Context, project: str, name: str) -> Running:
    """The running container; raises InvalidRequest where it is stopped."""
    found = ctx.runtime.get((project, name))
    if found is None:
        raise InvalidRequest(f"The instance {name!r} is already stopped")
    return found


async def stop(
    ctx: Context, project: str, name: str, *, force: bool, seconds: float, reboot: bool = False
) -> None:
    """Stop a container and wait until everything of it is cleaned away, an ephemeral one deleted.

    Cleanly it gets `seconds` (none: up to CLEAN_STOP_LIMIT) and raises NotStoppedInTime, the
    container still running; forced it is killed. One that is to come back (`reboot`) may have a signal
    of its own for that. Cancelled while it waits, nothing more is done to the container.
    """
    container = running(ctx, project, name)
    if force:
        await kill(ctx, container)
        return
    _check_thawed(container)
    wanted = await signals.configured(ctx, container, *(("reboot", "halt") if reboot else ("halt",)))
    number = await signals.ask_to_end(container, wanted)
    async with ctx.locks.hold("instance", project, name):
        if ctx.runtime.get((project, name)) is not container:
            return
        _check_thawed(container)
        container.init.send_signal(number)
    try:
        await asyncio.wait_for(container.ended.wait(), seconds if seconds > 0 else CLEAN_STOP_LIMIT)
    except TimeoutError:
        raise NotStoppedInTime(
            f"The instance {name!r} did not stop in time: look at its console "
            f"(`utsuwa console --show-log {name}`), or stop it with `utsuwa stop --force {name}`"
        ) from None
    await container.settled.wait()


def _check_thawed(container: Running) -> None:
    if container.frozen:
        raise InvalidRequest(
            f"The instance {container.name!r} is frozen: resume it with `utsuwa start {container.name}`, or "
            f"stop it as it is with `utsuwa stop --force {container.name}`"
        )


async def kill(ctx: Context, container: Running) -> None:
    """Kill a container's init, and with it all of its processes; waits for the end.

    A `lxc.signal.stop` of its own configuration is tried before.
    """
    container.forced = True
    if container.frozen:
        await ctx.helper.unfreeze(container.storage_name, ctx.paths.containers)
        container.frozen = False
    try:
        number = await signals.configured(ctx, container, "stop")
    except HostError as error:
        log.warning("the stop signal of instance %r cannot be told: %s", container.name, error)
        number = None
    if number not in (None, signal.SIGKILL):
        container.init.send_signal(number)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(container.ended.wait(), STOP_SIGNAL_GRACE)
    if not container.ended.is_set():
        await _kill_now(ctx, container)
    await container.settled.wait()


async def _kill_now(ctx: Context, container: Running) -> None:
    await _send_kill(ctx, container)
    async with cgroup_moves.kept_warm():  # not before: the kernel lets nobody kill by cgroup meanwhile
        try:
            await asyncio.wait_for(container.ended.wait(), KILL_GRACE)
        except TimeoutError:
            raise NotStoppedInTime(
                f"The instance {container.name!r} was killed, but its processes do not end: "
                "the host may hang on a disk or a network file system"
            ) from None


async def _send_kill(ctx: Context, container: Running) -> None:
    cgroup = await asyncio.to_thread(
        cgroup_moves.container_folder, container.init_pid, container.storage_name
    )
    if container.hastened is None:
        container.hastened = asyncio.create_task(_hasten(ctx, container))
    await asyncio.wait([container.hastened], timeout=LAST_MOMENT)
    container.init.send_signal(signal.SIGKILL)
    # Where it has just ended by itself it may run anew.
    if cgroup is not None and ctx.runtime.get(container.key) is container:
        await asyncio.to_thread(cgroup_moves.kill_all, cgroup)


async def _hasten(ctx: Context, container: Running) -> None:
    """What takes long to take away when the container has ended, and can go with it or before, goes now."""
    try:
        instance = await load(ctx, *container.key)
    except NotFound:
        return
    try:
        # A daemon that ends here leaves a container without its devices: the next one finishes the stop.
        await asyncio.to_thread(ctx.runtime_paths(instance).killed.touch)
    except OSError:  # such as a full disk
        return
    host = device_steps.host_of(ctx, instance, container.idmap)
    await device_steps.killed_all(device_steps.with_devices(host, container.devices))


async def freeze(ctx: Context, project: str, name: str) -> None:
    async with ctx.locks.hold("instance", project, name):
        container = running(ctx, project, name)
        if container.frozen:
            raise InvalidRequest(f"The instance {name!r} is already frozen")
        await ctx.helper.freeze(container.storage_name, ctx.paths.containers)
        container.frozen = True
        if container.forced:  # killed meanwhile: frozen processes would not end
            await ctx.helper.unfreeze(container.storage_name, ctx.paths.containers)
            container.frozen = False
            raise InvalidRequest(f"The instance {name!r} is being stopped")
    ctx.lifecycle("paused", project, name)


async def unfreeze(ctx: Context, project: str, name: str) -> None:
    async with ctx.locks.hold("instance", project, name):
        container = ctx.runtime.get((project, name))
        if container is None:
            raise not_found(name)
        if not container.frozen:
            raise InvalidRequest(f"The instance {name!r} is not frozen")
        await ctx.helper.unfreeze(container.storage_name, ctx.paths.containers)
        container.frozen = False
    ctx.lifecycle("resumed", project, name)

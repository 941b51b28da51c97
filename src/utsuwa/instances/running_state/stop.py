"""Stopping a container in the moment in which its running state is saved (`stop --stateful`)."""

from __future__ import annotations

import asyncio
import logging
from functools import partial
from pathlib import Path

from utsuwa.core import faults
from utsuwa.core.errors import InvalidRequest
from utsuwa.core.refs import InstanceRef
from utsuwa.core.rollback import Rollback
from utsuwa.core.tasks import finish
from utsuwa.db import instances as instance_rows
from utsuwa.instances.context import Context, load
from utsuwa.instances.lifecycle import device_host, device_steps, orphans, stop
from utsuwa.instances.model import Loaded, Running
from utsuwa.instances.running_state import save, saved

log = logging.getLogger(__name__)


async def check(ctx: Context, ref: InstanceRef) -> None:
    """Raise what `stop_stateful` would raise now."""
    container = stop.running(ctx, ref)
    await save.check(ctx, container)
    _refuse_ephemeral(await load(ctx, ref))


def _refuse_ephemeral(instance: Loaded) -> None:
    if instance.data.ephemeral:
        raise InvalidRequest(
            f"The instance {instance.name!r} is ephemeral: stopping it deletes it, with its state. Use "
            f"`utsuwa snapshot --stateful {instance.name}`, or make it persistent"
        )


async def stop_stateful(ctx: Context, ref: InstanceRef) -> None:
    """Save the running state of a container and stop it, or leave it running unchanged.

    Raises InvalidRequest, Unavailable (CRIU), NotSaved, OutOfSpace.
    """
    container = stop.running(ctx, ref)
    criu = await save.check(ctx, container)
    async with ctx.locks.hold("instance", ref):
        if ctx.runtime.get(ref) is not container or container.forced:
            raise InvalidRequest(f"The instance {ref.name!r} has ended meanwhile: its state was not saved")
        instance = await load(ctx, ref)
        _refuse_ephemeral(instance)
        await save.save(ctx, instance, container, criu, partial(_end, ctx, instance, container), ends=True)
    await container.settled.wait()


async def _end(ctx: Context, instance: Loaded, container: Running, fresh: Path) -> None:
    """Record the saved state of a frozen container and kill it, so that it never runs on."""
    await asyncio.to_thread(saved.sync, fresh)
    async with Rollback() as undo:
        undo.push(asyncio.to_thread, saved.remove, fresh.parent)
        await asyncio.to_thread(saved.publish, fresh, fresh.parent)
        faults.point("saved state published")
        await ctx.database.write(
            "instance has a saved state", instance_rows.set_stateful, instance.row.id, stateful=True
        )
        undo.keep()
    faults.point("saved state recorded")
    await finish(kill_frozen(ctx, instance, container))


async def kill_frozen(ctx: Context, instance: Loaded, container: Running) -> None:
    """Kill a frozen container, after its interfaces, so that the peers of its connections do not notice."""
    container.forced = True
    try:
        # If the daemon dies after this, the container lacks devices: its next start completes the stop.
        await asyncio.to_thread(ctx.runtime_paths(instance).killed.touch)
    except OSError as error:  # such as a full disk: the devices are removed when it has ended
        log.warning("the connections of instance %r are closed: %s", container.name, error)
    else:
        host = device_host.host_of(ctx, instance, container.idmap)
        await device_steps.killed_all(device_host.with_devices(host, container.devices))
    await orphans.kill_container(container.ref.storage_name, container.init_pid)

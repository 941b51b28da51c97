"""The start of the daemon: containers that run are found again, what died or was half-made is put right."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from utsuwa.core.config_keys import parse_bool
from utsuwa.db import instances as instance_rows
from utsuwa.host import cgroups, lxc
from utsuwa.instances import create, end, identity, lxcconf
from utsuwa.instances.context import Context, load_all, merge, profiles_named
from utsuwa.instances.model import Loaded, Running

log = logging.getLogger(__name__)


async def write_shared_files(ctx: Context) -> None:
    """What all containers' configurations name."""
    await asyncio.to_thread(lxcconf.write_post_stop, ctx.paths.post_stop)


async def sweep(ctx: Context) -> None:
    """Remove instances whose making a kill cut off: their files first, then their rows."""
    async with ctx.database.read() as conn:
        rows = [row for row in await instance_rows.get_all(conn, None) if row.state != "ready"]
        half = [merge(row, await profiles_named(conn, row.project, row.profiles)) for row in rows]
    for instance in half:
        log.info("removing the half-made instance %r", instance.name)
        await ctx.storage.delete_instance(
            instance.pool, instance.storage_name, instance.project, instance.name
        )
        await create.discard(ctx, instance)


async def adopt_all(ctx: Context, watch: end.Watch) -> list[Loaded]:
    """Find the containers that run and watch them; gives the instances that do not run."""
    instances = await load_all(ctx, None)
    pids = await asyncio.gather(
        *(
            ctx.helper.init_pid(i.storage_name, ctx.paths.containers, ctx.runtime_paths(i).conf)
            for i in instances
        )
    )
    stopped = []
    for instance, pid in zip(instances, pids, strict=True):
        if pid is None:
            stopped.append(instance)
            continue
        await _adopt(ctx, watch, instance, pid)
    return stopped


async def _adopt(ctx: Context, watch: end.Watch, instance: Loaded, pid: int) -> None:
    running = Running(
        row_id=instance.row.id,
        project=instance.project,
        name=instance.name,
        init_pid=pid,
        monitor_pid=await asyncio.to_thread(lxc.monitor_pid, pid),
        devices=instance.expanded_devices,
        config=instance.expanded_config,
        idmap=identity.idmap_of(instance.row.config, "volatile.idmap.current"),
        frozen=await asyncio.to_thread(cgroups.frozen, pid),
    )
    ctx.runtime.add(running)
    watch.begin(running)
    log.info("instance %r runs, pid %d", instance.name, pid)
    if instance.row.config.get("volatile.last_state.power") != "RUNNING":
        # Killed between the container's start and the note of it.
        await ctx.patch_config(
            instance.row,
            {"volatile.last_state.power": "RUNNING", "volatile.last_state.boot_id": ctx.boot_id},
        )


async def settle(ctx: Context, stopped: list[Loaded]) -> list[Loaded]:
    """Clean up after containers that ended while the daemon was down; gives those to start, in order.

    A container that rebooted meanwhile is started, one that was killed is Stopped; after a reboot of
    the machine, or a shutdown by the daemon, what ran before runs again; `boot.autostart` decides first.
    """
    wanted = []
    for instance in stopped:
        config = instance.row.config
        was_running = config.get("volatile.last_state.power") == "RUNNING"
        ended_alone = was_running and config.get("volatile.last_state.boot_id") == ctx.boot_id
        rebooted = ended_alone and end.read_target(ctx.runtime_paths(instance)) == "reboot"
        await end.clean_host(ctx, instance)
        if was_running:
            changes: dict[str, str | None] = {"volatile.last_state.boot_id": None}
            if ended_alone and not rebooted:
                changes["volatile.last_state.power"] = "STOPPED"
            await end.clean_up(ctx, instance, instance.expanded_devices, changes)
        autostart = instance.expanded_config.get("boot.autostart", "")
        comes_back = rebooted or (was_running and not ended_alone)
        if rebooted or (parse_bool(autostart) if autostart else comes_back):
            wanted.append(instance)
    wanted.sort(key=lambda i: (-_number(i, "boot.autostart.priority"), i.project, i.name))
    return wanted


async def autostart(instances: list[Loaded], start: Callable[[str, str], Awaitable[None]]) -> None:
    """Start instances one after the other, each followed by its `boot.autostart.delay`."""
    for instance in instances:
        try:
            await start(instance.project, instance.name)
        except Exception:
            log.exception("instance %r did not start by itself", instance.name)
        delay = _number(instance, "boot.autostart.delay")
        if delay > 0:
            await asyncio.sleep(delay)


def _number(instance: Loaded, key: str) -> int:
    return int(instance.expanded_config.get(key) or 0)

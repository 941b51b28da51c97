"""Recovery when the daemon starts: find running containers, clean up ended and incomplete ones."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass

from utsuwa.core.config_keys import parse_bool
from utsuwa.core.errors import UtsuwaError
from utsuwa.core.names import storage_name
from utsuwa.db import device_changes
from utsuwa.db import instances as instance_rows
from utsuwa.db.codes import HALF_MADE
from utsuwa.host import lxc
from utsuwa.host.cgroups import tree as cgroups
from utsuwa.host.files.filetree import remove_tree
from utsuwa.host.processes import pidfds
from utsuwa.instances import identity
from utsuwa.instances.confinement import limits, lxcconf
from utsuwa.instances.context import Context, load_all
from utsuwa.instances.lifecycle import delete, device_steps, end, orphans
from utsuwa.instances.model import Loaded, Running

log = logging.getLogger(__name__)

BUSY_TIMEOUT = 60.0
"""Seconds that a start or an end which the daemon's death cut off gets to come to its own end."""
_POLL = 0.02


async def write_shared_files(ctx: Context) -> None:
    """What all containers' configurations name."""
    await asyncio.to_thread(lxcconf.write_post_stop, ctx.paths.post_stop)


async def sweep(ctx: Context) -> None:
    """Remove what a kill left of instances that were being made or deleted, and logs without an instance."""
    rows = await ctx.database.read("instances", instance_rows.get_here)
    known = {storage_name(row.project, row.name) for row in rows}
    for instance in await load_all(ctx, HALF_MADE):
        log.info("removing the half-made instance %r", instance.name)
        try:
            await delete.remove(ctx, instance)
        except UtsuwaError as error:  # its pool is not there: the next start tries again
            log.error("the half-made instance %r cannot be removed: %s", instance.name, error)
    await asyncio.to_thread(_remove_strange_logs, ctx, known)


def _remove_strange_logs(ctx: Context, known: set[str]) -> None:
    for folder in ctx.paths.logs.iterdir():
        if folder.is_dir() and folder.name not in known:
            remove_tree(folder)


async def adopt_all(ctx: Context, watch: end.Watch) -> list[Loaded]:
    """Find the containers that run and watch them; gives the instances that do not run."""
    instances = await load_all(ctx)
    busy = await asyncio.to_thread(lxc.active, ctx.paths.containers)
    pids = await asyncio.gather(
        *(_find(ctx, i, busy=i.storage_name in busy) for i in instances), return_exceptions=True
    )
    stopped = []
    for instance, pid in zip(instances, pids, strict=True):
        if isinstance(pid, UtsuwaError):
            # Its monitor does not answer: nothing is done to it, and the others come up.
            log.error("whether instance %r runs cannot be told: %s", instance.name, pid)
            continue
        if isinstance(pid, BaseException):
            raise pid
        if pid is None:
            stopped.append(instance)
            continue
        if await _finish_forced_stop(ctx, instance, pid):
            stopped.append(instance)
            continue
        await _adopt(ctx, watch, instance, pid)
    return stopped


async def _find(ctx: Context, instance: Loaded, *, busy: bool) -> int | None:
    """The pid of the container's init; None where it does not run.

    `busy` says that liblxc has processes for it: without an init it is just starting or ending.
    """
    name, lxcpath = instance.storage_name, ctx.paths.containers
    for _ in range(int(BUSY_TIMEOUT / _POLL)):
        pid = await ctx.helper.init_pid(name, lxcpath)
        if pid is not None or not busy:
            return pid
        await asyncio.sleep(_POLL)
        busy = name in await asyncio.to_thread(lxc.active, lxcpath)
    log.warning("instance %r neither starts nor ends: what is left of it is killed", instance.name)
    await lxc.wait_until_gone(name, lxcpath)
    return None


async def _finish_forced_stop(ctx: Context, instance: Loaded, pid: int) -> bool:
    """Whether the daemon was killed when it had begun to take the container apart, which is dead now."""
    if not await asyncio.to_thread(ctx.runtime_paths(instance).killed.exists):
        return False
    log.info("the forced stop of instance %r was cut off: it is carried out", instance.name)
    pidfds.kill(pid)
    await lxc.wait_until_gone(instance.storage_name, ctx.paths.containers)
    return True


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
    # Had its start not been complete, a later end would still count as the reboot that it followed.
    await asyncio.to_thread(ctx.runtime_paths(instance).last_target.unlink, missing_ok=True)
    ctx.runtime.add(running)
    watch.begin(running)
    log.info("instance %r runs, pid %d", instance.name, pid)
    noted = {"volatile.last_state.power": "RUNNING", "volatile.last_state.boot_id": ctx.boot_id}
    if not noted.items() <= instance.row.config.items():
        # The database is older than the container, its end was being noted when the container came up,
        # or a restart was under way.
        await ctx.patch_config(instance.row.id, noted)
    async with ctx.locks.hold("instance", *instance.key):
        await _put_devices_right(ctx, instance, pid)
    await identity.warn_of_lost_ids(instance)


async def _put_devices_right(ctx: Context, instance: Loaded, pid: int | None) -> None:
    """Take back a change of devices that a kill cut off, and finish a start that it came before the end of.

    Without a `pid` the container has ended.
    """
    idmap = identity.idmap_of(instance.row.config, "volatile.idmap.current")
    host = device_steps.host_of(ctx, instance, idmap, pid)
    changes = device_changes.read(instance.row.config)
    if changes:
        log.info("taking back a change of the devices of instance %r that was cut off", instance.name)
        await device_steps.undo_change(host, changes)
        await ctx.database.write("change taken back", device_changes.forget, [instance.row.id])
    if pid is not None:
        await device_steps.started_again(host)
        try:
            await limits.apply_disk_priority(pid, instance.expanded_config)
        except (UtsuwaError, OSError) as error:
            log.warning("the disk priority of instance %r is not as configured: %s", instance.name, error)


@dataclass(frozen=True)
class Fate:
    """What becomes of an instance that does not run at the daemon's start."""

    was_running: bool
    """Whether it ran when the daemon was last there: its devices are cleaned up, its end is noted."""
    ended: bool
    """Whether it came to an end of its own meanwhile: from now on it counts as stopped."""
    start: bool
    delete: bool


def judge(instance: Loaded, boot_id: str, target: str) -> Fate:
    """Decide from the last noted state, this boot's id, and what the post-stop hook has recorded.

    A container that rebooted meanwhile is started, one that was killed or halted is stopped, and
    deleted where it is ephemeral. After a reboot of the machine, or a shutdown by the daemon (which
    forgets the boot's id), what ran before runs again. `boot.autostart` overrides all but a reboot.
    """
    config = instance.row.config
    was_running = config.get("volatile.last_state.power") == "RUNNING"
    alone = was_running and config.get("volatile.last_state.boot_id") == boot_id
    rebooted = alone and target == "reboot"
    ended = alone and not rebooted
    autostart = instance.expanded_config.get("boot.autostart", "")
    wanted = parse_bool(autostart) if autostart else was_running and not ended
    gone = ended and instance.row.ephemeral
    return Fate(was_running, ended, start=(rebooted or wanted) and not gone, delete=gone)


async def settle(ctx: Context, stopped: list[Loaded]) -> list[Loaded]:
    """Clean up after containers that ended while the daemon was down; gives those to start, in order."""
    wanted = []
    await orphans.kill_left(ctx, stopped)
    for instance in stopped:
        fate = judge(instance, ctx.boot_id, end.read_target(ctx.runtime_paths(instance)))
        try:
            await _clean(ctx, instance, fate)
        except UtsuwaError as error:
            log.error("cleaning up after instance %r failed: %s", instance.name, error)
        if fate.start:
            wanted.append(instance)
    await asyncio.to_thread(cgroups.remove_unused, ctx.cgroup)
    wanted.sort(key=lambda i: (-_number(i, "boot.autostart.priority"), i.project, i.name))
    return wanted


async def _clean(ctx: Context, instance: Loaded, fate: Fate) -> None:
    try:
        await end.clean_host(ctx, instance)
    except UtsuwaError as error:  # such as a pool that is not there
        log.error("not all of instance %r is taken away: %s", instance.name, error)
    await _put_devices_right(ctx, instance, None)
    if fate.was_running:
        changes: dict[str, str | None] = {"volatile.last_state.boot_id": None}
        if fate.ended:
            changes["volatile.last_state.power"] = "STOPPED"
        await end.clean_up(ctx, instance, instance.expanded_devices, changes)
    if fate.delete:
        log.info("the ephemeral instance %r ended meanwhile: it is deleted", instance.name)
        await delete.delete(ctx, instance.project, instance.name)


def _number(instance: Loaded, key: str) -> int:
    return int(instance.expanded_config.get(key) or 0)

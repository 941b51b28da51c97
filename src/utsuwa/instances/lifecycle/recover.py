"""Recovery when the daemon starts: find running containers, clean up ended and incomplete ones."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass

from utsuwa.core.config_keys import parse_bool
from utsuwa.core.errors import UtsuwaError
from utsuwa.core.threads import in_thread
from utsuwa.core.warning_types import LEFTOVERS, LIMITS_NOT_APPLIED, STATE_UNKNOWN
from utsuwa.db import device_changes
from utsuwa.db import instances as instance_rows
from utsuwa.db.codes import HALF_MADE
from utsuwa.host import lxc
from utsuwa.host.cgroups import tree as cgroups
from utsuwa.host.files.filetree import remove_tree
from utsuwa.host.processes import pidfds
from utsuwa.instances import identity
from utsuwa.instances.confinement import limits, lxcconf, policies
from utsuwa.instances.context import Context, load, load_all
from utsuwa.instances.guest import switch
from utsuwa.instances.lifecycle import (
    autorestart,
    delete,
    device_host,
    device_steps,
    device_updates,
    end,
    freeze,
    orphans,
)
from utsuwa.instances.model import BOOT_ID, MOVED, POWER, READY, Loaded, Running, RuntimePaths
from utsuwa.instances.running_state import own_state

log = logging.getLogger(__name__)

BUSY_TIMEOUT = 60.0
"""Seconds that liblxc has to complete a start or an end that was in progress when the daemon died."""
_POLL = 0.02


async def write_shared_files(ctx: Context) -> None:
    """Write the files to which the configurations of all containers refer."""
    await asyncio.to_thread(lxcconf.write_post_stop, ctx.paths.post_stop)


async def sweep(ctx: Context) -> None:
    """Remove the remains of interrupted creations and deletions, and logs without an instance."""
    rows = await ctx.database.read("instances", instance_rows.get_here)
    known = {row.ref.storage_name for row in rows}
    for instance in await load_all(ctx, HALF_MADE):
        log.info("removing the incomplete instance %r", instance.name)
        try:
            await delete.remove(ctx, instance)
            known.discard(instance.ref.storage_name)
        except UtsuwaError as error:  # its pool is not available: the next start tries again
            message = f"cannot remove the incomplete instance {instance.name!r}: {error.message}"
            ctx.warnings.report(LEFTOVERS, message, instance.subject)
    await asyncio.to_thread(_remove_unknown_logs, ctx, known)
    await asyncio.to_thread(ctx.guest_sockets.sweep)


def _remove_unknown_logs(ctx: Context, known: set[str]) -> None:
    for folder in ctx.paths.logs.iterdir():
        if folder.is_dir() and folder.name not in known:
            remove_tree(folder)


async def adopt_all(ctx: Context, watch: end.Watch) -> list[Loaded]:
    """Find and watch running containers; return the instances that are not running."""
    instances = await load_all(ctx)
    busy = await asyncio.to_thread(lxc.active, ctx.paths.containers)
    pids = await asyncio.gather(
        *(find_init(ctx, i, busy=i.ref.storage_name in busy) for i in instances), return_exceptions=True
    )
    stopped = []
    for instance, pid in zip(instances, pids, strict=True):
        if isinstance(pid, UtsuwaError):
            # Its monitor does not respond: leave it alone, and continue with the others.
            message = f"cannot determine whether instance {instance.name!r} is running: {pid.message}"
            ctx.warnings.report(STATE_UNKNOWN, message, instance.subject)
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


async def find_init(ctx: Context, instance: Loaded, *, busy: bool) -> int | None:
    """Return the pid of the container's init, or None if it is not running.

    `busy` is true if liblxc has processes for it: then it is starting or ending if it has no init.
    """
    name, lxcpath = instance.ref.storage_name, ctx.paths.containers
    for _ in range(int(BUSY_TIMEOUT / _POLL)):
        pid = await ctx.helper.init_pid(name, lxcpath)
        if pid is not None or not busy:
            return pid
        await asyncio.sleep(_POLL)
        busy = name in await asyncio.to_thread(lxc.active, lxcpath)
    log.warning("instance %r neither starts nor ends: killing its remaining processes", instance.name)
    await lxc.wait_until_gone(name, lxcpath)
    return None


async def _finish_forced_stop(ctx: Context, instance: Loaded, pid: int) -> bool:
    """Complete a forced stop that was interrupted when it removed devices; return whether there was one."""
    moved = instance.data.config.get(POWER) == MOVED
    if not moved and not await asyncio.to_thread(ctx.runtime_paths(instance).killed.exists):
        return False
    log.info("completing the interrupted forced stop of instance %r", instance.name)
    pidfds.kill(pid)
    await orphans.kill_container(instance.ref.storage_name, pid)  # they may be frozen
    await lxc.wait_until_gone(instance.ref.storage_name, ctx.paths.containers)
    return True


async def _adopt(ctx: Context, watch: end.Watch, instance: Loaded, pid: int) -> None:
    running = Running(
        row_id=instance.row.id,
        ref=instance.ref,
        init_pid=pid,
        monitor_pid=await asyncio.to_thread(lxc.monitor_pid, pid),
        devices=instance.expanded.devices,
        config=instance.expanded.config,
        idmap=identity.current_idmap(instance),
        frozen=await asyncio.to_thread(cgroups.frozen, pid),
        ready=parse_bool(instance.data.config.get(READY, "")),
    )
    # If its start was interrupted, the record of the preceding reboot is still there, and must not be applied
    # to a later end.
    await asyncio.to_thread(ctx.runtime_paths(instance).last_target.unlink, missing_ok=True)
    await own_state.end_interrupted(ctx, instance, pid)
    await freeze.thaw_held(ctx, instance, running)
    await own_state.tidy(ctx, instance, pid)
    ctx.runtime.add(running)
    watch.begin(running)
    log.info("instance %r is running, pid %d", instance.name, pid)
    expected = {"volatile.last_state.power": "RUNNING", "volatile.last_state.boot_id": ctx.boot_id}
    if not expected.items() <= instance.data.config.items():
        # The database is older than the container, an earlier end was stored after its start, or a restart
        # was in progress.
        await ctx.patch_config(instance.row.id, expected)
    async with ctx.locks.hold("instance", instance.ref):
        await _restore_devices(ctx, instance, pid)
    await identity.warn_of_lost_ids(ctx, instance)


async def _restore_devices(ctx: Context, instance: Loaded, pid: int | None) -> None:
    """Revert an interrupted change of devices, and complete their interrupted start.

    `pid` is None if the container has ended.
    """
    idmap = identity.current_idmap(instance)
    host = device_host.host_of(ctx, instance, idmap, pid)
    changes = device_changes.read(instance.data.config)
    if changes:
        log.info("reverting the interrupted change of devices of instance %r", instance.name)
        await device_updates.undo_change(host, changes)
        await ctx.database.write("revert device change", device_changes.forget, [instance.row.id])
    if pid is not None:
        await device_steps.started_again(host)
        await switch.restore(ctx, host)
        await in_thread(policies.write_settings_again, ctx, instance.ref, instance.expanded.config)
        try:
            await limits.apply_disk_priority(pid, instance.expanded.config)
        except (UtsuwaError, OSError) as error:
            message = f"cannot apply the disk priority of instance {instance.name!r}: {error}"
            ctx.warnings.report(LIMITS_NOT_APPLIED, message, instance.subject)


@dataclass(frozen=True)
class Outcome:
    """What to do with an instance that is not running when the daemon starts."""

    was_running: bool
    """Whether it was running before: its devices are cleaned up, its end is stored."""
    ended: bool
    """Whether it ended by itself meanwhile: it is stopped from now on."""
    start: bool
    delete: bool


def outcome_of(instance: Loaded, boot_id: str, target: str, *, autorestart: bool = False) -> Outcome:
    """Decide from the last stored state, this boot's id, and what the post-stop hook has recorded.

    A container that rebooted meanwhile is started, and so is one that ended by itself with `autorestart`;
    one that was killed or halted is stopped, and deleted if it is ephemeral. After a reboot of the host, or a
    shutdown by the daemon (which removes the boot's id), containers that were running are started again.
    `boot.autostart` overrides all but a reboot or restart of the container, and a move to another server.
    """
    config = instance.data.config
    moved = config.get(POWER) == MOVED
    was_running = config.get(POWER) == "RUNNING" or (moved and BOOT_ID in config)
    same_boot = was_running and config.get(BOOT_ID) == boot_id and not moved
    rebooted = same_boot and (target == "reboot" or autorestart)
    ended = same_boot and not rebooted
    autostart = instance.expanded.config.get("boot.autostart", "")
    wanted = parse_bool(autostart) if autostart else was_running and not ended
    deleted = ended and instance.data.ephemeral
    return Outcome(was_running, ended, start=(rebooted or wanted) and not (deleted or moved), delete=deleted)


async def settle(ctx: Context, stopped: list[Loaded]) -> list[Loaded]:
    """Clean up after containers that ended while the daemon was down; return those to start, in order."""
    wanted = []
    await orphans.kill_orphans(ctx, stopped)
    for instance in stopped:
        paths = ctx.runtime_paths(instance)
        instance = await _kept_if_undecided(ctx, instance, paths)
        again = await autorestart.wanted(instance, paths)
        outcome = outcome_of(instance, ctx.boot_id, end.read_target(paths), autorestart=again)
        try:
            await _clean(ctx, instance, outcome)
        except UtsuwaError as error:
            log.error("cleaning up after instance %r failed: %s", instance.name, error)
        if outcome.start:
            wanted.append(instance)
    await asyncio.to_thread(cgroups.remove_unused, ctx.cgroup)
    wanted.sort(key=lambda i: (-_number(i, "boot.autostart.priority"), i.ref))
    return wanted


async def _kept_if_undecided(ctx: Context, instance: Loaded, paths: RuntimePaths) -> Loaded:
    """Have an instance not be started by itself if the frozen processes are gone of a move that is undecided.

    It may run on the other server.
    """
    if instance.data.config.get(POWER) == MOVED or not await in_thread(paths.undecided.exists):
        return instance
    await ctx.patch_config(instance.row.id, {POWER: MOVED})
    return await load(ctx, instance.ref)


async def _clean(ctx: Context, instance: Loaded, outcome: Outcome) -> None:
    await end.try_to_clean_host(ctx, instance)
    await _restore_devices(ctx, instance, None)
    await own_state.tidy(ctx, instance, None)
    if outcome.was_running:
        changes: dict[str, str | None] = {"volatile.last_state.boot_id": None}
        if outcome.ended:
            changes["volatile.last_state.power"] = "STOPPED"
        await end.clean_up(ctx, instance, instance.expanded.devices, changes)
    if outcome.delete:
        log.info("deleting the ephemeral instance %r, which has ended", instance.name)
        await delete.delete(ctx, instance.ref)


def _number(instance: Loaded, key: str) -> int:
    return int(instance.expanded.config.get(key) or 0)

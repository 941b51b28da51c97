"""Starting a container: root file system, devices and confinement, then liblxc; completely or not at all."""

from __future__ import annotations

import asyncio
import contextlib
import errno
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import datetime
from pathlib import Path

from utsuwa.core import clock
from utsuwa.core.errors import InvalidRequest, OutOfSpace, StartFailed, UtsuwaError
from utsuwa.core.idmap import IdMap
from utsuwa.core.rollback import Rollback
from utsuwa.db import instances as instance_rows
from utsuwa.db.transaction import Transaction
from utsuwa.host import lxc
from utsuwa.host.cgroups import limits as cgroup_limits
from utsuwa.host.cgroups import moves as cgroup_moves
from utsuwa.host.cgroups import tree as cgroups
from utsuwa.host.processes import pidfds
from utsuwa.instances import identity, templates
from utsuwa.instances.confinement import cpu_balance, limits, lxcconf, nodes
from utsuwa.instances.confinement import policies as confinement
from utsuwa.instances.context import Context, load
from utsuwa.instances.lifecycle import device_steps
from utsuwa.instances.lifecycle.create import check_by_liblxc
from utsuwa.instances.lifecycle.end import Watch, read_target
from utsuwa.instances.model import Comeback, Loaded, Running, RuntimePaths
from utsuwa.instances.policy import judge


class NotStartedAgain(UtsuwaError):
    """The container was stopped by another request while it was being restarted."""

    key = "not-started-again"
    status = 400


async def start(
    ctx: Context, watch: Watch, project: str, name: str, comeback: Comeback | None = None
) -> None:
    """Start a stopped container and watch it from then on.

    Raises InvalidRequest where it runs already, InvalidConfig or NotFound for what its settings name
    in vain, StartFailed with liblxc's reason; what was prepared is taken away again. NotStartedAgain
    where `comeback`, to which the start belongs, was abandoned.
    """
    cgroup_moves.warm_soon()
    async with ctx.locks.hold("instance", project, name):
        if comeback is not None and comeback.abandoned:
            raise NotStartedAgain(
                f"Another request stopped the instance {name!r}: this one does not start it again"
            )
        instance = judge(await load(ctx, project, name), ctx.policy)
        if ctx.runtime.get(instance.key) is not None:
            raise InvalidRequest(f"The instance {name!r} is already running")
        async with Rollback() as undo:
            with _told_of_a_full_disk(ctx.paths.root):
                running = await _bring_up(ctx, instance, undo)
            undo.keep()
        ctx.runtime.add(running)
        watch.begin(running)
    await cpu_balance.try_to_rebalance(ctx)


async def check_again(ctx: Context, project: str, name: str) -> None:
    """Raise InvalidRequest where a running container could not start again, as far as that can be known."""
    try:
        instance = judge(await load(ctx, project, name), ctx.policy)
        await ctx.storage.pools.ensure_available(instance.pool)
        if limits.limited(instance.expanded_config):
            limits.check(instance.expanded_config, await asyncio.to_thread(cgroup_limits.read_limit_facts))
        idmap = identity.idmap_of(instance.row.config, "volatile.idmap.next")
        host = device_steps.host_of(ctx, instance, idmap)
        await device_steps.check_all(host)
        await check_by_liblxc(ctx, instance)
    except UtsuwaError as error:
        raise InvalidRequest(
            f"The instance {name!r} was not stopped, for it could not start again: {error.message}"
        ) from error


@contextlib.contextmanager
def _told_of_a_full_disk(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise OutOfSpace(
                f"No space left for the files in {folder}: free some space and try again"
            ) from error
        raise


async def _bring_up(ctx: Context, instance: Loaded, undo: Rollback) -> Running:
    paths = ctx.runtime_paths(instance)
    await ctx.storage.pools.ensure_available(instance.pool)
    instance = await identity.with_permitted_idmap(ctx, instance)
    idmap = identity.idmap_of(instance.row.config, "volatile.idmap.next")
    undo.push(ctx.storage.volumes.unmount, instance.pool, instance.volume)  # or cancelled in mid-mount
    rootfs = await ctx.storage.volumes.mount(instance.pool, instance.volume, idmap)
    await _apply_templates(ctx, instance, rootfs, idmap)
    host = device_steps.host_of(ctx, instance, idmap)
    steps = await device_steps.start_all(host, undo)
    undo.push(confinement.remove, ctx, instance)
    lines, cpus = await _limits(ctx, instance)
    spec = lxcconf.ContainerSpec(
        name=instance.name,
        architecture=instance.row.architecture,
        rootfs=rootfs,
        idmap=idmap,
        config=limits.with_kernel_defaults(instance.expanded_config),
        cgroup=ctx.cgroup,
        console_log=paths.console,
        post_stop=ctx.paths.post_stop,
        target=paths.target,
        mounts=steps.mounts,
        nics=steps.nics,
        read_only_root=steps.read_only_root,
        limits=lines,
        apparmor=await confinement.load_apparmor(ctx, instance),
    )
    rebooted = await asyncio.to_thread(_write_files, ctx, instance, spec)
    # A kill of the daemon from here on leaves a container that its next start finds by its name,
    # and whose map and devices it reads where they are noted now.
    await _remember(ctx, instance, steps, undo)
    if steps.changes_addresses:
        await ctx.networks.refresh(instance.key)
    if rebooted:
        undo.push(asyncio.to_thread, _record_again, paths)  # over what the end of a killed one records
    undo.push(_kill_left_over, ctx, instance)
    pid, monitor = await _run(ctx, instance, paths)
    if rebooted:
        await asyncio.to_thread(paths.last_target.unlink, missing_ok=True)
    await device_steps.started_all(replace(host, init_pid=pid), steps)
    await limits.apply_disk_priority(pid, instance.expanded_config)
    return Running(
        row_id=instance.row.id,
        project=instance.project,
        name=instance.name,
        init_pid=pid,
        monitor_pid=monitor,
        devices=instance.expanded_devices,
        config=instance.expanded_config,
        idmap=idmap,
        cpus=cpus,
    )


async def _limits(ctx: Context, instance: Loaded) -> tuple[list[lxcconf.Pair], cpu_balance.Cpus | None]:
    """What lxc.conf says of the instance's limits, and the CPUs among that."""
    config = instance.expanded_config
    if not limits.limited(config):
        return [], None
    facts = await asyncio.to_thread(cgroup_limits.read_limit_facts)
    limits.check(config, facts)
    cpus = cpu_balance.for_start(ctx, instance.key, config.get("limits.cpu", ""), facts)
    return limits.start_lines(config, facts) + limits.cpu_lines(cpus, facts), cpus


async def _run(ctx: Context, instance: Loaded, paths: RuntimePaths) -> tuple[int, int | None]:
    """Start liblxc's monitor and the container's init in it; gives init's pid and the monitor's."""
    own_hooks = bool(instance.expanded_config.get("raw.lxc"))
    pids = await lxc.start(
        instance.storage_name, ctx.paths.containers, paths.conf, paths.log, own_hooks=own_hooks
    )
    if pids is not None:
        return pids.init, pids.monitor
    pid = await ctx.helper.init_pid(instance.storage_name, ctx.paths.containers)
    if pid is None:
        reason = await asyncio.to_thread(lxc.logged, paths.log)
        raise StartFailed(
            f"The container {instance.name!r} ended as soon as it had started: "
            f"{reason or 'look at its console log'}"
        )
    return pid, await asyncio.to_thread(lxc.monitor_pid, pid)


async def _apply_templates(ctx: Context, instance: Loaded, rootfs: Path, idmap: IdMap) -> None:
    """The image's templates: those of an event that waited for this start, then those of every start."""
    folder = ctx.storage.volumes.folder(instance.pool, instance.volume)
    context = templates.TemplateContext(
        name=instance.name,
        architecture=instance.row.architecture,
        ephemeral=instance.row.ephemeral,
        privileged=idmap.privileged,
        config=instance.expanded_config,
        devices=instance.expanded_devices,
        idmap=idmap,
    )
    triggers: list[templates.Trigger] = ["start"]
    match instance.row.config.get("volatile.apply_template", ""):
        case "create" | "copy" | "rename" as waiting:
            triggers.insert(0, waiting)
        case _:
            pass
    await templates.apply(triggers, folder, rootfs, context)


def _write_files(ctx: Context, instance: Loaded, spec: lxcconf.ContainerSpec) -> bool:
    """Write what liblxc reads, by what the host has now; gives whether the last end was a reboot.

    That one's record is put aside until the container runs: a reboot that is cut off is begun again by it.
    """
    paths = ctx.runtime_paths(instance)
    paths.folder.mkdir(mode=0o700, exist_ok=True)
    paths.killed.unlink(missing_ok=True)
    for old in (paths.log, paths.console):
        with contextlib.suppress(FileNotFoundError):
            old.replace(old.with_name(f"{old.name}.old"))
    policy = confinement.prepare_seccomp(ctx, instance)
    own = nodes.make(device_steps.devices_path(ctx.paths, instance.storage_name), spec.idmap)
    spec = replace(spec, host=lxcconf.read_host_facts(), seccomp=policy, nodes=own)
    lxcconf.write(paths.conf, lxcconf.build(spec))
    rebooted = read_target(paths) == "reboot"
    with contextlib.suppress(FileNotFoundError):
        if rebooted:
            paths.target.replace(paths.last_target)
        else:
            paths.target.unlink()
    return rebooted


def _record_again(paths: RuntimePaths) -> None:
    with contextlib.suppress(FileNotFoundError):
        paths.last_target.replace(paths.target)


async def _kill_left_over(ctx: Context, instance: Loaded) -> None:
    """A start that failed late, or was cancelled, may have left the container running."""
    pid = await ctx.helper.init_pid(instance.storage_name, ctx.paths.containers)
    if pid is not None:
        pidfds.kill(pid)
    await lxc.wait_until_gone(instance.storage_name, ctx.paths.containers)
    await asyncio.to_thread(cgroups.remove_unused, ctx.cgroup, container=instance.storage_name)


async def _remember(ctx: Context, instance: Loaded, steps: device_steps.Steps, undo: Rollback) -> None:
    """Store in one transaction what the start has settled."""
    row = instance.row
    changes: dict[str, str | None] = {
        **steps.volatile,
        "volatile.idmap.current": row.config.get("volatile.idmap.next"),
        "volatile.last_state.power": "RUNNING",
        "volatile.last_state.boot_id": ctx.boot_id,
        "volatile.apply_template": None,
    }
    before = {key: row.config.get(key) for key in changes}
    undo.push(ctx.database.write, "instance does not start", _note, row.id, before, row.last_used_at)
    await ctx.database.begin("instance starts", _note, row.id, changes, clock.now())


def _note(
    tx: Transaction, row_id: int, changes: Mapping[str, str | None], last_used: datetime | None
) -> None:
    instance_rows.patch_config(tx, row_id, changes)
    instance_rows.set_last_used(tx, row_id, last_used)

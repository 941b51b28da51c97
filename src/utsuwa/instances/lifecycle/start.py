"""Starting a container: root file system, devices and confinement, then liblxc. Undone on failure."""

from __future__ import annotations

import asyncio
import contextlib
import errno
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from utsuwa.core import clock
from utsuwa.core.errors import InvalidRequest, OutOfSpace, StartFailed, UtsuwaError
from utsuwa.core.idmap import IdMap
from utsuwa.core.refs import InstanceRef
from utsuwa.core.rollback import Rollback
from utsuwa.core.threads import begin_in_thread, in_thread
from utsuwa.db import instances as instance_rows
from utsuwa.db.transaction import Transaction
from utsuwa.devices import BindMount, DeviceHost, nic
from utsuwa.host import lxc
from utsuwa.host.cgroups import io_limits
from utsuwa.host.cgroups import limits as cgroup_limits
from utsuwa.host.cgroups import moves as cgroup_moves
from utsuwa.host.cgroups import tree as cgroups
from utsuwa.host.mounts import mounts
from utsuwa.host.processes import pidfds
from utsuwa.host.system import kernel_modules
from utsuwa.instances import identity
from utsuwa.instances.confinement import (
    bpf_tokens,
    cpu_balance,
    credentials,
    host_facts,
    limits,
    lxcconf,
    nodes,
    nvidia,
)
from utsuwa.instances.confinement import policies as confinement
from utsuwa.instances.confinement.conf_lines import Pair
from utsuwa.instances.context import Context, Seen, load, load_again
from utsuwa.instances.guest import sockets
from utsuwa.instances.lifecycle import device_host, device_steps, orphans
from utsuwa.instances.lifecycle.create import check_by_liblxc
from utsuwa.instances.lifecycle.end import Watch
from utsuwa.instances.lifecycle.start_remedies import remedy
from utsuwa.instances.lifecycle.stop import Moved
from utsuwa.instances.model import (
    CHOSEN_NODES,
    POWER,
    READY,
    CpuWish,
    Loaded,
    PendingRestart,
    Running,
    RuntimePaths,
)
from utsuwa.instances.policy import judge
from utsuwa.instances.running_state import announce, guest, own_state, requirements, resume
from utsuwa.instances.running_state.resume import Resumption
from utsuwa.instances.running_state.saved import Saved
from utsuwa.instances.templates import files as templates
from utsuwa.instances.templates.variables import Facts, Trigger
from utsuwa.security import interception


class NotStartedAgain(UtsuwaError):
    """The container was stopped by another request while it was being restarted."""

    key = "not-started-again"
    status = 400


async def start(
    ctx: Context,
    watch: Watch,
    ref: InstanceRef,
    restart: PendingRestart | None = None,
    *,
    stateless: bool = False,
    saved: Saved | None = None,
    seen: Seen | None = None,
) -> None:
    """Start a stopped container and watch it from then on. It may have been `seen` before.

    Its own saved running state is restored, or discarded if `stateless`; `saved` is restored in its place.

    Raises InvalidRequest if it is already running, InvalidConfig or NotFound if its configuration refers to
    something that does not exist, StartFailed with liblxc's reason, NotStartedAgain if the start belongs
    to a `restart` that was cancelled, or Moved. On failure, all preparations are undone.
    """
    cgroup_moves.warm_soon()
    before = ctx.runtime.get(ref)
    async with ctx.locks.hold("instance", ref):
        if before is not None and before.moved:  # who wanted it to run has not seen that it is elsewhere
            raise Moved(ref.name)
        if restart is not None and restart.cancelled:
            raise NotStartedAgain(
                f"The instance {ref.name!r} is not started again: another request has stopped it"
            )
        instance = await load_again(ctx, ref, seen)
        judge(instance.data, instance.expanded, instance.restrictions, ctx.policy)
        if ctx.runtime.get(instance.ref) is not None:
            raise InvalidRequest(f"The instance {ref.name!r} is already running")
        if saved is None and not stateless:
            saved = await own_state.load(ctx, instance)
        if saved is None:
            await own_state.discard(ctx, instance)
        async with Rollback() as undo:
            with _report_full_disk(ctx.paths.root):
                running = await _bring_up(ctx, instance, saved, undo)
            undo.keep()
        if saved is not None:
            await asyncio.gather(announce.announce(running), own_state.discard(ctx, instance))
        ctx.runtime.add(running)
        watch.begin(running)
        if saved is not None:
            await device_steps.attach_missing(
                device_host.host_of(ctx, instance, running.idmap, running.init_pid)
            )
    await cpu_balance.try_to_rebalance(ctx)
    await requirements.judge(ctx, running)


async def check_restart(ctx: Context, ref: InstanceRef) -> None:
    """Raise InvalidRequest if a running container could not be started again, as far as can be checked."""
    try:
        instance = await load(ctx, ref)
        judge(instance.data, instance.expanded, instance.restrictions, ctx.policy)
        ctx.database.engine.check_room()
        await _ready_host(ctx, instance)
        if limits.limited(instance.expanded.config):
            limits.check(instance.expanded.config, await in_thread(cgroup_limits.read_limit_facts))
        idmap = identity.next_idmap(instance)
        host = device_host.host_of(ctx, instance, idmap)
        await device_steps.check_all(host)
        await check_by_liblxc(ctx, instance)
    except UtsuwaError as error:
        raise InvalidRequest(
            f"The instance {ref.name!r} was not stopped because it could not be started again: "
            f"{error.message}"
        ) from error


@contextlib.contextmanager
def _report_full_disk(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise OutOfSpace(
                f"No space left for the files in {folder}: free some space and try again"
            ) from error
        raise


@dataclass(frozen=True)
class _Limits:
    """The limits that a container starts with."""

    lines: list[Pair]
    """Those for lxc.conf."""
    place: cpu_balance.Place
    nodes: Mapping[str, str | None]
    """The change of the volatile key with the chosen NUMA node."""
    disks: io_limits.Limits
    """The limits of requests to disks."""


@dataclass(frozen=True)
class _Prepared:
    """A container that can be started: what was done to the host for it, and its configuration."""

    instance: Loaded
    host: DeviceHost
    steps: device_steps.Steps
    spec: lxcconf.ContainerSpec
    limits: _Limits

    @property
    def volatile(self) -> dict[str, str | None]:
        """The changes of volatile keys that the start stores."""
        return {**self.steps.volatile, **self.limits.nodes}


async def _bring_up(ctx: Context, instance: Loaded, saved: Saved | None, undo: Rollback) -> Running:
    criu = await requirements.criu(ctx, instance.subject) if saved is not None else None
    prepared = await _prepare(ctx, instance, saved, undo)
    instance, steps, paths = prepared.instance, prepared.steps, ctx.runtime_paths(instance)
    again = instance.data.config.get(POWER) == "RUNNING"
    if again:
        await in_thread(_record_reboot, paths)
    files = begin_in_thread(_write_files, ctx, instance, prepared.spec)
    try:
        # If the daemon is killed after this, its next start finds the container by name, and its id map and
        # devices in the database.
        await _store_start(ctx, instance, prepared.volatile, undo)
    finally:
        await asyncio.wait([files])
    files.result()
    if steps.changes_addresses:
        await ctx.networks.refresh(instance.ref)
    if again:
        undo.push(in_thread, _record_again, paths)  # overwrites what the end of a killed container records
    undo.push(_kill_leftover, ctx, instance)
    if saved is not None and criu is not None:
        pid, monitor = await Resumption(ctx, instance, prepared.spec, saved, criu).run(undo)
    else:
        pid, monitor = await _run(ctx, instance, paths)
    if again:
        await in_thread(paths.last_target.unlink, missing_ok=True)
    await device_steps.started_all(replace(prepared.host, init_pid=pid), steps)
    await limits.apply_disk_priority(pid, instance.expanded.config)
    running = Running(
        row_id=instance.row.id,
        ref=instance.ref,
        init_pid=pid,
        monitor_pid=monitor,
        devices=instance.expanded.devices,
        config=device_steps.with_changes(instance.expanded.config, prepared.volatile),
        idmap=prepared.spec.idmap,
        cpus=prepared.limits.place.cpus,
        memory_nodes=prepared.limits.place.memory_nodes,
    )
    if saved is not None:
        await resume.apply_limits(ctx, running, prepared.limits.disks)
    await bpf_tokens.mount(ctx.helper.mounting, running)
    return running


async def _prepare(ctx: Context, instance: Loaded, saved: Saved | None, undo: Rollback) -> _Prepared:
    """Mount the root file system, and prepare devices, limits and confinement.

    For a container whose state is restored, templates are not applied: its disk stays as it was then.
    """
    paths = ctx.runtime_paths(instance)
    await _ready_host(ctx, instance)
    instance = await identity.with_permitted_idmap(ctx, instance)
    await identity.refuse_shift(ctx, instance)
    idmap = identity.next_idmap(instance)
    rootfs = await _mount_root(ctx, instance, idmap, undo)
    if saved is None:
        await _apply_templates(ctx, instance, rootfs, idmap)
    host = device_host.host_of(ctx, instance, idmap)
    if saved is not None:
        host = nic.with_addresses(host, saved.record.hwaddrs)
    undo.push(confinement.remove, ctx, instance)
    device_nodes = await in_thread(_make_device_folder, host)
    own_mounts = await in_thread(_own_mounts, ctx, host)
    steps = await device_steps.start_all(host, undo)
    if saved is not None:
        resume.check(instance, saved, idmap, [pair.name for pair in steps.nics])
    if steps.read_only_root:
        await in_thread(_protect_root, rootfs)
    wanted = await _limits(ctx, instance, await device_steps.io_limits(host))
    spec = lxcconf.ContainerSpec(
        name=instance.name,
        architecture=instance.data.architecture,
        rootfs=rootfs,
        idmap=idmap,
        config=limits.with_kernel_defaults(instance.expanded.config),
        cgroup=ctx.cgroup,
        console_log=paths.console,
        post_stop=ctx.paths.post_stop,
        target=paths.target,
        nodes=device_nodes,
        mounts=[*own_mounts, *steps.mounts],
        device_rules=[device.rule for device in steps.allowed_devices],
        nics=steps.nics,
        read_only_root=steps.read_only_root,
        limits=wanted.lines,
        apparmor=await confinement.load_apparmor(ctx, instance),
    )
    return _Prepared(instance, host, steps, spec, wanted)


async def _ready_host(ctx: Context, instance: Loaded) -> None:
    """Have what the instance needs of the host besides its devices: its pool, kernel modules, programs.

    Raises Unavailable, InvalidConfig.
    """
    await ctx.storage.pools.ensure_available(instance.pool)
    await kernel_modules.load(instance.expanded.config.get("linux.kernel_modules", ""))
    await nvidia.check_host(instance.expanded.config)
    await bpf_tokens.check_host(instance.expanded.config)


async def _mount_root(ctx: Context, instance: Loaded, idmap: IdMap, undo: Rollback) -> Path:
    """Mount the root file system of the instance under this id map, and return where."""
    volumes, volume = ctx.storage.volumes, instance.ref.volume
    undo.push(volumes.unmount, instance.pool, volume)  # also if cancelled during the mount
    rootfs = await volumes.mount(instance.pool, volume, idmap)
    if interception.intercepts(instance.expanded.config, "mknod"):
        await in_thread(mounts.with_devices, rootfs)
    return rootfs


def _protect_root(rootfs: Path) -> None:
    """Make the mount read-only on the host; pools that mount nothing leave that to liblxc."""
    if mounts.mounted(rootfs):
        mounts.read_only(rootfs)


def _make_device_folder(host: DeviceHost) -> list[tuple[Path, str]]:
    host.folder.make(host.idmap)
    return nodes.make(host.folder, host.idmap)


def _own_mounts(ctx: Context, host: DeviceHost) -> list[BindMount]:
    """Return the mounts that are not those of devices, for which the daemon's own files are made."""
    mounts = guest.mounts(host.config, host.folder)
    mounts += credentials.mounts(host.config, host.folder, host.idmap)
    if sockets.is_enabled(host.config):
        mounts += ctx.guest_sockets.make(host.instance)
    return mounts


async def _limits(ctx: Context, instance: Loaded, disks: io_limits.Limits) -> _Limits:
    """Choose CPUs and NUMA nodes, and return all limits, with those of requests to `disks`."""
    config = instance.expanded.config
    of_disks = await in_thread(io_limits.lines, disks) if disks else []
    if not limits.limited(config):
        unset = {CHOSEN_NODES: None} if CHOSEN_NODES in config else {}
        return _Limits(of_disks, cpu_balance.Place(), unset, disks)
    facts = await in_thread(cgroup_limits.read_limit_facts)
    limits.check(config, facts)
    chosen = cpu_balance.choose_nodes(ctx, instance.ref, config, facts)
    wish = CpuWish.of(device_steps.with_changes(config, chosen))
    place = cpu_balance.for_start(ctx, instance.ref, wish, facts)
    lines = limits.start_lines(config, facts) + limits.cpuset_lines(*place, facts)
    return _Limits(lines + of_disks, place, chosen, disks)


async def _run(ctx: Context, instance: Loaded, paths: RuntimePaths) -> tuple[int, int | None]:
    """Start liblxc's monitor and the container's init; return the pids of init and of the monitor."""
    config = instance.expanded.config
    own_hooks = bool(config.get("raw.lxc")) or nvidia.wanted(config)
    try:
        pids = await lxc.start(
            instance.ref.storage_name, ctx.paths.containers, paths.conf, paths.log, own_hooks=own_hooks
        )
    except StartFailed as error:
        raise StartFailed(
            f"Failed to start the container {instance.name!r}: {error.message}: "
            f"{nvidia.remedy(config, error.message) or remedy(error.message, instance.name)}"
        ) from error
    if pids is not None:
        return pids.init, pids.monitor
    pid = await ctx.helper.init_pid(instance.ref.storage_name, ctx.paths.containers)
    if pid is None:
        reason = await in_thread(lxc.logged, paths.log)
        raise StartFailed(
            f"The container {instance.name!r} ended immediately after the start: "
            f"{reason or 'liblxc gives no reason'}: {remedy(reason, instance.name)}"
        )
    return pid, await in_thread(lxc.monitor_pid, pid)


async def _apply_templates(ctx: Context, instance: Loaded, rootfs: Path, idmap: IdMap) -> None:
    """Apply the image's templates: those of a pending event (create, copy, rename), then those of starts."""
    folder = ctx.storage.volumes.folder(instance.pool, instance.ref.volume)
    facts = Facts(
        name=instance.name,
        architecture=instance.data.architecture,
        ephemeral=instance.data.ephemeral,
        privileged=idmap.privileged,
        config=instance.expanded.config,
        devices=instance.expanded.devices,
    )
    triggers: list[Trigger] = ["start"]
    match instance.data.config.get("volatile.apply_template", ""):
        case "create" | "copy" | "rename" as pending:
            triggers.insert(0, pending)
        case _:
            pass
    await templates.apply(triggers, templates.Target(folder, rootfs, idmap, facts), ctx.templates)


def _record_reboot(paths: RuntimePaths) -> None:
    """Record, as for a reboot, that a container which was running is to run again.

    This is until it runs: the database says so earlier, and if the daemon is killed in between, its next
    start must not take the container for one that has ended.
    """
    paths.folder.mkdir(mode=0o700, exist_ok=True)
    paths.last_target.write_text("reboot")
    paths.target.unlink(missing_ok=True)


def _write_files(ctx: Context, instance: Loaded, spec: lxcconf.ContainerSpec) -> None:
    """Write the files that liblxc reads, and remove those of the last run."""
    paths = ctx.runtime_paths(instance)
    paths.folder.mkdir(mode=0o700, exist_ok=True)
    paths.killed.unlink(missing_ok=True)
    paths.stop_requested.unlink(missing_ok=True)
    paths.undecided.unlink(missing_ok=True)
    resume.forget_console(paths)
    for old in (paths.log, paths.console):
        with contextlib.suppress(FileNotFoundError):
            old.replace(old.with_name(f"{old.name}.old"))
    policy = confinement.prepare_seccomp(ctx, instance)
    spec = replace(spec, host=host_facts.read_host_facts(), seccomp=policy)
    lxcconf.write(paths.conf, lxcconf.build(spec))
    paths.target.unlink(missing_ok=True)


def _record_again(paths: RuntimePaths) -> None:
    with contextlib.suppress(FileNotFoundError):
        paths.last_target.replace(paths.target)


async def _kill_leftover(ctx: Context, instance: Loaded) -> None:
    """Kill a container that a failed or cancelled start has left running."""
    pid = await ctx.helper.init_pid(instance.ref.storage_name, ctx.paths.containers)
    if pid is not None:
        pidfds.kill(pid)
    await lxc.wait_until_gone(instance.ref.storage_name, ctx.paths.containers)
    await orphans.kill_left(ctx, instance.ref.storage_name)
    await in_thread(cgroups.remove_unused, ctx.cgroup, container=instance.ref.storage_name)


async def _store_start(
    ctx: Context, instance: Loaded, volatile: Mapping[str, str | None], undo: Rollback
) -> None:
    """Store the volatile keys and the time of the start in one transaction."""
    row = instance.row
    changes: dict[str, str | None] = {
        **volatile,
        "volatile.idmap.current": row.data.config.get("volatile.idmap.next"),
        "volatile.last_state.power": "RUNNING",
        "volatile.last_state.boot_id": ctx.boot_id,
        "volatile.apply_template": None,
        READY: None,
    }
    before = {key: row.data.config.get(key) for key in changes}
    undo.push(ctx.database.write, "undo start of instance", _patch, row.id, before, row.last_used_at)
    await ctx.database.begin("start instance", _patch, row.id, changes, clock.now())


def _patch(
    tx: Transaction, row_id: int, changes: Mapping[str, str | None], last_used: datetime | None
) -> None:
    instance_rows.patch_config(tx, row_id, changes)
    instance_rows.set_last_used(tx, row_id, last_used)

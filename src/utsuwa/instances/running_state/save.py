"""Saving the running state of a container, which stays frozen until the caller has decided what follows."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

from utsuwa.core import faults
from utsuwa.core.errors import (
    Conflict,
    HostError,
    InvalidRequest,
    OutOfSpace,
    ProcessFailed,
    UtsuwaError,
)
from utsuwa.core.protobuf import InvalidMessage
from utsuwa.core.tasks import finish
from utsuwa.devices import DeviceHost, nic
from utsuwa.host.cgroups import freezer
from utsuwa.host.cgroups import tree as cgroups
from utsuwa.host.checkpoint import (
    commands,
    directories,
    dumping,
    failures,
    mount_images,
    packets,
    places,
    route_images,
    watches,
)
from utsuwa.host.checkpoint.failures import Remedy
from utsuwa.host.checkpoint.program import Criu, first_error
from utsuwa.host.mounts import mounts
from utsuwa.instances.context import Context
from utsuwa.instances.lifecycle import device_host, freeze
from utsuwa.instances.model import Loaded, Running
from utsuwa.instances.running_state import links, preflight, saved
from utsuwa.security import idmap

log = logging.getLogger(__name__)

_TRIES = 5
_PAUSE = 1.5
"""Seconds between two attempts, for obstacles that pass."""
_LOG_LIMIT = 1 << 20


class NotSaved(Conflict):
    """The running state of the container could not be saved; it runs on."""

    key = "not-saved"


async def check(ctx: Context, container: Running) -> Criu:
    """Return the program for saving a container. Raises InvalidRequest, Unavailable if that is impossible."""
    refused = list(preflight.refusals(container))
    if refused:
        raise InvalidRequest(
            f"The running state of {container.name!r} cannot be saved: {preflight.describe(refused)}"
        )
    return await ctx.criu.find()


Meanwhile = Callable[[Path], Awaitable[None]]
"""What is done with a saved state while its container is still frozen."""
Held = Callable[[], Awaitable[None]]
"""What is done each time that a container has been frozen in order to save it."""


async def _nothing() -> None:
    pass


async def save(
    ctx: Context,
    instance: Loaded,
    container: Running,
    criu: Criu,
    meanwhile: Meanwhile,
    *,
    ends: bool = False,
    held: Held = _nothing,
) -> None:
    """Save the running state of a container, whose lock the caller holds, into its volume's directory.

    `meanwhile` is called with the directory of the saved state (`state.new`) while the container is still
    frozen, so that its disk is that of the same instant; then it runs on. If it `ends` instead, it gets no
    packets either. `held` is called before each attempt to save it, when it has been frozen for that; it
    runs on after one that fails. If anything fails, nothing is left. Raises NotSaved with the reason,
    OutOfSpace, InvalidRequest if the container has ended.
    """
    _check_runs(container)
    await _refuse(ctx, instance, container)
    for attempt in range(1, _TRIES + 1):
        failure = await _attempt(ctx, instance, container, criu, meanwhile, held, ends=ends)
        if failure is None:
            return
        _check_runs(container)
        log.info(
            "the state of %r was not saved: %s",
            container.name,
            failure.reason,
            extra={"attempt": attempt, "criu": failure.error},
        )
        if failure.remedy is Remedy.NONE or attempt == _TRIES:
            raise _not_saved(container.name, failure)
        if failure.remedy is Remedy.LOOK_UP:
            await asyncio.to_thread(directories.look_up, container.init_pid)
        else:
            await asyncio.sleep(_PAUSE)


def _check_runs(container: Running) -> None:
    """Raise InvalidRequest if a container has ended: what could not be read of it, that explains."""
    if container.init.ended:
        raise InvalidRequest(f"The instance {container.name!r} has ended meanwhile: its state was not saved")


async def _refuse(ctx: Context, instance: Loaded, container: Running) -> None:
    """Raise what can be seen without freezing the container."""
    lacking = await preflight.shortage(ctx, instance, container)
    if lacking is not None:
        raise OutOfSpace(
            f"The running state of {container.name!r} was not saved: {preflight.describe([lacking])}"
        )
    found = [obstacle for obstacle in await preflight.of_processes(container) if not obstacle.passing]
    if found:
        raise NotSaved(
            f"The running state of {container.name!r} cannot be saved: {preflight.describe(found)}; the "
            "instance runs on"
        )


def _not_saved(name: str, failure: failures.Failure) -> UtsuwaError:
    if failure.full_disk:
        return OutOfSpace(
            f"There is no space left for the running state of {name!r}, which takes as much as its memory: "
            "free some on its storage pool; the instance runs on"
        )
    return NotSaved(
        f"The running state of {name!r} could not be saved: {failure.reason}; the instance runs on. "
        f"`utsuwa info --checkpoint {name}` lists what stands in the way"
    )


async def _attempt(
    ctx: Context,
    instance: Loaded,
    container: Running,
    criu: Criu,
    meanwhile: Meanwhile,
    held: Held,
    *,
    ends: bool,
) -> failures.Failure | None:
    folder = ctx.storage.volumes.folder(instance.pool, instance.ref.volume)
    cut = links.cut(instance, ctx.runtime_paths(container).undecided) if ends else contextlib.nullcontext()
    try:
        fresh = await asyncio.to_thread(saved.begin, folder)
        job, record = await asyncio.to_thread(_plan, ctx, instance, container, criu, fresh)
        async with (
            dumping.begun(criu.program, job) as complete,
            freeze.held(ctx, container),
            cut,
        ):
            await held()
            failure = await finish(_dump(container, complete, fresh, record))
            if failure is None:
                faults.point("running state saved")
                await meanwhile(fresh)
            return failure
    finally:
        await finish(asyncio.to_thread(saved.remove_fresh, folder))


async def _dump(
    container: Running, complete: dumping.Complete, fresh: Path, record: saved.Record
) -> failures.Failure | None:
    """Have CRIU save a frozen container, and write the record. Returns why that failed."""
    try:
        await complete()
    except ProcessFailed as error:
        await packets.let_through(container.init_pid)
        text = await asyncio.to_thread(_log_of, fresh)
        reason = first_error(text) or (error.stderr.strip() if not text else "")
        return failures.explain(text, reason)
    try:
        await asyncio.to_thread(_complete_images, fresh, container.init_pid, record)
    except (OSError, InvalidMessage) as error:
        return failures.Failure(str(error))
    return None


def _complete_images(fresh: Path, init_pid: int, record: saved.Record) -> None:
    mount_images.heal(fresh)
    route_images.heal(fresh)
    watches.name(fresh, init_pid)
    saved.store(fresh, record)


def _plan(
    ctx: Context, instance: Loaded, container: Running, criu: Criu, fresh: Path
) -> tuple[commands.Dump, saved.Record]:
    pid, proc = container.init_pid, Path(f"/proc/{container.init_pid}")
    try:
        console = os.stat(proc / "root/dev/console")  # noqa: PTH116 - of another mount namespace
        inner = mounts.parse_mountinfo((proc / "mountinfo").read_bytes())
    except OSError as error:
        _check_runs(container)
        raise HostError(f"The container {container.name!r} cannot be examined: {error}") from error
    host = mounts.parse_mountinfo(Path("/proc/self/mountinfo").read_bytes())
    disks = [device.get("path", "") for device in container.devices.values() if device.get("type") == "disk"]
    shared = places.externals(inner, host, [f"/{path.strip('/')}" for path in disks if path.strip("/")])
    for path in shared:
        if not saved.can_be_named(path):
            raise NotSaved(f"The state of {container.name!r} cannot be saved with a mount at {path!r}")
    tty = commands.tty_key(console.st_rdev, console.st_dev)
    job = commands.Dump(
        init=pid,
        images=fresh,
        cgroup=cgroups.path_of(pid),
        freezer=freezer.folder_of(pid, container.ref.storage_name),
        externals=shared,
        tty=tty,
    )
    devices = device_host.host_of(ctx, instance, container.idmap)
    addresses = _addresses(device_host.with_devices(devices, container.devices))
    record = saved.Record(
        criu=criu.version,
        kernel=os.uname().release,
        idmap=idmap.to_json(container.idmap),
        mounts=shared,
        nics=sorted(addresses),
        hwaddrs=addresses,
        tty=tty,
    )
    return job, record


def _addresses(host: DeviceHost) -> dict[str, str]:
    """Return the MAC addresses of the interfaces of the container's devices, by their names inside."""
    nics = ((name, device) for name, device in host.devices.items() if device.get("type") == "nic")
    named = ((nic.nic_name(name, device, host), nic.mac_of(name, device, host)) for name, device in nics)
    return {name: address.lower() for name, address in named if name}


def _log_of(fresh: Path) -> str:
    try:
        with (fresh / commands.DUMP_LOG).open("rb") as file:
            return file.read(_LOG_LIMIT).decode(errors="replace")
    except OSError:
        return ""

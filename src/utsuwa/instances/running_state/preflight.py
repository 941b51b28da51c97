"""What stands in the way of saving the running state of an instance, before anything is tried."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import asdict

from utsuwa.core.config_keys import parse_bool
from utsuwa.core.errors import Unavailable
from utsuwa.host.checkpoint import diagnosis, interfaces, obstacles
from utsuwa.host.checkpoint.obstacles import Obstacle
from utsuwa.instances.context import Context
from utsuwa.instances.model import Loaded, Running
from utsuwa.instances.running_state import guest
from utsuwa.security import interception
from utsuwa.wire.checkpoints import CheckpointObstacle, InstanceCheckpoint

_ROOM = 1.1
"""Space for the images, relative to the memory in use."""
_SMALL = 32 << 20
"""Space in bytes that they take in any case."""
_MAX_SAID = 2
"""Maximum number of obstacles with one remedy in a message."""


async def look(ctx: Context, instance: Loaded, container: Running | None) -> InstanceCheckpoint:
    """Return what is found, of the host, the instance and its processes."""
    found, version = [], ""
    try:
        version = (await ctx.criu.find()).version
    except Unavailable as error:
        found.append(Obstacle(error.message, "utsuwad criu install"))
    if container is None:
        found.append(Obstacle("it is not running", f"utsuwa start {instance.name}"))
    else:
        found += refusals(container)
        found += await of_processes(container)
        lacking = await shortage(ctx, instance, container)
        found += [lacking] if lacking is not None else []
    return InstanceCheckpoint(
        possible=all(obstacle.passing for obstacle in found),
        criu=version,
        obstacles=[CheckpointObstacle(**asdict(obstacle)) for obstacle in found],
    )


def refusals(container: Running) -> Iterator[Obstacle]:
    """Yield what the configuration and the state of a container prevent."""
    if parse_bool(container.config.get("security.privileged", "")):
        # A restore by liblxc leaves out the rules of which devices the container's processes may use. Only a
        # user namespace keeps those of others from the host's devices then.
        reason = "it is privileged, and could use all devices of the host after a restore"
        yield Obstacle(reason, "unset security.privileged and restart the instance")
    intercepted = [name for name in interception.RULES if interception.intercepts(container.config, name)]
    if intercepted:
        # CRIU restores the filters without a listener, so that these calls would fail.
        key = interception.PREFIX + intercepted[0]
        reason = f"its system calls are intercepted ({key}), which a restored container's cannot be"
        yield Obstacle(reason, f"unset {key} and restart the instance")
    if container.frozen:
        yield Obstacle("it is frozen", f"utsuwa start {container.name}")


async def of_processes(container: Running) -> list[Obstacle]:
    """Look at the processes inside, at the mounts and at the network interfaces."""
    disks = frozenset(
        f"/{device.get('path', '').strip('/')}"
        for device in container.devices.values()
        if device.get("type") == "disk" and device.get("path", "").strip("/")
    )
    prepared = guest.is_prepared(container.config)

    def look() -> list[Obstacle]:
        lacking = diagnosis.missing()
        return obstacles.find(container.init_pid, prepared=prepared, disks=disks, lacking=lacking)

    return [*await interfaces.find(container.init_pid), *await asyncio.to_thread(look)]


async def shortage(ctx: Context, instance: Loaded, container: Running) -> Obstacle | None:
    """Return a lack of space for the state on the storage pool, if there is one."""
    folder = ctx.storage.volumes.folder(instance.pool, instance.ref.volume)

    def look() -> Obstacle | None:
        try:
            wanted = int(container.meter.read().memory * _ROOM) + _SMALL
        except OSError:  # it has just ended
            return None
        free = shutil.disk_usage(folder).free
        if free >= wanted:
            return None
        reason = f"the state may need {wanted >> 20} MiB, and the storage pool has {free >> 20} MiB left"
        return Obstacle(reason, "free some space there")

    return await asyncio.to_thread(look)


def describe(found: Iterable[Obstacle]) -> str:
    """Return obstacles as one sentence, those with the same remedy together."""
    by_remedy: dict[str, list[str]] = {}
    for obstacle in found:
        by_remedy.setdefault(obstacle.remedy, []).append(_subject(obstacle) + obstacle.reason)
    return "; ".join(f"{_some(reasons)}: {remedy}" for remedy, reasons in by_remedy.items())


def _some(reasons: list[str]) -> str:
    """Return reasons as one text, without all of many; `utsuwa info --checkpoint` lists them."""
    more = len(reasons) - _MAX_SAID
    return ", ".join(reasons[:_MAX_SAID]) + (f" and {more} more" if more > 0 else "")


def _subject(obstacle: Obstacle) -> str:
    if not obstacle.process:
        return ""
    unit = f" of {obstacle.unit}" if obstacle.unit else ""
    return f"the process {obstacle.pid} ({obstacle.process}){unit} "

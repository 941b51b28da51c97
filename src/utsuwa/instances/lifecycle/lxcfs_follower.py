"""lxcfs in running containers: mounted again after it was restarted, and where it was not running before."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

from utsuwa.core.errors import HostError
from utsuwa.host.mounts import detached
from utsuwa.host.mounts.mounts import Mount, parse_mountinfo
from utsuwa.host.system import lxcfs
from utsuwa.instances.confinement.host_facts import HostFacts, read_host_facts
from utsuwa.instances.context import Context
from utsuwa.instances.model import Running

log = logging.getLogger(__name__)

_EVERY = 10.0
"""Seconds between looks."""
_NESTED = "/var/lib/lxcfs"


class LxcfsFollower:
    """Looks periodically while containers run, into each of them once for each mount of lxcfs."""

    def __init__(self, ctx: Context, judge: Callable[[], Awaitable[object]]) -> None:
        """`judge` raises or resolves the warning about lxcfs."""
        self._ctx = ctx
        self._judge = judge
        self._device = ""
        self._complete: set[int] = set()
        """The pids of the init processes of containers that have lxcfs as it is mounted on that device."""

    def start(self) -> asyncio.Task[None]:
        return asyncio.create_task(self._run(), name="lxcfs in containers")

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(_EVERY)
            if self._ctx.runtime.all():
                try:
                    await self._follow()
                except Exception:
                    log.exception("cannot follow lxcfs")

    async def _follow(self) -> None:
        await self._judge()
        facts = await asyncio.to_thread(read_host_facts)
        if facts.lxcfs is None:
            return
        try:
            device = await asyncio.to_thread(_device, facts.lxcfs)
        except OSError as error:
            log.info("lxcfs has ended again: %s", error)
            return
        if device != self._device:
            self._device = device
            self._complete.clear()
        there = self._ctx.runtime.all()
        self._complete &= {running.init_pid for running in there}
        for running in there:
            if running.init_pid in self._complete:
                continue
            async with self._ctx.locks.hold("instance", running.ref):
                try:
                    if self._ctx.runtime.get(running.ref) is running and not running.frozen:
                        await self._mount_again(running, facts, facts.lxcfs)
                        self._complete.add(running.init_pid)
                except (HostError, OSError) as error:  # it may have ended, or lxcfs again
                    log.info("lxcfs is not mounted in instance %r: %s", running.name, error)

    async def _mount_again(self, running: Running, facts: HostFacts, source: Path) -> None:
        places = await asyncio.to_thread(_mounts, running.init_pid)
        wanted = {f"/{file}": source / file for file in facts.lxcfs_files}
        if _NESTED in places:
            wanted[_NESTED] = source
        for place, file in wanted.items():
            there = places.get(place)
            if there is not None and (there.fstype != lxcfs.FILESYSTEM or there.device == self._device):
                continue  # it is there, or covered by a mount of the guest's own
            inside = running.inside(place)
            tree = await asyncio.to_thread(detached.copy_of, file)
            try:
                if there is not None:
                    await self._ctx.helper.mounting.unmount(inside)
                await self._ctx.helper.mounting.mount(inside, tree)
            finally:
                os.close(tree)


def _device(source: Path) -> str:
    """Return the device number of lxcfs on the host, as in mountinfo. Raises OSError."""
    number = source.stat().st_dev
    return f"{os.major(number)}:{os.minor(number)}"


def _mounts(pid: int) -> dict[str, Mount]:
    """Return the topmost mounts in a container by their paths. Raises OSError."""
    found = parse_mountinfo(Path(f"/proc/{pid}/mountinfo").read_bytes())
    return {str(mount.target): mount for mount in found}

"""Devices of running instances that come and go with their files on the host."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection
from pathlib import Path

from utsuwa import devices as device_types
from utsuwa.core.errors import NotFound
from utsuwa.core.refs import InstanceRef
from utsuwa.host.files.path_watch import PathWatch
from utsuwa.instances.context import Context, load
from utsuwa.instances.lifecycle import device_host
from utsuwa.instances.model import Running

log = logging.getLogger(__name__)


class HotPlug:
    """Watches the paths of running containers' devices, which follow what changes there."""

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx
        self._paths: dict[InstanceRef, set[Path]] = {}
        self._watch = PathWatch(device_types.monitored_folder(), self._follow)
        ctx.runtime.listen(self._refresh)

    async def stop(self) -> None:
        await self._watch.stop()

    def _refresh(self, running: Running, present: bool) -> None:
        """Watch the paths of a container's devices, which have changed; none any more if it has ended."""
        old = self._paths.pop(running.ref, set())
        new = device_types.watched(running.devices) if present else set()
        if new:
            self._paths[running.ref] = new
        for path in new - old:
            self._watch.add(path)
        for path in old - new:
            self._watch.remove(path)

    async def _follow(self, changed: Collection[Path]) -> None:
        affected = [ref for ref, paths in self._paths.items() if not paths.isdisjoint(changed)]
        await asyncio.gather(*(self._follow_in(ref, changed) for ref in affected))

    async def _follow_in(self, ref: InstanceRef, changed: Collection[Path]) -> None:
        ctx = self._ctx
        async with ctx.locks.hold("instance", ref):
            running = ctx.runtime.get(ref)
            if running is None:
                return
            try:
                instance = await load(ctx, ref)
            except NotFound:
                return
            host = device_host.host_of(ctx, instance, running.idmap, running.init_pid)
            host = device_host.with_devices(host, running.devices)
            for device in device_types.ordered(running.devices):
                if device.watched in changed:
                    try:
                        await device.follow(host)
                    except Exception:
                        log.exception(
                            "device %r of instance %r does not follow", device.name, running.ref.name
                        )

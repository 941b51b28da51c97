"""Opening the files of an instance: those of a running container, or of a volume that is mounted for it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from utsuwa.core.errors import Unavailable
from utsuwa.core.idmap import IdMap
from utsuwa.core.refs import InstanceRef
from utsuwa.core.rollback import Rollback
from utsuwa.core.tasks import finish
from utsuwa.host.helper.replies import HelperGone
from utsuwa.host.helper.session import FileSession
from utsuwa.host.mounts.userns import user_namespace
from utsuwa.instances import identity
from utsuwa.instances.context import Context, load
from utsuwa.instances.files.places import Place
from utsuwa.instances.model import Running
from utsuwa.operations.operations import SHUTTING_DOWN


class FileAccess:
    """Sessions for the files of instances."""

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx
        self._opening: dict[InstanceRef, asyncio.Future[Place]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def session(self, ref: InstanceRef) -> AsyncIterator[FileSession]:
        """A session within the block; a stopped instance is mounted for it.

        Raises NotFound, OtherMember, Unavailable, HostError, and Busy if the instance is started, stopped or
        changed meanwhile.
        """
        place = await self._place(ref)
        try:
            async with place.session(self._ctx.helper) as session:
                yield session
        except HelperGone as error:
            raise place.explain(error) from error

    async def stop(self) -> None:
        """Close everything, when the daemon ends."""
        await self._ctx.files.release_all()
        for task in self._tasks:  # those that are just opening
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def _place(self, ref: InstanceRef) -> Place:
        while True:
            place = self._ctx.files.get(ref) or await self._opened(ref)
            if not place.recalled:
                return place
            await place.wait_until_gone()

    async def _opened(self, ref: InstanceRef) -> Place:
        """Open a place; requests that come at the same time share it."""
        opening = self._opening.get(ref)
        if opening is None:
            opening = self._opening[ref] = asyncio.get_running_loop().create_future()
            opening.add_done_callback(lambda done: done.exception())  # also if nobody waits any more
            task = asyncio.create_task(self._keep(ref, opening), name=f"files of {ref.name}")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        return await asyncio.shield(opening)

    async def _keep(self, ref: InstanceRef, opening: asyncio.Future[Place]) -> None:
        """Open a place and keep it as long as it is used."""
        try:
            running = self._ctx.runtime.get(ref)
            if running is not None:
                await self._keep_running(ref, running, opening)
            else:
                await self._keep_stopped(ref, opening)
        except BaseException as error:
            if opening.done() or not isinstance(error, Exception):
                raise
            opening.set_exception(error)
        finally:
            if not opening.done():
                opening.set_exception(Unavailable(SHUTTING_DOWN))
            self._opening.pop(ref, None)

    async def _keep_running(self, ref: InstanceRef, running: Running, opening: asyncio.Future[Place]) -> None:
        place = Place(running.name)
        root = namespace = None
        try:
            root = os.open(f"/proc/{running.init_pid}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            if not running.idmap.privileged:
                namespace = os.open(f"/proc/{running.init_pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
            if running.init.ended:
                raise ProcessLookupError
        except OSError:  # its pid may be another process's by now
            for fd in (root, namespace):
                if fd is not None:
                    os.close(fd)
            raise place.closed_meanwhile() from None
        place.open(root, namespace)
        await self._serve(ref, place, opening)

    async def _keep_stopped(self, ref: InstanceRef, opening: asyncio.Future[Place]) -> None:
        """Mount a stopped instance, and hold its lock until something else wants it."""
        ctx, place = self._ctx, Place(ref.name)
        async with ctx.locks.lend("instance", ref, recall=place.recall):
            running = ctx.runtime.get(ref)
            if running is None:
                async with Rollback() as undo:
                    place.open(*await self._mounted(ref, undo))
                    await self._serve(ref, place, opening)
                return
        await self._keep_running(ref, running, opening)

    async def _mounted(self, ref: InstanceRef, undo: Rollback) -> tuple[int, int | None]:
        """Mount the root volume as for a start; unmounting it again is the undo step."""
        ctx = self._ctx
        instance = await load(ctx, ref)
        await ctx.storage.pools.ensure_available(instance.pool)
        instance = await identity.with_permitted_idmap(ctx, instance)
        await identity.refuse_shift(ctx, instance)
        idmap = identity.next_idmap(instance)
        undo.push(ctx.storage.volumes.unmount, instance.pool, instance.ref.volume)
        rootfs = await ctx.storage.volumes.mount(instance.pool, instance.ref.volume, idmap)
        namespace = await asyncio.to_thread(_namespace_of, idmap)
        return os.open(rootfs, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC), namespace

    async def _serve(self, ref: InstanceRef, place: Place, opening: asyncio.Future[Place]) -> None:
        self._ctx.files.add(ref, place)
        self._opening.pop(ref, None)
        opening.set_result(place)
        try:
            await place.until_unused()
        finally:
            try:
                await finish(place.close())
            finally:
                self._ctx.files.remove(ref, place)


def _namespace_of(idmap: IdMap) -> int | None:
    if idmap.privileged:
        return None
    with user_namespace(idmap) as fd:
        return os.dup(fd)

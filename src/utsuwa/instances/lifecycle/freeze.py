"""Freezing the processes of a container: as a state that users see, and while its files are copied."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from utsuwa.core import faults
from utsuwa.core.errors import HostError, InvalidRequest
from utsuwa.core.refs import InstanceRef
from utsuwa.core.threads import in_thread
from utsuwa.host.cgroups import freezer
from utsuwa.host.cgroups import tree as cgroups
from utsuwa.instances.context import Context, load
from utsuwa.instances.lifecycle.stop import running
from utsuwa.instances.model import Loaded, Running
from utsuwa.instances.running_state import links


async def freeze(ctx: Context, ref: InstanceRef) -> None:
    async with ctx.locks.hold("instance", ref):
        container = running(ctx, ref)
        if container.frozen:
            raise InvalidRequest(f"The instance {ref.name!r} is already frozen")
        if container.init.ended:
            raise InvalidRequest(f"The instance {ref.name!r} has ended meanwhile")
        await ctx.helper.freeze(container.ref.storage_name, ctx.paths.containers)
        container.frozen = True
        if container.forced:  # killed meanwhile: frozen processes would not end
            await ctx.helper.unfreeze(container.ref.storage_name, ctx.paths.containers)
            container.frozen = False
            raise InvalidRequest(f"The instance {ref.name!r} is being stopped")
    ctx.lifecycle("paused", ref)


async def unfreeze(ctx: Context, ref: InstanceRef) -> None:
    async with ctx.locks.hold("instance", ref):
        container = ctx.runtime.get(ref)
        if container is None or not container.frozen:
            raise InvalidRequest(f"The instance {ref.name!r} is not frozen")
        await ctx.helper.unfreeze(container.ref.storage_name, ctx.paths.containers)
        container.frozen = False
        undecided = ctx.runtime_paths(container).undecided
        if await in_thread(undecided.exists):  # it may have been moved: the user says that it was not
            await in_thread(undecided.unlink)
            await thaw_held(ctx, await load(ctx, ref), container)
    ctx.lifecycle("resumed", ref)


@asynccontextmanager
async def held(ctx: Context, container: Running) -> AsyncIterator[None]:
    """Keep a container's processes from running; does nothing if they are frozen already, or have ended.

    The caller holds the instance's lock. If the daemon is killed meanwhile, its next start thaws them. They
    stay frozen if it is undecided whether the container runs elsewhere (`RuntimePaths.undecided`).
    """
    if container.frozen or container.init.ended:
        yield
        return
    marker, undecided = ctx.runtime_paths(container).held, ctx.runtime_paths(container).undecided
    await in_thread(marker.touch)
    try:
        async with AsyncExitStack() as stack:
            frozen = freezer.frozen(container.init_pid, container.ref.storage_name, unless=undecided)
            try:
                await stack.enter_async_context(frozen)
            except HostError:
                if not container.init.ended:
                    raise
            faults.point("container held")
            yield
    finally:
        await in_thread(_forget_held, marker, undecided)


def _forget_held(marker: Path, undecided: Path) -> None:
    if not undecided.exists():
        marker.unlink(missing_ok=True)


@asynccontextmanager
async def held_all(ctx: Context, instances: Collection[InstanceRef]) -> AsyncIterator[None]:
    """Keep the processes of all running ones of some instances from running; holds the instances' locks."""
    async with AsyncExitStack() as stack:
        for ref in sorted(instances):
            await stack.enter_async_context(ctx.locks.hold("instance", ref))
            container = ctx.runtime.get(ref)
            if container is not None:
                await stack.enter_async_context(held(ctx, container))
        yield


async def thaw_held(ctx: Context, instance: Loaded, container: Running) -> None:
    """Thaw a container that was being held when the daemon was killed, unless it may run elsewhere."""
    marker, undecided = ctx.runtime_paths(container).held, ctx.runtime_paths(container).undecided
    if await in_thread(marker.exists) and not await in_thread(undecided.exists):
        await links.join(instance)
        await in_thread(cgroups.thaw_all, container.init_pid)
        container.frozen = False
        await in_thread(marker.unlink, missing_ok=True)

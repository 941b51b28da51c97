"""Reservation of unique resources of instances: names, MAC addresses, addresses, routes and ids."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

from utsuwa.instances.context import Context
from utsuwa.instances.model import Loaded
from utsuwa.networks.ports import Port, ports_of
from utsuwa.projects import scope


@asynccontextmanager
async def hold(ctx: Context, project: str = "", profiles: Iterable[str] = ()) -> AsyncIterator[None]:
    """Hold the lock under which these are chosen and stored; the host must not be changed meanwhile.

    It comes after the locks of instances, and those of the `profiles` of instances of a project, which do not
    change meanwhile.
    """
    async with AsyncExitStack() as locks:
        names = sorted(set(profiles))
        holder = await scope.effective(ctx.database, project, "profiles") if names else ""
        for name in names:
            await locks.enter_async_context(ctx.locks.hold("profile", holder, name))
        await locks.enter_async_context(ctx.database.locks.hold("allocations"))
        yield


async def check(ctx: Context, instances: Sequence[Loaded], volatile: Mapping[str, str] | None = None) -> None:
    """Raise InvalidConfig for network devices that do not match their network, or have conflicting addresses.

    `volatile` contains keys that an instance is about to get: its MAC addresses.
    """
    ports: list[Port] = []
    for one in instances:
        config = {**one.expanded_config, **(volatile or {})}
        ports += ports_of(one.project, one.name, one.expanded_devices, config)
    await ctx.networks.check({one.key for one in instances}, ports)

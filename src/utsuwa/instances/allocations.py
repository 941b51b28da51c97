"""Reservation of unique resources of instances: names, MAC addresses, addresses, routes and ids."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

from utsuwa.core.refs import InstanceRef
from utsuwa.instances.context import Context
from utsuwa.instances.model import Loaded
from utsuwa.networks.ports import Port, ports_of
from utsuwa.projects import scope


@asynccontextmanager
async def hold(ctx: Context, project: str = "", profiles: Iterable[str] = ()) -> AsyncIterator[None]:
    """Hold the lock under which they are chosen and stored; the host must not be changed meanwhile.

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


def ports(instance: Loaded, volatile: Mapping[str, str] | None = None) -> list[Port]:
    """Return the ports of an instance; `volatile` contains keys that it is about to get."""
    config = {**instance.data.config, **(volatile or {})}
    return list(ports_of(instance.ref, instance.expanded.devices, config))


async def check_changes(ctx: Context, instances: Sequence[tuple[Loaded, Loaded]]) -> None:
    """`check` instances, given before and after a change, as far as it is one of their ports."""
    changed = [new for old, new in instances if ports(old) != ports(new)]
    await check(ctx, changed, replaced=[old.ref for old, _ in instances])


async def check(
    ctx: Context,
    instances: Sequence[Loaded],
    volatile: Mapping[str, str] | None = None,
    replaced: Iterable[InstanceRef] = (),
) -> None:
    """Raise InvalidConfig for network devices that do not match their network, or have conflicting addresses.

    `volatile` contains keys that an instance is about to get: its MAC addresses. Those of `replaced`, which
    are the same instances under the names that they have now, are no conflict.
    """
    new = [port for instance in instances for port in ports(instance, volatile)]
    await ctx.networks.check({*replaced, *(one.ref for one in instances)}, new)

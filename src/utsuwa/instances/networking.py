"""What the networks are asked of instances before a change of these is stored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from utsuwa.instances.context import Context
from utsuwa.instances.model import Loaded
from utsuwa.networks.ports import Port, ports_of


async def check(ctx: Context, instances: Sequence[Loaded], volatile: Mapping[str, str] | None = None) -> None:
    """Refuse network devices that do not fit their network, or each other's addresses (InvalidConfig).

    `volatile` holds keys that an instance is about to be given: its MAC addresses. Between this and
    storing the instances the lock `idmap` is held, so that nobody else takes an address meanwhile.
    """
    ports: list[Port] = []
    for one in instances:
        config = {**one.expanded_config, **(volatile or {})}
        ports += ports_of(one.project, one.name, one.expanded_devices, config)
    await ctx.networks.check({one.key for one in instances}, ports)

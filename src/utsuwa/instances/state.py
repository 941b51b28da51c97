"""What instances use right now, and their records for the API."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

import msgspec

from utsuwa.core import clock
from utsuwa.core.errors import UtsuwaError
from utsuwa.core.idmap import IdMap
from utsuwa.host import cgroups
from utsuwa.instances.context import Context
from utsuwa.instances.exec import ExecTarget
from utsuwa.instances.model import Loaded, Running
from utsuwa.wire.instances import (
    Instance,
    InstanceFull,
    InstanceState,
    StateCpu,
    StateDisk,
    StateMemory,
    StateNetwork,
)

log = logging.getLogger(__name__)


def record(ctx: Context, instance: Loaded) -> Instance:
    """The instance as recursion=1 gives it; asks nothing of the host."""
    row = instance.row
    status = ctx.runtime.status(instance.key)
    return Instance(
        architecture=row.architecture,
        config=row.config,
        devices=row.devices,
        ephemeral=row.ephemeral,
        profiles=row.profiles,
        stateful=row.stateful,
        description=row.description,
        created_at=clock.to_wire(row.created_at),
        expanded_config=instance.expanded_config,
        expanded_devices=instance.expanded_devices,
        name=row.name,
        status=status.text,
        status_code=status.code,
        last_used_at=clock.to_wire(row.last_used_at),
        location="none",
        type="container",
        project=row.project,
    )


def running_target(ctx: Context, running: Running) -> ExecTarget:
    """A running container as commands see it; asks neither the database nor the host."""
    return ExecTarget(
        project=running.project,
        name=running.name,
        storage_name=running.storage_name,
        lxcpath=ctx.paths.containers,
        logs=ctx.paths.instance_logs(running.storage_name),
        config=running.config,
        idmap=running.idmap,
        running=True,
        frozen=running.frozen,
    )


def stopped_target(ctx: Context, instance: Loaded) -> ExecTarget:
    """A stopped one: it has logs, and commands are refused with a clear reason."""
    return ExecTarget(
        project=instance.project,
        name=instance.name,
        storage_name=instance.storage_name,
        lxcpath=ctx.paths.containers,
        logs=ctx.paths.instance_logs(instance.storage_name),
        config=instance.expanded_config,
        idmap=IdMap(),
        running=False,
    )


async def state(ctx: Context, instance: Loaded) -> InstanceState:
    """The state of one instance, with the disk space that it takes: the one figure that walks its files."""
    found = (await states(ctx, [instance]))[0]
    found.disk = await _disk(ctx, instance)
    return found


async def states(ctx: Context, instances: Sequence[Loaded]) -> list[InstanceState]:
    """The states of many instances, in their order: one pass over the cgroups, one look at the networks.

    Without disk usage: measuring it walks each instance's files, which a listing must not do.
    """
    running = {i.key: r for i in instances if (r := ctx.runtime.get(i.key)) is not None}
    pids = [r.init_pid for r in running.values()]
    usages = await asyncio.to_thread(cgroups.usage_of, pids)
    networks = await _networks(ctx, pids)
    found = []
    for instance in instances:
        container = running.get(instance.key)
        status = ctx.runtime.status(instance.key)
        one = InstanceState(status=status.text, status_code=status.code)
        if container is not None and (usage := usages.get(container.init_pid)) is not None:
            one.pid = container.init_pid
            one.cpu = StateCpu(usage=usage.cpu_ns)
            one.memory = StateMemory(
                usage=usage.memory,
                usage_peak=usage.memory_peak,
                swap_usage=usage.swap,
                swap_usage_peak=usage.swap_peak,
            )
            one.processes = usage.processes
            one.network = networks.get(container.init_pid)
        found.append(one)
    return found


async def full(ctx: Context, instances: Sequence[Loaded]) -> list[InstanceFull]:
    """The instances with their states, as recursion=2 gives them."""
    found = await states(ctx, instances)
    return [
        InstanceFull(**msgspec.structs.asdict(record(ctx, instance)), state=one, snapshots=None, backups=None)
        for instance, one in zip(instances, found, strict=True)
    ]


async def _networks(ctx: Context, pids: Sequence[int]) -> dict[int, dict[str, StateNetwork]]:
    try:
        return await ctx.helper.network_states(pids) if pids else {}
    except UtsuwaError as error:
        log.warning("no network states: %s", error)
        return {}


async def _disk(ctx: Context, instance: Loaded) -> dict[str, StateDisk]:
    name, _ = instance.root_disk()
    used = await ctx.storage.instance_usage(instance.pool, instance.storage_name)
    return {} if used is None else {name: StateDisk(usage=used)}

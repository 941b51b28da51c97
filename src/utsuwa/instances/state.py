"""What instances use right now, and their records for the API."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

from utsuwa.core import clock
from utsuwa.core.errors import UtsuwaError
from utsuwa.core.idmap import IdMap
from utsuwa.host.cgroups.usage import Usage
from utsuwa.instances.commands.exec import ExecTarget
from utsuwa.instances.context import Context, check_here, find_all
from utsuwa.instances.model import Loaded, Running, Status
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
    return Instance(**_shown(ctx, instance))


def status_of(ctx: Context, instance: Loaded) -> Status:
    """Of an instance on another member the one that it was left in, or brought into, when that was stored."""
    if instance.row.here:
        return ctx.runtime.status(instance.key)
    running = instance.row.config.get("volatile.last_state.power") == "RUNNING"
    return Status.RUNNING if running else Status.STOPPED


def _shown(ctx: Context, instance: Loaded) -> dict[str, Any]:
    """The fields of an `Instance`."""
    row = instance.row
    status = status_of(ctx, instance)
    return {
        "architecture": row.architecture,
        "config": row.config,
        "devices": row.devices,
        "ephemeral": row.ephemeral,
        "profiles": row.profiles,
        "stateful": row.stateful,
        "description": row.description,
        "created_at": clock.to_wire(row.created_at),
        "expanded_config": instance.expanded_config,
        "expanded_devices": instance.expanded_devices,
        "name": row.name,
        "status": status.text,
        "status_code": status.code,
        "last_used_at": clock.to_wire(row.last_used_at),
        "location": row.location,
        "type": "container",
        "project": row.project,
    }


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
        cache=running.attach_cache,
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
    """The state of one instance, with the disk space that it takes: the one figure that walks its files.

    Raises OtherMember.
    """
    found = (await states(ctx, [check_here(instance)]))[0]
    found.disk = await _disk(ctx, instance)
    return found


async def states(ctx: Context, instances: Sequence[Loaded]) -> list[InstanceState]:
    """The states of many instances, in their order, without disk usage: measuring that walks their files."""
    running = _running(ctx, instances)
    async with _asked(ctx, running) as asking:
        seen = await _look(running, asking)
    return [_state(ctx, instance, seen) for instance in instances]


async def full(ctx: Context, instances: Sequence[Loaded]) -> list[InstanceFull]:
    """The instances with their states, as recursion=2 gives them."""
    return _full(ctx, instances, await states(ctx, instances))


async def full_of_all(ctx: Context, project: str | None) -> list[InstanceFull]:
    """`full` for a project, or for all (None): a constant number of queries, one pass over the cgroups, and
    one request to the helper for all networks, which works on it meanwhile.
    """
    asked = [r for r in ctx.runtime.all() if project in (None, r.project)]
    async with _asked(ctx, asked) as asking:
        instances = await find_all(ctx, project)
        running = _running(ctx, instances)
        seen = await _look(running, asking)
    known = {r.init_pid for r in asked}
    new = [r for r in running if r.init_pid not in known]
    if new:  # started meanwhile
        async with _asked(ctx, new) as asking:
            seen |= await _look(new, asking)
    return _full(ctx, instances, [_state(ctx, instance, seen) for instance in instances])


def _full(ctx: Context, instances: Sequence[Loaded], found: Sequence[InstanceState]) -> list[InstanceFull]:
    return [
        InstanceFull(**_shown(ctx, instance), state=one, snapshots=None, backups=None)
        for instance, one in zip(instances, found, strict=True)
    ]


def _running(ctx: Context, instances: Sequence[Loaded]) -> list[Running]:
    return [r for i in instances if (r := ctx.runtime.get(i.key)) is not None]


AllNetworks = dict[int, dict[str, StateNetwork]]
"""Interfaces by the pid of the container's init; who has ended is left out."""
Seen = dict[int, tuple[Usage | None, dict[str, StateNetwork] | None]]
"""What containers use and their networks, by the pid of their init; None where it has ended."""


@asynccontextmanager
async def _asked(ctx: Context, running: Sequence[Running]) -> AsyncIterator[asyncio.Task[AllNetworks]]:
    """The helper is asked for networks, and works on it while other things are done."""
    asking = asyncio.create_task(_networks(ctx, [r.init_pid for r in running]))
    try:
        await asyncio.sleep(0)  # the request is sent before threads of ours take the processor
        yield asking
    finally:
        asking.cancel()


async def _look(running: Sequence[Running], asking: asyncio.Task[AllNetworks]) -> Seen:
    usages = await asyncio.to_thread(_usages, running) if running else {}
    networks = await asking
    return {r.init_pid: (usages.get(r.init_pid), networks.get(r.init_pid)) for r in running}


def _usages(running: Sequence[Running]) -> dict[int, Usage]:
    found = {}
    for container in running:
        with suppress(ProcessLookupError):
            found[container.init_pid] = container.meter.read()
    return found


async def _networks(ctx: Context, pids: Sequence[int]) -> AllNetworks:
    try:
        return await ctx.helper.network_states(pids) if pids else {}
    except UtsuwaError as error:
        log.warning("no network states: %s", error)
        return {}


def _state(ctx: Context, instance: Loaded, seen: Seen) -> InstanceState:
    status = status_of(ctx, instance)
    state = InstanceState(status=status.text, status_code=status.code)
    container = ctx.runtime.get(instance.key)
    usage, network = seen.get(container.init_pid, (None, None)) if container else (None, None)
    if container is not None and usage is not None:
        state.pid = container.init_pid
        state.cpu = StateCpu(usage=usage.cpu_ns)
        state.memory = StateMemory(
            usage=usage.memory,
            usage_peak=usage.memory_peak,
            swap_usage=usage.swap,
            swap_usage_peak=usage.swap_peak,
        )
        state.processes = usage.processes
        state.network = network
    return state


async def _disk(ctx: Context, instance: Loaded) -> dict[str, StateDisk]:
    name, _ = instance.root_disk()
    used = await ctx.storage.volumes.usage(instance.pool, instance.volume)
    return {} if used is None else {name: StateDisk(usage=used)}

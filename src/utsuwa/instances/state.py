"""The state and resource usage of instances, and their records for the API."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

from utsuwa.core import clock
from utsuwa.core.errors import UtsuwaError
from utsuwa.core.idmap import IdMap
from utsuwa.core.threads import in_thread
from utsuwa.db.instance_data import InstanceData
from utsuwa.host.cgroups.usage import Usage
from utsuwa.instances.commands.exec import ExecTarget
from utsuwa.instances.context import Context, check_here, find_all
from utsuwa.instances.model import Loaded, Running, Status
from utsuwa.profiles.expand import Expanded
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
    """Return the record of an instance for recursion=1, without accessing the host."""
    return Instance(**_shown(ctx, instance))


def status_of(ctx: Context, instance: Loaded) -> Status:
    """Return the status; for an instance on another member, the one that was last stored."""
    if instance.row.here:
        return ctx.runtime.status(instance.ref)
    running = instance.data.config.get("volatile.last_state.power") == "RUNNING"
    return Status.RUNNING if running else Status.STOPPED


def _shown(ctx: Context, instance: Loaded) -> dict[str, Any]:
    """Return the fields of an `Instance`."""
    row = instance.row
    status = status_of(ctx, instance)
    return {
        **shown_data(instance.data, instance.expanded),
        "created_at": clock.to_wire(row.created_at),
        "name": instance.name,
        "status": status.text,
        "status_code": status.code,
        "last_used_at": clock.to_wire(row.last_used_at) if row.last_used_at else clock.NEVER_USED,
        "location": row.location,
        "type": "container",
        "project": instance.project,
    }


def shown_data(data: InstanceData, expanded: Expanded) -> dict[str, Any]:
    """Return the fields that the records of instances and of snapshots have in common."""
    return {
        "architecture": data.architecture,
        "config": data.config,
        "devices": data.devices,
        "ephemeral": data.ephemeral,
        "profiles": data.profiles,
        "stateful": data.stateful,
        "description": data.description,
        "expanded_config": expanded.config,
        "expanded_devices": expanded.devices,
    }


def running_target(ctx: Context, running: Running) -> ExecTarget:
    """Return the target for commands in a running container, without accessing database or host."""
    return ExecTarget(
        instance=running.ref,
        lxcpath=ctx.paths.containers,
        logs=ctx.paths.instance_logs(running.ref.storage_name),
        config=running.config,
        idmap=running.idmap,
        running=True,
        frozen=running.frozen,
        cache=running.attach_cache,
    )


def stopped_target(ctx: Context, instance: Loaded) -> ExecTarget:
    """Return the target for a stopped instance, which has logs but rejects commands."""
    return ExecTarget(
        instance=instance.ref,
        lxcpath=ctx.paths.containers,
        logs=ctx.paths.instance_logs(instance.ref.storage_name),
        config=instance.expanded.config,
        idmap=IdMap(),
        running=False,
    )


async def state(ctx: Context, instance: Loaded) -> InstanceState:
    """Return the state of one instance, with its disk usage, for which its files are walked.

    Raises OtherMember.
    """
    found = (await states(ctx, [check_here(instance)]))[0]
    found.disk = await _disk(ctx, instance)
    return found


async def states(ctx: Context, instances: Sequence[Loaded]) -> list[InstanceState]:
    """Return the states of several instances, in this order, without disk usage, which is slow to measure."""
    running = _running(ctx, instances)
    async with request_networks(ctx, running) as request:
        seen = await _collect(running, request)
    return [_state(ctx, instance, seen) for instance in instances]


async def full(ctx: Context, instances: Sequence[Loaded]) -> list[InstanceFull]:
    """Return the records of instances for recursion=2, with their states."""
    return _full(ctx, instances, await states(ctx, instances))


async def full_of_all(ctx: Context, project: str | None) -> list[InstanceFull]:
    """As `full`, for a project or for all (None).

    With a constant number of queries, one pass over the cgroups, and one concurrent request to the helper for
    all networks.
    """
    asked = [r for r in ctx.runtime.all() if project in (None, r.ref.project)]
    async with request_networks(ctx, asked) as request:
        instances = await find_all(ctx, project)
        running = _running(ctx, instances)
        seen = await _collect(running, request)
    known = {r.init_pid for r in asked}
    new = [r for r in running if r.init_pid not in known]
    if new:  # started meanwhile
        async with request_networks(ctx, new) as request:
            seen |= await _collect(new, request)
    return _full(ctx, instances, [_state(ctx, instance, seen) for instance in instances])


def _full(ctx: Context, instances: Sequence[Loaded], found: Sequence[InstanceState]) -> list[InstanceFull]:
    return [
        InstanceFull(**_shown(ctx, instance), state=one, snapshots=None, backups=None)
        for instance, one in zip(instances, found, strict=True)
    ]


def _running(ctx: Context, instances: Sequence[Loaded]) -> list[Running]:
    return [r for i in instances if (r := ctx.runtime.get(i.ref)) is not None]


AllNetworks = dict[int, dict[str, StateNetwork]]
"""Interfaces by the pid of the container's init; containers that have ended are omitted."""
Measured = dict[int, tuple[Usage | None, dict[str, StateNetwork] | None]]
"""Resource usage and interfaces by the pid of the container's init; None if it has ended."""


@asynccontextmanager
async def request_networks(
    ctx: Context, running: Sequence[Running]
) -> AsyncIterator[asyncio.Task[AllNetworks]]:
    """Let the helper read the networks concurrently with the block."""
    request = asyncio.create_task(_networks(ctx, [r.init_pid for r in running]))
    try:
        await asyncio.sleep(0)  # send the request before threads of the daemon occupy the processors
        yield request
    finally:
        request.cancel()


async def _collect(running: Sequence[Running], request: asyncio.Task[AllNetworks]) -> Measured:
    usages = await in_thread(_usages, running) if running else {}
    networks = await request
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
        log.warning("cannot read the network states of containers: %s", error)
        return {}


def _state(ctx: Context, instance: Loaded, seen: Measured) -> InstanceState:
    status = status_of(ctx, instance)
    container = ctx.runtime.get(instance.ref)
    usage, network = seen.get(container.init_pid, (None, None)) if container else (None, None)
    if container is None or usage is None:
        return InstanceState(status=status.text, status_code=status.code)
    return InstanceState(
        status=status.text,
        status_code=status.code,
        memory=StateMemory(
            usage=usage.memory,
            usage_peak=usage.memory_peak,
            swap_usage=usage.swap,
            swap_usage_peak=usage.swap_peak,
        ),
        network=network,
        pid=container.init_pid,
        processes=usage.processes,
        cpu=StateCpu(usage=usage.cpu_ns),
    )


async def _disk(ctx: Context, instance: Loaded) -> dict[str, StateDisk]:
    name, _ = instance.expanded.root_disk()
    used = await ctx.storage.volumes.usage(instance.pool, instance.ref.volume)
    return {} if used is None else {name: StateDisk(usage=used)}

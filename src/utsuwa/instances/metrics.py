"""Metrics of running instances: one pass over their cgroups, one request for all their networks."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

from utsuwa.core.scope import Scope
from utsuwa.host.cgroups.accounting import Accounting, Memory
from utsuwa.host.mounts.filesystems import Space, root_space, types_by_device
from utsuwa.instances.context import Context
from utsuwa.instances.model import Running
from utsuwa.instances.state import request_networks
from utsuwa.wire import metrics
from utsuwa.wire.instances import NetworkCounters, StateNetwork
from utsuwa.wire.metrics import Family, Samples, labels

_MEMORY: Mapping[Family, Callable[[Memory], int]] = {
    metrics.MEMORY_ACTIVE_ANONYMOUS: lambda memory: memory.active_anonymous,
    metrics.MEMORY_ACTIVE_FILE: lambda memory: memory.active_file,
    metrics.MEMORY_CACHED: lambda memory: memory.cached,
    metrics.MEMORY_DIRTY: lambda memory: memory.dirty,
    metrics.MEMORY_INACTIVE_ANONYMOUS: lambda memory: memory.inactive_anonymous,
    metrics.MEMORY_INACTIVE_FILE: lambda memory: memory.inactive_file,
    metrics.MEMORY_MAPPED: lambda memory: memory.mapped,
    metrics.MEMORY_AVAILABLE: lambda memory: memory.available,
    metrics.MEMORY_FREE: lambda memory: memory.free,
    metrics.MEMORY_TOTAL: lambda memory: memory.total,
    metrics.MEMORY_OOM_KILLS: lambda memory: memory.oom_kills,
    metrics.MEMORY_RSS: lambda memory: memory.anonymous,
    metrics.MEMORY_SHARED: lambda memory: memory.shared,
    metrics.MEMORY_SWAP: lambda memory: memory.swap,
    metrics.MEMORY_UNEVICTABLE: lambda memory: memory.unevictable,
    metrics.MEMORY_WRITEBACK: lambda memory: memory.writeback,
}
_COUNTERS: Mapping[Family, Callable[[NetworkCounters], int]] = {
    metrics.RECEIVED_BYTES: lambda counters: counters.bytes_received,
    metrics.RECEIVE_DROPS: lambda counters: counters.packets_dropped_inbound,
    metrics.RECEIVE_ERRORS: lambda counters: counters.errors_received,
    metrics.RECEIVED_PACKETS: lambda counters: counters.packets_received,
    metrics.SENT_BYTES: lambda counters: counters.bytes_sent,
    metrics.SEND_DROPS: lambda counters: counters.packets_dropped_outbound,
    metrics.SEND_ERRORS: lambda counters: counters.errors_sent,
    metrics.SENT_PACKETS: lambda counters: counters.packets_sent,
}


async def collect(ctx: Context, scope: Scope, project: str | None, samples: Samples) -> None:
    """Add the samples of the running instances on this member, of a project or of all that are visible."""
    running = [
        one for one in ctx.runtime.all() if scope.sees(one.ref.project) and project in (None, one.ref.project)
    ]
    async with request_networks(ctx, running) as request:
        found = await asyncio.to_thread(_read, running) if running else {}
        networks = await request
    for one in sorted(running, key=lambda one: (one.ref.project, one.ref.name)):
        if one.init_pid not in found:  # it has ended meanwhile
            continue
        accounting, space = found[one.init_pid]
        base = labels((("name", one.ref.name), ("project", one.ref.project)))
        own = f'{base},type="container"'
        _add_accounting(samples, own, accounting)
        _add_networks(samples, own, networks.get(one.init_pid, {}))
        _add_filesystem(samples, base, space)


def _read(running: Sequence[Running]) -> dict[int, tuple[Accounting, Space]]:
    """Return accounting and space by the pid of the container's init; without those that have ended."""
    found, types = {}, types_by_device()
    for one in running:
        with suppress(ProcessLookupError):
            found[one.init_pid] = one.accounts.read(), root_space(one.init_pid, types)
    return found


def _add_accounting(samples: Samples, own: str, found: Accounting) -> None:
    for cpu, time in found.cpus.items():
        samples.add(metrics.CPU_SECONDS, time.system, f'cpu="{cpu}",mode="system",{own}')
        samples.add(metrics.CPU_SECONDS, time.user, f'cpu="{cpu}",mode="user",{own}')
    for device, disk in found.disks.items():
        labelled = f"{labels((('device', device),))},{own}"
        samples.add(metrics.DISK_READ_BYTES, disk.read_bytes, labelled)
        samples.add(metrics.DISK_READS, disk.reads, labelled)
        samples.add(metrics.DISK_WRITTEN_BYTES, disk.written_bytes, labelled)
        samples.add(metrics.DISK_WRITES, disk.writes, labelled)
    _add_memory(samples, own, found.memory)
    samples.add(metrics.PROCESSES, found.processes, own)


def _add_memory(samples: Samples, own: str, memory: Memory) -> None:
    for family, value in _MEMORY.items():
        samples.add(family, value(memory), own)
    samples.add(metrics.MEMORY_ACTIVE, memory.active_anonymous + memory.active_file, own)
    samples.add(metrics.MEMORY_INACTIVE, memory.inactive_anonymous + memory.inactive_file, own)


def _add_networks(samples: Samples, own: str, networks: Mapping[str, StateNetwork]) -> None:
    for name, network in networks.items():
        labelled = f"{labels((('device', name),))},{own}"
        for family, value in _COUNTERS.items():
            samples.add(family, value(network.counters), labelled)


def _add_filesystem(samples: Samples, base: str, space: Space) -> None:
    labelled = f'device="",{labels((("fstype", space.kind),))},mountpoint="/",{base}'
    samples.add(metrics.FILESYSTEM_AVAILABLE, space.available, labelled)
    samples.add(metrics.FILESYSTEM_FREE, space.free, labelled)
    samples.add(metrics.FILESYSTEM_SIZE, space.size, labelled)

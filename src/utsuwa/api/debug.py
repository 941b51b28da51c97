"""`/internal/debug`: what the daemon is doing, on all listeners and alone at `core.debug_address`."""

from __future__ import annotations

import asyncio

from utsuwa.api.http import Request, Result, Route, Sync
from utsuwa.core import inspection
from utsuwa.core.entitlements import Entitlement
from utsuwa.wire.debug import Memory, Stack

_TYPES = 100


async def show_tasks(request: Request) -> Result:
    return Sync(_stacks(inspection.tasks()))


async def show_threads(request: Request) -> Result:
    return Sync(_stacks(inspection.threads()))


async def show_memory(request: Request) -> Result:
    resident = await asyncio.to_thread(inspection.resident)
    counts = await asyncio.to_thread(inspection.object_counts)
    return Sync(Memory(resident=resident, objects=counts.total(), types=dict(counts.most_common(_TYPES))))


def _stacks(found: dict[str, list[str]]) -> list[Stack]:
    return [Stack(name=name, frames=frames) for name, frames in sorted(found.items())]


ROUTES: tuple[Route, ...] = tuple(
    # Not for callers that are restricted to projects, as they may not edit the server.
    Route("GET", f"/internal/debug/{name}", handler, summary, reply, entitlement=Entitlement.CAN_EDIT)
    for name, handler, summary, reply in (
        ("tasks", show_tasks, "Show what the daemon's tasks wait for", list[Stack]),
        ("threads", show_threads, "Show what the daemon's threads execute", list[Stack]),
        ("memory", show_memory, "Show what the daemon's memory holds", Memory),
    )
)

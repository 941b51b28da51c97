"""Keeping packets from a container that is saved in order to go on later or elsewhere.

CRIU lets them through again when it has saved a container. The kernel would confirm to the peers of TCP
connections what they send, although the processes that are saved have never received it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

from utsuwa.core.tasks import finish
from utsuwa.host.network import bridges
from utsuwa.instances.model import Loaded
from utsuwa.networks.ports import bridge_of


@contextlib.asynccontextmanager
async def cut(instance: Loaded, undecided: Path) -> AsyncIterator[None]:
    """Keep packets from passing during the block, and after it if the file `undecided` exists then.

    Raises HostError.
    """
    try:
        await finish(asyncio.to_thread(_set, instance, forwarding=False))
        yield
    finally:
        await finish(asyncio.to_thread(_end, instance, undecided))


async def join(instance: Loaded) -> None:
    """Let packets pass again; those of interfaces that are gone are ignored. Raises HostError."""
    await asyncio.to_thread(_set, instance, forwarding=True)


def _end(instance: Loaded, undecided: Path) -> None:
    if not undecided.exists():
        _set(instance, forwarding=True)


def _set(instance: Loaded, *, forwarding: bool) -> None:
    for name, device in instance.expanded.devices.items():
        port = instance.data.config.get(f"volatile.{name}.host_name", "")
        if port and bridge_of(device):
            bridges.set_forwarding(port, forwarding=forwarding)

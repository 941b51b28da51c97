"""Shutdown of the host, or of the daemon with its containers, which will be started again afterwards."""

from __future__ import annotations

import asyncio
import logging

from utsuwa.core.errors import UtsuwaError
from utsuwa.instances.context import Context
from utsuwa.instances.lifecycle import stop
from utsuwa.instances.model import Running
from utsuwa.instances.running_state import stop as stateful

log = logging.getLogger(__name__)

DEFAULT_TIMEOUT = 30
"""Seconds, the default of boot.host_shutdown_timeout."""


async def shutdown_all(ctx: Context, *, force: bool) -> None:
    """Stop all containers, by descending `boot.stop.priority`, those of equal priority concurrently.

    Each is killed after its `boot.host_shutdown_timeout`, or immediately with `force` or if its
    `boot.host_shutdown_action` is to be killed.
    """

    def rank(running: Running) -> int:
        return -int(running.config.get("boot.stop.priority") or 0)

    # Repeated, as containers that were being started may only be running later.
    while rest := [running for running in ctx.runtime.all() if not running.keep_power]:
        first = min(map(rank, rest))
        await asyncio.gather(
            *(_stop(ctx, running, force=force) for running in rest if rank(running) == first)
        )


def clean_stop_seconds(running: Running) -> int:
    """Return how long a container may take to stop by itself when that is not waited for without end."""
    return int(running.config.get("boot.host_shutdown_timeout") or DEFAULT_TIMEOUT)


async def _stop(ctx: Context, running: Running, *, force: bool) -> None:
    running.keep_power = True
    force = force or running.config.get("boot.host_shutdown_action") == "force-stop"
    timeout = clean_stop_seconds(running)
    try:
        if not force and running.config.get("boot.host_shutdown_action") == "stateful-stop":
            try:
                await stateful.stop_stateful(ctx, running.ref)
                return
            except UtsuwaError as error:
                log.warning("the state of instance %r is not saved: %s", running.name, error)
        if not force and not running.frozen and timeout > 0:
            try:
                await stop.stop(ctx, running.ref, force=False, seconds=timeout)
                return
            except stop.NotStoppedInTime:
                log.warning("instance %r did not stop within %d s and is killed", running.name, timeout)
        await stop.kill(ctx, running)
    except UtsuwaError as error:
        log.error("cannot stop instance %r: %s", running.name, error)

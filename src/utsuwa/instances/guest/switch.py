"""Showing and hiding the guest API in a running instance.

The directory of an instance's socket exists exactly as long as it is mounted inside, whatever is interrupted:
the next start of the daemon compares it with the config.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping

from utsuwa.core import faults
from utsuwa.core.errors import HostError, UtsuwaError
from utsuwa.core.refs import InstanceRef
from utsuwa.core.rollback import Rollback
from utsuwa.core.threads import in_thread
from utsuwa.devices import DeviceHost
from utsuwa.host.mounts import detached
from utsuwa.instances.context import Context
from utsuwa.instances.guest.sockets import PLACES, is_enabled
from utsuwa.instances.model import Running

log = logging.getLogger(__name__)

_READ_ONLY = detached.Options(read_only=True)


async def change_running(
    ctx: Context, host: DeviceHost, running: Running, new: Mapping[str, str], undo: Rollback
) -> None:
    """Change a running instance to the expanded config `new`. Raises HostError."""
    before, after = is_enabled(running.config), is_enabled(new)
    if before == after:
        return
    undo.push(_show if before else _hide, ctx, host)
    await (_show if after else _hide)(ctx, host)


async def restore(ctx: Context, host: DeviceHost) -> None:
    """Listen again for a running instance when the daemon starts, and complete or undo an interrupted change.

    Failures are logged: the instance runs on without the guest API.
    """
    exists = await in_thread(ctx.guest_sockets.folder(host.instance).exists)
    try:
        match is_enabled(host.config), exists:
            case True, True:
                await _listen(ctx, host.instance)
            case True, False:  # also if it was started by a version without the guest API
                await _show(ctx, host)
            case False, True:
                await _hide(ctx, host)
            case _:
                pass
    except UtsuwaError as error:
        log.error("instance %r has no guest API: %s", host.instance.name, error.message)


async def _listen(ctx: Context, ref: InstanceRef) -> None:
    ctx.guest_sockets.close(ref)
    try:
        await in_thread(ctx.guest_sockets.make, ref)
    except OSError as error:
        raise HostError(f"The socket of the guest API cannot be created: {error}") from error


async def _show(ctx: Context, host: DeviceHost) -> None:
    await _listen(ctx, host.instance)
    for place in PLACES:
        try:
            tree = await in_thread(detached.copy_of, ctx.guest_sockets.folder(host.instance), _READ_ONLY)
        except OSError as error:
            raise HostError(f"The guest API cannot be mounted: {error}") from error
        try:
            # An interrupted change may have left the mount of a directory that has been removed since.
            await host.container.unmount(place)
            await host.container.mount(tree, place)
        finally:
            os.close(tree)
        faults.point("guest API mounted")


async def _hide(ctx: Context, host: DeviceHost) -> None:
    ctx.guest_sockets.close(host.instance)
    await in_thread(ctx.guest_sockets.remove, host.instance)
    faults.point("guest API removed")
    for place in PLACES:
        await host.container.unmount(place)

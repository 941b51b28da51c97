"""The persistent identity of instances: id maps and addresses of devices."""

from __future__ import annotations

import logging
import platform
import uuid
from collections.abc import Sequence
from dataclasses import replace

from utsuwa.core.config_keys import parse_bool
from utsuwa.core.errors import InvalidRequest
from utsuwa.core.idmap import IdMap
from utsuwa.core.threads import in_thread
from utsuwa.core.warning_types import IDS_LOST
from utsuwa.db import idmaps as stored_idmaps
from utsuwa.db.instances import InstanceRow
from utsuwa.host.mounts import mounts
from utsuwa.instances import allocations
from utsuwa.instances.context import Context
from utsuwa.instances.lifecycle import device_host, device_steps
from utsuwa.instances.model import Loaded
from utsuwa.security import idmap

log = logging.getLogger(__name__)

_IDMAP_KEYS = (
    "security.privileged",
    "security.nesting",
    "security.idmap.isolated",
    "security.idmap.base",
    "security.idmap.size",
    "raw.idmap",
)


def machine() -> str:
    """Return the kernel's name of this host's architecture."""
    return platform.machine()


def next_idmap(instance: Loaded) -> IdMap:
    """Return the id map of the next start."""
    return _stored_idmap(instance, "next")


def current_idmap(instance: Loaded) -> IdMap:
    """Return the id map with which the container was started last."""
    return _stored_idmap(instance, "current")


def _stored_idmap(instance: Loaded, which: str) -> IdMap:
    """Return the map stored in a volatile key; unset means privileged."""
    return idmap.from_json(instance.data.config.get(f"volatile.idmap.{which}", ""))


async def reserve(ctx: Context, instance: Loaded) -> dict[str, str]:
    """Choose the volatile keys of a new instance. `allocations` must be held until its row is stored."""
    chosen = await choose_idmap(ctx, instance, provisional=True)
    host = device_host.host_of(ctx, instance, IdMap())
    added = {key: value for key, value in device_steps.add_all(host).items() if value is not None}
    return {**chosen, "volatile.last_state.idmap": "[]", **added}


async def choose_idmap(
    ctx: Context, instance: Loaded, changed: Sequence[InstanceRow] = (), *, provisional: bool = False
) -> dict[str, str]:
    """Choose the id map for the next start; an isolated one does not overlap those of other instances.

    `changed` are rows of other instances as they are about to be stored. A `provisional` map is replaced when
    the instance starts, which fails then if root may not map all ids of `raw.idmap`.

    Raises InvalidConfig for settings that cannot be satisfied, HostError if root has no subordinate ids.
    """
    host = await in_thread(idmap.read_host_ids)
    config = instance.expanded.config
    isolated = parse_bool(config.get("security.idmap.isolated", ""))
    taken = await _held_by_others(ctx, instance, host, changed) if isolated else ()
    choice = idmap.choose(config, host, taken, provisional=provisional)
    return {
        "volatile.idmap.base": str(choice.base),
        "volatile.idmap.next": idmap.to_json(choice.idmap),
    }


async def with_permitted_idmap(ctx: Context, instance: Loaded) -> Loaded:
    """Return an instance that is about to start, with a new id map if the previous one is provisional, or
    root has lost ids of it.

    Ids that no longer belong to root may be assigned to other users, who would then own the instance's
    processes and files. If owners on disk depend on the id map, storage shifts them on mount. Raises as
    `choose_idmap`.
    """
    host = await in_thread(idmap.read_host_ids)
    stored = next_idmap(instance)
    lost = not idmap.permitted(stored, host)
    if not lost and not idmap.lacks_raw(instance.expanded.config, stored):
        return instance
    async with allocations.hold(ctx):
        chosen = await choose_idmap(ctx, instance)
        await ctx.patch_config(instance.row.id, chosen)
    if lost:
        log.warning(
            "instance %r gets other ids: /etc/subuid and /etc/subgid no longer assign its previous ones to "
            "root",
            instance.name,
        )
    return replace(instance, row=instance.row.with_config({**instance.data.config, **chosen}))


async def refuse_shift(ctx: Context, instance: Loaded) -> None:
    """Raise InvalidRequest if a mount would shift the owners of a protected instance's files on disk.

    `security.protection.shift` prevents this, as it takes long and changes each file. With idmapped mounts,
    owners on disk do not depend on the id map.
    """
    if not parse_bool(instance.expanded.config.get("security.protection.shift", "")):
        return
    if next_idmap(instance) == current_idmap(instance):
        return
    folder = ctx.storage.volumes.folder(instance.pool, instance.ref.volume)
    if not await in_thread(mounts.can_idmap, folder):
        raise InvalidRequest(
            f"The instance {instance.name!r} is protected against shifting the owners of its files, which "
            "its id map requires here: restore the previous one, or unset security.protection.shift"
        )


async def warn_of_lost_ids(ctx: Context, instance: Loaded) -> None:
    """Warn if a running instance has ids that root has lost, which it keeps until it is restarted."""
    host = await in_thread(idmap.read_host_ids)
    if not idmap.permitted(current_idmap(instance), host):
        ctx.warnings.report(
            IDS_LOST,
            f"instance {instance.name!r} is running with ids that /etc/subuid and /etc/subgid no longer "
            "assign to root: restart it to get others",
            instance.subject,
        )


async def _held_by_others(
    ctx: Context, instance: Loaded, host: idmap.HostIds, changed: Sequence[InstanceRow]
) -> set[idmap.HostRange]:
    stored = await ctx.database.read("id maps of instances", stored_idmaps.of_others, instance.row.id)
    others = {stored_idmaps.stored_maps(row.data.config) for row in changed if row.ref != instance.ref}
    held = idmap.held_on(host)
    return {ids for maps in stored | others for ids in held(*maps)}


async def after_change(
    ctx: Context, old: Loaded, new: Loaded, changed: Sequence[InstanceRow]
) -> dict[str, str]:
    """Choose another id map for the next start if the change from `old` to `new` requires it.

    `changed` are rows of other instances that the same transaction stores.
    """
    same = all(old.expanded.config.get(k, "") == new.expanded.config.get(k, "") for k in _IDMAP_KEYS)
    running = ctx.runtime.get(old.ref) is not None
    return {} if same else await choose_idmap(ctx, new, changed, provisional=not running)


_CLOUD_INIT_DATA = tuple(
    f"{prefix}.{name}"
    for prefix in ("cloud-init", "user")
    for name in ("network-config", "user-data", "vendor-data")
)


def renewed(old: Loaded, new: Loaded) -> dict[str, str]:
    """Return a new id for cloud-init if the change from `old` to `new` requires that it runs again.

    That is a change of its data, or of the names of network interfaces.
    """
    before, after = old.expanded.config, new.expanded.config
    same = all(before.get(key, "") == after.get(key, "") for key in _CLOUD_INIT_DATA)
    return {} if same and _interfaces(old) == _interfaces(new) else new_cloud_init_id()


def new_cloud_init_id() -> dict[str, str]:
    """Return the key by which an instance is a new one for cloud-init."""
    return {"volatile.cloud-init.instance-id": str(uuid.uuid4())}


def _interfaces(instance: Loaded) -> set[str]:
    config = instance.expanded.config
    return {
        device.get("name") or config.get(f"volatile.{name}.name") or name
        for name, device in instance.expanded.devices.items()
        if device.get("type") == "nic"
    }

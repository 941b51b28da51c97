"""The persistent identity of instances: id maps and addresses of devices."""

from __future__ import annotations

import asyncio
import logging
import platform
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from utsuwa.core.config_keys import parse_bool
from utsuwa.core.idmap import IdMap
from utsuwa.db import instances as instance_rows
from utsuwa.db.instances import InstanceRow
from utsuwa.instances import allocations
from utsuwa.instances.context import Context
from utsuwa.instances.lifecycle import device_steps
from utsuwa.instances.model import Loaded
from utsuwa.security import idmap

log = logging.getLogger(__name__)

_IDMAP_KEYS = (
    "security.privileged",
    "security.idmap.isolated",
    "security.idmap.base",
    "security.idmap.size",
    "raw.idmap",
)


def machine() -> str:
    """The architecture of this host by the kernel's name for it."""
    return platform.machine()


def idmap_of(config: Mapping[str, str], key: str) -> IdMap:
    """Return the map stored in a volatile key; unset means privileged."""
    return idmap.from_json(config.get(key, ""))


async def reserve(ctx: Context, instance: Loaded) -> dict[str, str]:
    """The volatile keys of a new instance; call with `allocations` held until its row is stored."""
    chosen = await choose_idmap(ctx, instance)
    host = device_steps.host_of(ctx, instance, IdMap())
    added = {key: value for key, value in device_steps.add_all(host).items() if value is not None}
    return {**chosen, "volatile.last_state.idmap": "[]", **added}


async def choose_idmap(ctx: Context, instance: Loaded, changed: Sequence[InstanceRow] = ()) -> dict[str, str]:
    """The map for the next start, chosen beside those that other instances hold for themselves.

    `changed` are rows of others as they are about to be stored.

    Raises InvalidConfig for settings that do not fit, HostError where root has no ids to give.
    """
    host = await asyncio.to_thread(idmap.read_host_ids)
    config = instance.expanded_config
    isolated = parse_bool(config.get("security.idmap.isolated", ""))
    choice = idmap.choose(
        config, host, await _held_by_others(ctx, instance, host, changed) if isolated else ()
    )
    return {
        "volatile.idmap.base": str(choice.base),
        "volatile.idmap.next": idmap.to_json(choice.idmap),
    }


async def with_permitted_idmap(ctx: Context, instance: Loaded) -> Loaded:
    """An instance that is about to start, its map chosen anew where root has lost ids of the last one.

    Ids that are not root's any more can be given to other users, who would then own the instance's
    processes and files. The storage moves the files' owners when it mounts them, where they are on disk
    at all. Raises as `choose_idmap`.
    """
    host = await asyncio.to_thread(idmap.read_host_ids)
    if idmap.permitted(idmap_of(instance.row.config, "volatile.idmap.next"), host):
        return instance
    async with allocations.hold(ctx):
        chosen = await choose_idmap(ctx, instance)
        await ctx.patch_config(instance.row.id, chosen)
    log.warning(
        "instance %r gets other ids: by /etc/subuid and /etc/subgid root no longer has those that it had",
        instance.name,
    )
    return replace(instance, row=replace(instance.row, config={**instance.row.config, **chosen}))


async def warn_of_lost_ids(instance: Loaded) -> None:
    """Tell that a running instance has ids which root has lost; they stay until it is started again."""
    host = await asyncio.to_thread(idmap.read_host_ids)
    if not idmap.permitted(idmap_of(instance.row.config, "volatile.idmap.current"), host):
        log.warning(
            "instance %r runs with ids that root no longer has by /etc/subuid and /etc/subgid: "
            "restart it, so that it gets others",
            instance.name,
        )


async def _held_by_others(
    ctx: Context, instance: Loaded, host: idmap.HostIds, changed: Sequence[InstanceRow]
) -> list[idmap.HostRange]:
    rows = [*await ctx.database.read("instances", instance_rows.get_here), *changed]
    others = [row for row in rows if (row.project, row.name) != instance.key]
    return [held for row in others for held in idmap.held_ranges(row.config, host)]


async def after_change(
    ctx: Context, old: Loaded, new: Loaded, changed: Sequence[InstanceRow]
) -> dict[str, str]:
    """The map for the next start where a change of `old` to `new` asks for another one.

    `changed` are the rows of other instances that the same transaction stores.
    """
    same = all(old.expanded_config.get(k, "") == new.expanded_config.get(k, "") for k in _IDMAP_KEYS)
    return {} if same else await choose_idmap(ctx, new, changed)


def boot_id() -> str:
    """The kernel's id of this boot of the machine."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()

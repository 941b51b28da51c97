"""Changing instances: their own config and devices, or a profile below them; all of it or nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import msgspec

from utsuwa.core.errors import InvalidConfig, InvalidRequest, NotSupportedYet
from utsuwa.core.rollback import Rollback
from utsuwa.db import instances as instance_rows
from utsuwa.db.instances import InstanceRow
from utsuwa.db.profiles import ProfileRow
from utsuwa.instances import device_steps, identity
from utsuwa.instances.context import Context, load, load_all, merge, profiles_named
from utsuwa.instances.create import check_whole
from utsuwa.instances.model import Loaded
from utsuwa.wire.instances import InstancePatch, InstancePut

_OWN_VOLATILE = ("volatile.base_image", "volatile.uuid", "volatile.idmap.", "volatile.last_state.")
"""What the daemon alone writes: a request that lacks or changes it leaves it as it is."""


async def check_put(ctx: Context, project: str, name: str, request: InstancePut) -> None:
    """Raise at once what `put` would find wrong with the request itself."""
    await _judged(ctx, _replaced(await load(ctx, project, name), request))


async def put(ctx: Context, project: str, name: str, request: InstancePut) -> None:
    """Replace the editable part of an instance; a container that runs is changed with it.

    Raises InvalidConfig, NotFound (profiles) or InvalidRequest, everything being as before.
    """
    async with ctx.locks.hold("instance", project, name):
        old = await load(ctx, project, name)
        await _apply(ctx, old, _replaced(old, request))
    ctx.lifecycle("updated", project, name)


def _replaced(old: Loaded, request: InstancePut) -> InstanceRow:
    if request.restore:
        raise NotSupportedYet("Restoring snapshots is not supported yet")
    return replace(
        old.row,
        architecture=request.architecture or old.row.architecture,
        config=_with_own_volatile(old.row.config, request.config),
        devices={key: dict(device) for key, device in request.devices.items()},
        ephemeral=request.ephemeral,
        profiles=list(request.profiles),
        description=request.description,
    )


async def patch(ctx: Context, project: str, name: str, request: InstancePatch) -> None:
    """Merge a part into an instance: config by key (an empty value stays as one), devices by name."""
    async with ctx.locks.hold("instance", project, name):
        old = await load(ctx, project, name)
        row = old.row
        if not isinstance(request.config, msgspec.UnsetType):
            merged = {**row.config, **request.config}
            row = replace(row, config=_with_own_volatile(row.config, merged))
        if not isinstance(request.devices, msgspec.UnsetType):
            devices = {**row.devices, **{key: dict(device) for key, device in request.devices.items()}}
            row = replace(row, devices=devices)
        if not isinstance(request.profiles, msgspec.UnsetType):
            row = replace(row, profiles=list(request.profiles))
        if not isinstance(request.ephemeral, msgspec.UnsetType):
            row = replace(row, ephemeral=request.ephemeral)
        if not isinstance(request.description, msgspec.UnsetType):
            row = replace(row, description=request.description)
        if not isinstance(request.architecture, msgspec.UnsetType) and request.architecture:
            row = replace(row, architecture=request.architecture)
        await _apply(ctx, old, row)
    ctx.lifecycle("updated", project, name)


def _with_own_volatile(old: Mapping[str, str], new: Mapping[str, str]) -> dict[str, str]:
    kept = {key: value for key, value in old.items() if key.startswith(_OWN_VOLATILE)}
    others = {key: value for key, value in new.items() if not key.startswith(_OWN_VOLATILE) and value != ""}
    return {**others, **kept}


async def _judged(ctx: Context, row: InstanceRow) -> Loaded:
    """The changed instance with its profiles merged in; refuses one that is not valid as a whole."""
    if len(set(row.profiles)) != len(row.profiles):
        raise InvalidRequest("A profile is named twice")
    async with ctx.database.read() as conn:
        return check_whole(merge(row, await profiles_named(conn, row.project, row.profiles)))


async def _apply(ctx: Context, old: Loaded, row: InstanceRow) -> None:
    new = await _judged(ctx, row)
    async with ctx.locks.hold("idmap"), Rollback() as undo:
        new = await change(ctx, old, new, undo)
        async with ctx.database.write("update instance") as conn:
            await instance_rows.update(conn, new.row)
        _remember(ctx, new)
        undo.keep()


async def change(ctx: Context, old: Loaded, new: Loaded, undo: Rollback) -> Loaded:
    """Bring the host from `old` to `new`, both merged; gives `new` with the volatile keys that came of it."""
    _refuse_root_move(old, new)
    idmap = identity.idmap_of(old.row.config, "volatile.idmap.current")
    running = ctx.runtime.get(old.key)
    host = device_steps.host_of(ctx.paths, new, idmap, running.init_pid if running else None)
    volatile: dict[str, str | None] = {}
    if new.expanded_devices != old.expanded_devices:
        volatile.update(_forgotten(old, new))
        if running is not None:
            steps = await device_steps.change_running(host, running.devices, new.expanded_devices, undo)
            volatile.update(steps.volatile)
        else:
            volatile.update(device_steps.add_all(host))
    volatile.update(await identity.after_change(ctx, old, new))
    config = {**new.row.config, **{k: v for k, v in volatile.items() if v is not None}}
    for key in [k for k, v in volatile.items() if v is None]:
        config.pop(key, None)
    return replace(new, row=replace(new.row, config=config))


def _refuse_root_move(old: Loaded, new: Loaded) -> None:
    if old.pool != new.pool:
        raise InvalidConfig(
            f"The root disk cannot move from pool {old.pool!r} to {new.pool!r} by a change of its device"
        )


def _forgotten(old: Loaded, new: Loaded) -> dict[str, str | None]:
    """Volatile keys of devices that the instance no longer has."""
    gone = old.expanded_devices.keys() - new.expanded_devices.keys()
    prefixes = tuple(f"volatile.{name}." for name in gone)
    return {key: None for key in old.row.config if prefixes and key.startswith(prefixes)}


def _remember(ctx: Context, new: Loaded) -> None:
    running = ctx.runtime.get(new.key)
    if running is not None:
        running.devices = new.expanded_devices
        running.config = new.expanded_config


class ProfileFollower:
    """Applies changed profiles to the instances that use them; a change that one refuses is refused whole."""

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx

    async def __call__(self, old: ProfileRow, new: ProfileRow, undo: Rollback) -> None:
        """Called before the new profile is stored; `undo` runs where storing it fails."""
        ctx = self._ctx
        users = [i for i in await load_all(ctx, old.project) if old.name in i.row.profiles]
        if not users:
            return
        async with ctx.database.read() as conn:
            profiles = {p.name: p for p in await profiles_named(conn, old.project, _all_profiles(users))}
        profiles[old.name] = new
        for before in users:
            after = check_whole(merge(before.row, [profiles[name] for name in before.row.profiles]))
            _refuse_root_move(before, after)
        for before in users:
            after = merge(before.row, [profiles[name] for name in before.row.profiles])
            changed = await change(ctx, before, after, undo)
            if changed.row != before.row:
                async with ctx.database.write("follow profile") as conn:
                    await instance_rows.update(conn, changed.row)
            _remember(ctx, changed)


def _all_profiles(instances: Sequence[Loaded]) -> list[str]:
    return sorted({name for instance in instances for name in instance.row.profiles})

"""Changing instances: their own config and devices, or a profile below them; all of it or nothing."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import (
    AbstractContextManager,
    AsyncExitStack,
    asynccontextmanager,
    contextmanager,
    nullcontext,
    suppress,
)
from dataclasses import dataclass, replace

from utsuwa import devices as device_types
from utsuwa.core.errors import Busy, InvalidConfig, NotFound, NotSupportedYet
from utsuwa.core.rollback import Rollback
from utsuwa.core.scope import Policy
from utsuwa.db import device_changes
from utsuwa.db import instances as instance_rows
from utsuwa.db.codes import State
from utsuwa.db.device_changes import Changes
from utsuwa.db.instances import InstanceRow
from utsuwa.db.profiles import ProfileRow
from utsuwa.db.transaction import Transaction
from utsuwa.devices import DeviceHost
from utsuwa.instances import allocations, identity
from utsuwa.instances.confinement import cpu_balance, limits
from utsuwa.instances.confinement.lxcconf import check_raw_lxc
from utsuwa.instances.context import Context, load, load_all, merge, profiles_named
from utsuwa.instances.lifecycle import device_steps
from utsuwa.instances.lifecycle.create import (
    check_by_liblxc,
    is_own_volatile,
    known_architecture,
    merged,
)
from utsuwa.instances.model import Loaded, Running
from utsuwa.instances.policy import judge
from utsuwa.wire.edits import Change, IfMatch, edited
from utsuwa.wire.instances import InstancePut

Edit = Change[InstancePut]


def editable(instance: Loaded) -> InstancePut:
    row = instance.row
    return InstancePut(
        architecture=row.architecture,
        config=row.config,
        devices=row.devices,
        ephemeral=row.ephemeral,
        profiles=row.profiles,
        description=row.description,
    )


async def check(
    ctx: Context, policy: Policy, project: str, name: str, wanted: Edit, if_match: IfMatch
) -> None:
    """Raise what `edit` would raise for what is asked, were it done now."""
    old = await load(ctx, project, name)
    await _judged(ctx, policy, old, _edited(old, wanted, if_match))


async def edit(
    ctx: Context, policy: Policy, project: str, name: str, wanted: Edit, if_match: IfMatch
) -> None:
    """Change the editable part of an instance; a container that runs is changed with it.

    Raises NotFound (instance, profiles), PreconditionFailed, InvalidConfig or InvalidRequest, all being as
    before.
    """
    async with ctx.locks.hold("instance", project, name):
        old = await load(ctx, project, name)
        await _apply(ctx, policy, old, _edited(old, wanted, if_match))
    ctx.lifecycle("updated", project, name)


def _edited(old: Loaded, wanted: Edit, if_match: IfMatch) -> InstanceRow:
    new = edited(editable(old), wanted, if_match)
    if new.restore:
        raise NotSupportedYet("Restoring snapshots is not supported yet")
    return replace(
        old.row,
        architecture=known_architecture(new.architecture) or old.row.architecture,
        config=_with_own_volatile(old.row.config, _with_volatile(old.row.config, new.config)),
        devices={key: dict(device) for key, device in new.devices.items()},
        ephemeral=new.ephemeral,
        profiles=list(new.profiles),
        description=new.description,
    )


def _with_volatile(old: Mapping[str, str], new: Mapping[str, str]) -> Mapping[str, str]:
    """A config without any volatile key comes from a client that does not deal with them, and not from one
    that took all of them away: the instance keeps its addresses, its id for cloud-init, and the templates
    that are still to be written.
    """
    if any(key.startswith("volatile.") for key in new):
        return new
    return {**{key: value for key, value in old.items() if key.startswith("volatile.")}, **new}


def _with_own_volatile(old: Mapping[str, str], new: Mapping[str, str]) -> dict[str, str]:
    kept = {key: value for key, value in old.items() if is_own_volatile(key)}
    others = {key: value for key, value in new.items() if not is_own_volatile(key) and value != ""}
    return {**others, **kept}


async def _judged(ctx: Context, policy: Policy, old: Loaded, row: InstanceRow) -> Loaded:
    """The changed instance with its profiles merged in; refuses one that is not valid as a whole."""
    new = judge(await merged(ctx, row), policy)
    _check_change(ctx, old, new)
    await limits.check_change(old.expanded_config, new.expanded_config)
    await allocations.check(ctx, [new])
    await check_by_liblxc(ctx, new, old)
    return new


async def _apply(ctx: Context, policy: Policy, old: Loaded, row: InstanceRow) -> None:
    async with Rollback() as undo:
        plan = await _judged_and_reserved(ctx, policy, old, row, undo)
        changed = await _act(ctx, plan, undo)
        async with allocations.hold(ctx, row.project, row.profiles):
            if await merged(ctx, row) != plan.instances[0][1]:
                raise Busy("A profile of the instance was changed at the same moment: try again")
            await _store(ctx, plan, changed)
        undo.keep()
    await ctx.networks.refresh(old.key)


async def _judged_and_reserved(
    ctx: Context, policy: Policy, old: Loaded, row: InstanceRow, undo: Rollback
) -> Plan:
    """Judge by the profiles as they are when the reservation is made."""
    while True:
        new = await _judged(ctx, policy, old, row)
        async with allocations.hold(ctx, row.project, row.profiles):
            if await merged(ctx, row) == new:
                return await _reserve(ctx, [(old, new)], undo)


@dataclass(frozen=True)
class Plan:
    """Changes of some instances, from what they are to what is wanted; all of them or none."""

    instances: Sequence[tuple[Loaded, Loaded]]
    devices: Mapping[int, Changes]
    """What becomes of devices, by the id of the instance's row."""
    named: bool
    """Whether an error has to name its instance, which the caller did not."""

    def naming(self, instance: Loaded) -> AbstractContextManager[None]:
        return _naming(instance) if self.named else nullcontext()


async def _reserve(
    ctx: Context, instances: Sequence[tuple[Loaded, Loaded]], undo: Rollback, *, named: bool = False
) -> Plan:
    """Keep what the changes need from others, until they are stored or `undo` runs. Raises InvalidConfig."""
    await allocations.check(ctx, [new for _, new in instances])
    devices: dict[int, Changes] = {}
    plan = Plan(instances, devices, named)
    for old, new in instances:
        if old.expanded_devices != new.expanded_devices:
            with plan.naming(old):
                devices[old.row.id] = await _planned(ctx, old, new)
    if devices:
        undo.push(ctx.database.write, "change taken back", device_changes.forget, list(devices))
        await ctx.database.begin("change begins", device_changes.note, devices)
    return plan


async def _planned(ctx: Context, old: Loaded, new: Loaded) -> Changes:
    running = ctx.runtime.get(old.key)
    host = _host(ctx, old, new, running)
    before = old.expanded_devices if running is None else running.devices
    return await device_steps.plan_change(host, before, new.expanded_devices, running=running is not None)


async def _act(ctx: Context, plan: Plan, undo: Rollback) -> list[Loaded]:
    """Bring the host to what is planned, after which the CPUs are handed out anew."""
    undo.push(cpu_balance.rebalance, ctx)  # the last to be undone: by then all want again what they had
    changed = []
    for old, new in plan.instances:
        with plan.naming(old):
            changed.append(await _change(ctx, old, new, plan.devices.get(old.row.id, {}), undo))
    await cpu_balance.rebalance(ctx, must_move=[new.key for new in changed])
    return changed


async def _store(ctx: Context, plan: Plan, changed: Sequence[Loaded]) -> None:
    """Store all of them in one transaction, each with the id map of its next start."""
    rows: list[InstanceRow] = []
    for (old, _), new in zip(plan.instances, changed, strict=True):
        with plan.naming(old):
            config = {**new.row.config, **await identity.after_change(ctx, old, new, rows)}
        rows.append(replace(new.row, config=config))
    await ctx.database.write("update instance", _update_all, rows)
    for new in changed:
        _remember(ctx, new)


@contextmanager
def _naming(instance: Loaded) -> Iterator[None]:
    """Say which of the instances with a profile refuses its change."""
    try:
        yield
    except InvalidConfig as error:
        raise InvalidConfig(f"Instance {instance.name!r}: {error.message}") from error


async def _change(ctx: Context, old: Loaded, new: Loaded, changes: Changes, undo: Rollback) -> Loaded:
    """Bring the host from `old` to `new`, both merged; gives `new` with the volatile keys that came of it."""
    running = ctx.runtime.get(old.key)
    host = _host(ctx, old, new, running)
    volatile = _forgotten(old, new)
    if new.root_size != old.root_size and new.row.state == "ready":
        undo.push(ctx.storage.volumes.set_size, old.pool, old.volume, old.root_size)
        await ctx.storage.volumes.set_size(new.pool, new.volume, new.root_size)
    if running is not None:
        steps = await device_steps.change_running(host, running.devices, host.devices, changes, undo)
        volatile.update(steps.volatile)
        await limits.change_running(running, new.expanded_config, undo)
    elif changes:
        volatile.update(device_steps.add_all(host))
    config = device_steps.changed_over(new.row.config, volatile)
    return replace(new, row=replace(new.row, config=config))


def _host(ctx: Context, old: Loaded, new: Loaded, running: Running | None) -> DeviceHost:
    idmap = identity.idmap_of(old.row.config, "volatile.idmap.current")
    init_pid = running.init_pid if running else None
    return device_steps.host_of(ctx, new, idmap, init_pid)


def _check_change(ctx: Context, old: Loaded, new: Loaded) -> None:
    """Refuse what is valid by itself, but cannot come of what the instance is now (InvalidConfig)."""
    _refuse_root_move(old, new)
    running = ctx.runtime.get(old.key)
    if running is not None and new.expanded_devices != running.devices:
        host = device_steps.host_of(ctx, new, running.idmap)
        device_types.check_free_inside(host, running.devices)


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


def judge_profile(policy: Policy, profile: ProfileRow) -> None:
    """Whoever is restricted cannot leave in a profile what others would give their instances."""
    if policy.restricted:
        check_raw_lxc(profile.config.get("raw.lxc", ""), policy)


class ProfileFollower:
    """Applies changed profiles to the instances that use them; a change that one refuses is refused whole."""

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx

    @asynccontextmanager
    async def __call__(
        self, policy: Policy, old: ProfileRow, new: ProfileRow, undo: Rollback
    ) -> AsyncIterator[None]:
        """Entered before the new profile is stored, left after it, or after `undo` has run: nobody else
        changes or starts the instances meanwhile, or makes one with the old profile.
        """
        async with await self._locked(old):
            await self._follow(policy, old, new, undo)
            yield

    async def _locked(self, profile: ProfileRow) -> AsyncExitStack:
        """The locks of all ready instances with the profile, by name as everywhere, and of the profile."""
        while True:
            users = await self._users(profile, ("ready",))
            async with AsyncExitStack() as locks:
                for user in users:
                    await locks.enter_async_context(self._ctx.locks.hold("instance", *user.key))
                held = self._ctx.locks.hold("profile", profile.project, profile.name)
                await locks.enter_async_context(held)
                now = await self._users(profile, ("ready",))
                if {user.key for user in now} <= {user.key for user in users}:
                    return locks.pop_all()

    async def _users(self, profile: ProfileRow, states: tuple[State, ...]) -> list[Loaded]:
        """Those on this member. Those on others take the profile as it is stored when they start next."""
        return _using(profile, await load_all(self._ctx, states))

    async def _follow(self, policy: Policy, old: ProfileRow, new: ProfileRow, undo: Rollback) -> None:
        ctx = self._ctx
        # Those that are just being made as well: they are started with what is stored now.
        users = await self._users(old, ("ready", "creating"))
        found = await ctx.database.read("profiles", profiles_named, old.project, _all_profiles(users))
        profiles = {profile.name: profile for profile in found}
        profiles[old.name] = new
        wanted = []
        for before in users:
            with _naming(before):
                after = judge(merge(before.row, [profiles[name] for name in before.row.profiles]), policy)
                _check_change(ctx, before, after)
                await limits.check_change(before.expanded_config, after.expanded_config)
                await check_by_liblxc(ctx, after, before)
            wanted.append(after)
        async with allocations.hold(ctx):
            plan = await _reserve(ctx, list(zip(users, wanted, strict=True)), undo, named=True)
        changed = await _act(ctx, plan, undo)
        async with allocations.hold(ctx):
            await _store(ctx, plan, changed)
        undo.push(self._store_again, users)

    async def _store_again(self, instances: Sequence[Loaded]) -> None:
        await self._ctx.database.write("profile not followed", _update_all, [i.row for i in instances])
        for instance in instances:
            _remember(self._ctx, instance)


def _using(profile: ProfileRow, instances: Sequence[Loaded]) -> list[Loaded]:
    return [instance for instance in instances if profile.id in instance.row.profile_ids]


def _update_all(tx: Transaction, rows: Sequence[InstanceRow]) -> None:
    for row in rows:
        with suppress(NotFound) if row.state == "creating" else nullcontext():  # its making may have failed
            instance_rows.update(tx, row)


def _all_profiles(instances: Sequence[Loaded]) -> list[str]:
    return sorted({name for instance in instances for name in instance.row.profiles})

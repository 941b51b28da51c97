"""Changes of instances and of their containers: of one, or of all that use a profile.

They are checked, planned (which reserves what they need), applied to the host and then stored.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace

from utsuwa import devices as device_types
from utsuwa.core.errors import InvalidConfig, NotFound, UtsuwaError
from utsuwa.core.rollback import Rollback
from utsuwa.db import device_changes
from utsuwa.db import instances as instance_rows
from utsuwa.db.device_changes import Changes
from utsuwa.db.instance_data import InstanceData
from utsuwa.db.instances import InstanceRow
from utsuwa.db.transaction import Transaction
from utsuwa.devices import DeviceHost
from utsuwa.host.system import kernel_modules
from utsuwa.instances import allocations, identity
from utsuwa.instances.confinement import cpu_balance, limits, policies
from utsuwa.instances.context import Context
from utsuwa.instances.guest import switch
from utsuwa.instances.lifecycle import device_host, device_steps, device_updates
from utsuwa.instances.model import Loaded, Running
from utsuwa.projects import limits as project_limits


@dataclass(frozen=True)
class Plan:
    """Changes of some instances, applied to all of them or to none."""

    instances: Sequence[tuple[Loaded, Loaded]]
    """Each instance before and after the change."""
    devices: Mapping[int, Changes]
    """The changes of devices, by the id of the instance's row."""
    named: bool
    """Whether errors name the instance, because the request does not."""
    moment: int | None = None
    """When nothing else was stored than the instances before the change, and the note about their devices."""

    def naming(self, instance: Loaded) -> AbstractContextManager[None]:
        return naming(instance) if self.named else nullcontext()


async def reserve(
    ctx: Context,
    instances: Sequence[tuple[Loaded, Loaded]],
    undo: Rollback,
    *,
    named: bool = False,
    moment: int | None = None,
) -> Plan:
    """Reserve the resources for the changes until these are stored, or `undo` runs. Raises InvalidConfig.

    `moment` is when the instances were read, for `Database.unchanged_since`.
    """
    await allocations.check_changes(ctx, instances)
    devices: dict[int, Changes] = {}
    plan = Plan(instances, devices, named)
    for old, new in instances:
        if old.expanded.devices != new.expanded.devices:
            with plan.naming(old):
                devices[old.row.id] = await _plan_devices(ctx, old, new)
    if devices:
        undo.push(ctx.database.write, "revert device change", device_changes.forget, list(devices))
        await ctx.database.note("begin device change", device_changes.note, devices)
    return replace(plan, moment=ctx.database.moment_after(moment, writes=1 if devices else 0))


async def _plan_devices(ctx: Context, old: Loaded, new: Loaded) -> Changes:
    running = ctx.runtime.get(old.ref)
    host = _host(ctx, old, new, running)
    before = old.expanded.devices if running is None else running.devices
    return await device_updates.plan_change(host, before, new.expanded.devices, running=running is not None)


async def apply_to_host(ctx: Context, plan: Plan, undo: Rollback) -> list[Loaded]:
    """Change the host as planned, and rebalance the CPUs."""
    undo.push(cpu_balance.rebalance, ctx)  # undone last, when all limits have been restored
    changed = []
    for old, new in plan.instances:
        with plan.naming(old):
            changed.append(await _change(ctx, old, new, plan.devices.get(old.row.id, {}), undo))
    await cpu_balance.rebalance(ctx, must_move=[new.ref for new in changed])
    return changed


async def rows_to_store(ctx: Context, plan: Plan, changed: Sequence[Loaded]) -> list[InstanceRow]:
    """Return the rows to store, with the id maps of their next starts."""
    rows: list[InstanceRow] = []
    for (old, _), new in zip(plan.instances, changed, strict=True):
        with plan.naming(old):
            config = {**new.data.config, **await identity.after_change(ctx, old, new, rows)}
        rows.append(new.row.with_config(config))
    return rows


@contextmanager
def naming(instance: Loaded) -> Iterator[None]:
    """Prefix errors with the name of the instance."""
    try:
        yield
    except UtsuwaError as error:
        raise error.concerning(f"Instance {instance.name!r}") from error.__cause__


async def _change(ctx: Context, old: Loaded, new: Loaded, changes: Changes, undo: Rollback) -> Loaded:
    """Change the host from `old` to `new`; return `new` with the resulting volatile keys."""
    running = ctx.runtime.get(old.ref)
    host = _host(ctx, old, new, running)
    volatile = _removed_volatile(old, new)
    resized = new.expanded.root_size != old.expanded.root_size
    if resized and new.pool == old.pool and new.row.state == "ready":
        undo.push(ctx.storage.volumes.set_size, old.pool, old.ref.volume, old.expanded.root_size)
        await ctx.storage.volumes.set_size(old.pool, old.ref.volume, new.expanded.root_size)
    if running is not None:
        await kernel_modules.load(new.expanded.config.get("linux.kernel_modules", ""))
        steps = await device_updates.change_running(
            host, running.devices, host.devices, changes, undo, old_config=old.expanded.config
        )
        volatile.update(steps.volatile)
        await limits.change_running(running, new.expanded.config, undo)
        await switch.change_running(ctx, host, running, new.expanded.config, undo)
        await policies.change_running(ctx, running, new.expanded.config, undo)
        volatile.update(await cpu_balance.change_wish(ctx, running, new.expanded.config, undo))
    elif changes:
        volatile.update(device_steps.add_all(host))
    volatile.update(identity.renewed(old, new))
    config = device_steps.with_changes(new.data.config, volatile)
    expanded = device_steps.with_changes(new.expanded.config, volatile)
    return replace(new, row=new.row.with_config(config), expanded=replace(new.expanded, config=expanded))


def _host(ctx: Context, old: Loaded, new: Loaded, running: Running | None) -> DeviceHost:
    idmap = identity.current_idmap(old)
    init_pid = running.init_pid if running else None
    return device_host.host_of(ctx, new, idmap, init_pid)


async def check_change(ctx: Context, old: Loaded, new: Loaded, *, moves: bool = False) -> None:
    """Raise InvalidConfig for a valid configuration to which the instance cannot be changed.

    One that `moves` may get another name, project and pool.
    """
    if not moves:
        _check_root_pool(old, new)
    host = _host(ctx, old, new, ctx.runtime.get(old.ref))
    await device_updates.check_added(host, old.expanded.devices)
    check_running(ctx, old, new, host)


def check_running(ctx: Context, old: Loaded, new: Loaded, host: DeviceHost | None = None) -> None:
    """The part of `check_change` that depends on whether the instance is running now."""
    running = ctx.runtime.get(old.ref)
    if running is not None and new.expanded.devices != running.devices:
        device_types.check_free_inside(host or _host(ctx, old, new, running), running.devices)


def _check_root_pool(old: Loaded, new: Loaded) -> None:
    if old.pool != new.pool:
        raise InvalidConfig(
            f"Cannot update root disk device pool name to {new.pool!r}, as the root disk is on {old.pool!r}: "
            f"move the instance with `utsuwa move {old.name} --storage {new.pool}`"
        )


def _removed_volatile(old: Loaded, new: Loaded) -> dict[str, str | None]:
    """Return the removal of volatile keys of devices that the instance no longer has."""
    gone = old.expanded.devices.keys() - new.expanded.devices.keys()
    prefixes = tuple(f"volatile.{name}." for name in gone)
    return {key: None for key in old.data.config if prefixes and key.startswith(prefixes)}


async def check_limits_of_projects(ctx: Context, changed: Sequence[Loaded]) -> None:
    """Raise Forbidden if a project would exceed its limits, before anything is changed on the host."""
    wanted = {one.row.id: (one.expanded.config, one.expanded.devices) for one in changed}
    projects = [one.project for one in changed]
    await ctx.database.read("limits of projects", project_limits.check_all, projects, wanted)


def stored_data(plan: Plan) -> list[InstanceData]:
    """Return the data of the instances as it is stored at the `moment` of the plan."""
    found = []
    for old, _ in plan.instances:
        data, pending = old.data, plan.devices.get(old.row.id)
        if pending is not None:
            data = replace(data, config=device_changes.noted(data.config, pending))
        found.append(data)
    return found


def update_all(tx: Transaction, rows: Sequence[InstanceRow]) -> None:
    for row in rows:
        with suppress(NotFound) if row.state == "creating" else nullcontext():  # its creation may have failed
            instance_rows.update(tx, row)

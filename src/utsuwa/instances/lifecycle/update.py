"""Changes of an instance's own config and devices, applied completely or not at all."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial

from utsuwa.core.errors import Busy, Forbidden
from utsuwa.core.instance_keys import INSTANCE_KEYS
from utsuwa.core.refs import InstanceRef
from utsuwa.core.rollback import Rollback
from utsuwa.core.scope import Policy
from utsuwa.db import instances as instance_rows
from utsuwa.db.instance_data import InstanceData
from utsuwa.db.instances import InstanceRow
from utsuwa.db.transaction import Transaction
from utsuwa.instances import allocations
from utsuwa.instances.confinement import limits
from utsuwa.instances.context import Context, Parts, check_here, merge, recall_parts
from utsuwa.instances.lifecycle import changes
from utsuwa.instances.lifecycle.create import (
    check_by_liblxc,
    is_own_volatile,
    known_architecture,
    merge_stored,
)
from utsuwa.instances.model import Loaded
from utsuwa.instances.policy import judge
from utsuwa.projects import limits as project_limits
from utsuwa.wire.edits import Change, IfMatch, edited
from utsuwa.wire.instances import InstancePut

Edit = Change[InstancePut]


def editable(data: InstanceData) -> InstancePut:
    return InstancePut(
        architecture=data.architecture,
        config=data.config,
        devices=data.devices,
        ephemeral=data.ephemeral,
        profiles=data.profiles,
        description=data.description,
    )


@dataclass(frozen=True)
class Proposal:
    """An instance before and after a change that is not made yet, as stored at one time."""

    old: Loaded
    new: Loaded
    excess: Forbidden | None = field(default=None, compare=False)
    """The error if its project would exceed a limit."""
    moment: int | None = field(default=None, compare=False)
    """When it was read, for `Database.unchanged_since`."""


Propose = Callable[[], Awaitable[Proposal]]
"""Returns the change with the instance and its profiles as they are stored now."""


async def check(ctx: Context, policy: Policy, ref: InstanceRef, wanted: Edit, if_match: IfMatch) -> Proposal:
    """Raise the error that `edit` would raise now, without changing anything.

    Returns what was checked, for an `edit` that follows.
    """
    moment = ctx.database.moment()
    proposal = await _propose(ctx, ref, wanted, if_match)
    await check_proposal(ctx, policy, proposal)
    return replace(proposal, moment=moment)


async def edit(
    ctx: Context,
    policy: Policy,
    ref: InstanceRef,
    wanted: Edit,
    if_match: IfMatch,
    checked: Proposal | None = None,
) -> None:
    """Change the editable part of an instance, and of its container if it is running.

    A change that was `checked` before is checked again only if anything else has changed since. Raises
    NotFound (instance, profiles), PreconditionFailed, InvalidConfig, InvalidRequest or Forbidden, without
    having changed anything.
    """
    propose = partial(_propose, ctx, ref, wanted, if_match)
    async with ctx.locks.hold("instance", ref), _applied(ctx, policy, propose, checked) as (plan, changed):
        async with allocations.hold(ctx, ref.project, changed[0].data.profiles):
            rows = await changes.rows_to_store(ctx, plan, changed)
            await ctx.database.write("update instance", _store, plan, rows)
        for new in changed:
            ctx.runtime.update(new)
            ctx.warn_of_keys(new)
    ctx.lifecycle("updated", ref)


async def _propose(ctx: Context, ref: InstanceRef, wanted: Edit, if_match: IfMatch) -> Proposal:
    parts = await recall_parts(ctx, ref)
    old = check_here(merge(*parts))
    row = _edited(old, wanted, if_match)
    proposal = proposed_alone(parts, old, row)
    if proposal is None:
        proposal = await ctx.database.read("change of instance", proposed, old, row)
    return proposal


def proposed_alone(parts: Parts, old: Loaded, row: InstanceRow) -> Proposal | None:
    """As `proposed`, of `parts` that have been merged to `old`; None if it depends on anything else."""
    _, profiles, restrictions = parts
    if row.data.profiles != old.data.profiles or restrictions.limited:
        return None
    return Proposal(old, merge(row, profiles, restrictions))


def proposed(tx: Transaction, old: Loaded, row: InstanceRow) -> Proposal:
    """Return the change of an instance to another row. Raises NotFound (profile)."""
    new = merge_stored(tx, row)
    if not new.restrictions.limited:
        return Proposal(old, new)
    changed = {new.row.id: (new.expanded.config, new.expanded.devices)}
    try:
        project_limits.check(tx, new.project, changed)
    except Forbidden as error:
        return Proposal(old, new, error)
    return Proposal(old, new)


def _edited(old: Loaded, wanted: Edit, if_match: IfMatch) -> InstanceRow:
    new = edited(editable(old.data), wanted, if_match)
    config = with_volatile(old.data.config, new.config)
    old.restrictions.check_volatile(old.data.config, config)
    data = replace(
        old.data,
        architecture=known_architecture(new.architecture) or old.data.architecture,
        config=with_own_volatile(old.data.config, config),
        devices={key: dict(device) for key, device in new.devices.items()},
        ephemeral=new.ephemeral,
        profiles=list(new.profiles),
        description=new.description,
    )
    return replace(old.row, data=data)


def with_volatile(old: Mapping[str, str], new: Mapping[str, str]) -> Mapping[str, str]:
    """Keep the volatile keys if the new config has none, or those of another instance.

    The former comes from a client that ignores volatile keys, not from one that wants to remove all of them;
    the latter from `lxc copy --refresh`, which stores the config of the source, or a snapshot that was copied
    with its instance. The instance keeps its addresses, its id for cloud-init, and its pending templates.
    """
    given = {key: value for key, value in new.items() if key.startswith("volatile.")}
    changed = {key for key, value in given.items() if value not in ("", old.get(key, ""))}
    # Two instances also differ in their ids for cloud-init; who changes the uuid alone means this instance.
    is_own = "volatile.uuid" not in changed or len(changed) == 1
    if is_own and given.keys() - {"volatile.base_image"}:
        return new
    kept = {key: value for key, value in old.items() if key.startswith("volatile.")}
    return {**{key: value for key, value in new.items() if not key.startswith("volatile.")}, **kept}


def with_own_volatile(old: Mapping[str, str], new: Mapping[str, str]) -> dict[str, str]:
    kept = {key: value for key, value in old.items() if is_own_volatile(key)}
    others = {key: value for key, value in new.items() if not is_own_volatile(key)}
    return {**INSTANCE_KEYS.set_only(others, old), **kept}


async def checked(
    ctx: Context, policy: Policy, old: Loaded, row: InstanceRow, *, moves: bool = False
) -> Loaded:
    """Return the changed instance, expanded. Raises the errors of `edit` if it is not valid.

    One that `moves` may get another name, project and pool.
    """
    proposal = await ctx.database.read("change of instance", proposed, old, row)
    await check_proposal(ctx, policy, proposal, moves=moves)
    return proposal.new


async def check_proposal(ctx: Context, policy: Policy, proposal: Proposal, *, moves: bool = False) -> None:
    """Raise the errors of `edit` if the changed instance is not valid; `moves` as in `checked`."""
    old, new = proposal.old, proposal.new
    judge(new.data, new.expanded, new.restrictions, policy)
    await changes.check_change(ctx, old, new, moves=moves)
    await limits.check_change(old.expanded.config, new.expanded.config)
    if proposal.excess is not None:
        raise proposal.excess
    await allocations.check_changes(ctx, [(old, new)])
    await check_by_liblxc(ctx, new, old)


@asynccontextmanager
async def _applied(
    ctx: Context, policy: Policy, propose: Propose, checked: Proposal | None = None, *, moves: bool = False
) -> AsyncIterator[tuple[changes.Plan, list[Loaded]]]:
    """Apply a change to the host; it is reverted unless the block has stored it."""
    async with Rollback() as undo:
        plan = await _check_and_reserve(ctx, policy, propose, checked, undo, moves=moves)
        changed = await changes.apply_to_host(ctx, plan, undo)
        yield plan, changed
        undo.keep()
    ((old, _),), (new,) = plan.instances, changed
    ports = allocations.ports(new)
    if allocations.ports(old) != ports:
        await ctx.networks.follow({old.ref, new.ref}, ports)


@asynccontextmanager
async def prepared(
    ctx: Context,
    policy: Policy,
    old: Loaded,
    row: InstanceRow,
    new: Loaded | None = None,
    *,
    moves: bool = False,
    moment: int | None = None,
    writes: int = 0,
) -> AsyncIterator[Callable[[Transaction], None]]:
    """Prepare a change that the block stores with other changes, in one transaction, by what is yielded.

    Raises the errors of `edit`; so does the function in the transaction. `new` is what `checked` has returned
    for the row: it is checked again only if a profile has changed since, or anything since the `moment`
    before it was read. `moves` as there. `writes` is the number of transactions with which the block records
    what it is about to do: if there were no others, nothing is checked again when the change is stored.
    """
    propose = partial(ctx.database.read, "change of instance", proposed, old, row)
    checked = None if new is None else Proposal(old, new, moment=moment)
    async with _applied(ctx, policy, propose, checked, moves=moves) as (plan, changed):
        rows = await changes.rows_to_store(ctx, plan, changed)
        yield partial(_store, plan=plan, rows=rows, writes=writes)


async def _check_and_reserve(
    ctx: Context,
    policy: Policy,
    propose: Propose,
    checked: Proposal | None,
    undo: Rollback,
    *,
    moves: bool,
) -> changes.Plan:
    """Reserve what a change needs, once it is checked as it is stored at that time."""
    while checked is None or (plan := await _reserve(ctx, propose, checked, undo)) is None:
        moment = ctx.database.moment()
        checked = replace(await propose(), moment=moment)
        await check_proposal(ctx, policy, checked, moves=moves)
    return plan


async def _reserve(ctx: Context, propose: Propose, checked: Proposal, undo: Rollback) -> changes.Plan | None:
    """Make the reservation; None if the change is not what was `checked` any more."""
    new = checked.new
    async with allocations.hold(ctx, new.project, new.data.profiles):
        moment = checked.moment
        if not ctx.database.unchanged_since(moment):
            moment = ctx.database.moment()
            again = await propose()
            if again != checked:
                return None
            if again.excess is not None:
                raise again.excess
        changes.check_running(ctx, checked.old, new)
        return await changes.reserve(ctx, [(checked.old, new)], undo, moment=moment)


def _store(tx: Transaction, plan: changes.Plan, rows: Sequence[InstanceRow], writes: int = 0) -> None:
    """Store a changed instance with its final `rows`, in which the volatile keys are.

    What was checked still holds if there were no other `writes` since the moment of the plan than those that
    recorded the change. Raises Busy if a profile was changed since, Forbidden if the project's limits are
    exceeded now.
    """
    if tx.moment is not None and plan.moment is not None and tx.moment == plan.moment + writes:
        for stored, row in zip(changes.stored_data(plan), rows, strict=True):
            instance_rows.update(tx, row, stored)
        return
    ((_, new),) = plan.instances
    if merge_stored(tx, new.row) != new:
        raise Busy("A profile of the instance was changed at the same time: try again")
    changes.update_all(tx, rows)
    project_limits.check_all(tx, [row.ref.project for row in rows])

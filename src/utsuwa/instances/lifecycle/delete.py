"""Deleting stopped instances."""

from __future__ import annotations

from contextlib import suppress

from utsuwa.core.config_keys import parse_bool
from utsuwa.core.errors import Forbidden, InvalidRequest, NotFound
from utsuwa.core.refs import InstanceRef
from utsuwa.core.rollback import Rollback
from utsuwa.core.threads import in_thread
from utsuwa.db import instances as instance_rows
from utsuwa.db.transaction import Transaction
from utsuwa.host.files.filetree import remove_tree
from utsuwa.instances.confinement import policies as confinement
from utsuwa.instances.context import Context, Seen, check_here, fetch, look
from utsuwa.instances.model import Loaded


async def check(ctx: Context, ref: InstanceRef) -> Seen:
    """Raise InvalidRequest if an instance is running, Forbidden if it is protected, NotFound.

    Returns what was checked, for a `delete` that follows.
    """
    seen = await look(ctx, ref)
    _refuse_running(ctx, ref)
    refuse_protected(seen.instance)
    return seen


def _refuse_running(ctx: Context, ref: InstanceRef) -> None:
    if ctx.runtime.get(ref) is not None:
        raise InvalidRequest(f"Instance is running: stop {ref.name!r} first, or delete it with force")


def refuse_protected(instance: Loaded) -> None:
    """Raise Forbidden if `security.protection.delete` is set."""
    if parse_bool(instance.expanded.config.get("security.protection.delete", "")):
        raise Forbidden(
            f"The instance {instance.name!r} is protected: unset security.protection.delete to delete it"
        )


async def delete(ctx: Context, ref: InstanceRef, seen: Seen | None = None) -> None:
    """Delete an instance with all its files. Raises as `check`, unless nothing has changed since that.

    Meanwhile its row has the state `deleting`, and is deleted last: if the daemon is killed in between, its
    next start completes the deletion. If something cannot be removed, the instance becomes visible again.
    """
    async with ctx.locks.hold("instance", ref), Rollback() as undo:
        _refuse_running(ctx, ref)
        undo.push(ctx.database.write, "undo deletion of instance", _make_visible, ref)
        known = seen.instance if seen is not None and ctx.database.unchanged_since(seen.moment) else None
        instance = await ctx.database.commit("begin deletion of instance", _begin, ref, known)
        ctx.database.sync_soon()
        await ctx.apparmor.unload(ref.storage_name)
        await in_thread(_remove_beside, ctx, ref)
        await ctx.database.settle()  # before anything is gone that the instance cannot do without
        await remove(ctx, instance)
        undo.keep()
    ctx.lifecycle("deleted", ref)


def _begin(tx: Transaction, ref: InstanceRef, known: Loaded | None) -> Loaded:
    """Return the instance, which is invisible from now on; it is `known` if it is certainly still so.

    Raises as `check`, if it is protected.
    """
    instance = known
    if instance is None:
        instance = check_here(fetch(tx, ref))
        refuse_protected(instance)
    instance_rows.set_deleting(tx, instance.row.id)
    return instance


def _make_visible(tx: Transaction, ref: InstanceRef) -> None:
    with suppress(NotFound):
        row = instance_rows.get(tx, ref)
        if row.state == "deleting":
            instance_rows.set_ready(tx, row.id)


def _remove_beside(ctx: Context, ref: InstanceRef) -> None:
    """Remove what belongs to starts of the instance, and logs. Blocking."""
    confinement.remove_files(ctx, ref)
    remove_tree(ctx.paths.instance_logs(ref.storage_name))


async def remove(ctx: Context, instance: Loaded) -> None:
    """Remove the files of an instance and then its row. Idempotent."""
    await ctx.storage.volumes.delete(
        instance.pool,
        instance.ref.volume,
        also=lambda tx: instance_rows.delete(tx, instance.row.id),
    )
    await ctx.networks.follow({instance.ref}, ())

"""Changing the config and the description of custom volumes."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

from utsuwa.core.pool_keys import is_shifted, is_unmapped
from utsuwa.core.rollback import Rollback
from utsuwa.db import storage_volumes
from utsuwa.db.storage_volumes import VolumeRow
from utsuwa.db.transaction import Transaction
from utsuwa.projects import limits
from utsuwa.storage.custom.context import CustomContext, check_config, get, volume_of, with_size_shown
from utsuwa.storage.custom.uses import Place
from utsuwa.wire.edits import Change, IfMatch, edited
from utsuwa.wire.storage import StorageVolumePut


def editable(row: VolumeRow) -> StorageVolumePut:
    return StorageVolumePut(config=row.config, description=row.description)


async def edit(ctx: CustomContext, place: Place, change: Change[StorageVolumePut], if_match: IfMatch) -> None:
    """Change a volume. Volatile keys, which are shown to clients, are not changed.

    Raises NotFound, PreconditionFailed, InvalidConfig, Forbidden (limits of the project), and InUse if how
    owners are shown is changed while running instances use the volume.
    """
    pool, volume = place
    at = ctx.known.get(pool)
    async with ctx.locks.hold(pool, volume):
        row = await ctx.database.read("custom volume", get, place)
        new = edited(editable(row), change, if_match)
        config = with_size_shown(at, new.config, row.config)
        check_config(at.kind, config)
        async with Rollback() as undo:
            with _maps_changed(ctx, row, config):
                old_size, size = row.config.get("size", ""), config.get("size", "")
                if size != old_size:
                    undo.push(ctx.volumes.apply_size, at, volume, old_size)
                    await ctx.volumes.apply_size(at, volume, size)
                changed = replace(row, config=config, description=new.description)
                await ctx.database.write("edit custom volume", _store, changed)
                undo.keep()
    ctx.volumes.judge_size(at, volume, row.id, size)
    ctx.lifecycle("updated", place)


def _maps_changed(
    ctx: CustomContext, row: VolumeRow, config: Mapping[str, str]
) -> AbstractContextManager[None]:
    """Keep the volume out of use while what determines its owners changes."""
    if all(of(row.config) == of(config) for of in (is_shifted, is_unmapped)):
        return nullcontext()
    return ctx.uses.excluded((row.pool, volume_of(row)), "changed in how it is mapped")


def _store(tx: Transaction, row: VolumeRow) -> None:
    storage_volumes.update(tx, row)
    limits.check(tx, row.project)

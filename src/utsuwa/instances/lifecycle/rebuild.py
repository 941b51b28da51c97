"""Rebuilding an instance: its root disk is replaced by a new one from an image, or by an empty one."""

from __future__ import annotations

import contextlib
from dataclasses import replace

from utsuwa.core import clock
from utsuwa.core.errors import InvalidRequest, NotFound
from utsuwa.core.refs import InstanceRef
from utsuwa.core.scope import Policy, Scope
from utsuwa.db import images as image_rows
from utsuwa.db.images import ImageRow
from utsuwa.db.instances import InstanceRow
from utsuwa.db.transaction import Transaction
from utsuwa.images.remote.records import RemoteSource
from utsuwa.instances import identity
from utsuwa.instances.context import Context, load
from utsuwa.instances.lifecycle import create, update
from utsuwa.instances.model import Loaded
from utsuwa.wire.instances import InstanceSource

_OF_IMAGE = ("image.", "volatile.base_image", "volatile.apply_template")


async def check(
    ctx: Context, policy: Policy, ref: InstanceRef, source: InstanceSource
) -> ImageRow | RemoteSource | None:
    """Return the image that is requested, or its source on another server; None for an empty root disk.

    Raises what `rebuild` would raise now, and NotFound (image).
    """
    if source.type not in ("image", "none"):
        raise InvalidRequest(f"Unknown source type {source.type[:40]!r}: use image or none")
    instance = await load(ctx, ref)
    _check_possible(ctx, instance)
    if source.server:
        return create.remote_source(source)
    image = await create.find_image(ctx, ref.project, source)
    await update.checked(ctx, policy, instance, _rebuilt(instance, image))
    return image


def _check_possible(ctx: Context, instance: Loaded) -> None:
    """Raise InvalidRequest for an instance that runs, or has folders that would be lost."""
    if ctx.runtime.get(instance.ref) is not None:
        raise InvalidRequest(f"The instance {instance.name!r} is running: stop it to rebuild it")
    for name, device in instance.expanded.devices.items():
        if device.get("source", "").startswith("instance:"):
            raise InvalidRequest(
                f"The folder of the device {name!r} would be lost with the root disk: remove the device first"
            )


def _rebuilt(instance: Loaded, image: ImageRow | None) -> InstanceRow:
    """Return the row of the rebuilt instance, which is a new one for cloud-init."""
    old = instance.data
    config = {key: value for key, value in old.config.items() if not key.startswith(_OF_IMAGE)}
    config |= identity.new_cloud_init_id()
    architecture = old.architecture
    if image is not None:
        config |= create.config_of_image(image)
        architecture = image.architecture
    data = replace(old, config=config, architecture=architecture, stateful=False)
    return replace(instance.row, data=data)


async def rebuild(
    ctx: Context, scope: Scope, ref: InstanceRef, wanted: ImageRow | RemoteSource | None
) -> None:
    """Rebuild a stopped instance, completely or not at all; its snapshots stay.

    An image on another server is fetched before. Raises InvalidRequest, also while it runs, NotFound
    (instance, image), InvalidImage, Unavailable (server) or OutOfSpace.
    """
    if isinstance(wanted, RemoteSource):
        image: ImageRow | None = await ctx.remote_images.for_instance(ref.project, wanted, trusted=scope.root)
    else:
        image = wanted
    policy = scope.policy
    async with ctx.locks.hold("instance", ref):
        instance = await load(ctx, ref)
        _check_possible(ctx, instance)
        async with update.prepared(ctx, policy, instance, _rebuilt(instance, image)) as store:

            def also(tx: Transaction) -> None:
                store(tx)
                if image is not None:
                    with contextlib.suppress(NotFound):  # deleted meanwhile
                        image_rows.set_last_used(tx, image.id, clock.now())

            idmap = identity.next_idmap(instance)
            source = ctx.images.source(image) if image is not None else None
            await ctx.storage.copies.rebuild(instance.pool, ref.volume, idmap, source, also)
    ctx.lifecycle("rebuilt", ref)

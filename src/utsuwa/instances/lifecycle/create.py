"""Creation of instances: the request is validated immediately, files are created in the background."""

from __future__ import annotations

import contextlib
import os
import secrets
import uuid
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import msgspec

from utsuwa.core import clock
from utsuwa.core.architectures import canonical_architecture
from utsuwa.core.config_keys import VOLATILE
from utsuwa.core.errors import AlreadyExists, InvalidConfig, InvalidRequest, NotFound, NotSupportedYet
from utsuwa.core.idmap import IdMap
from utsuwa.core.instance_types import limits_of_type
from utsuwa.core.names import check_instance_name
from utsuwa.core.refs import InstanceRef
from utsuwa.core.rollback import Rollback
from utsuwa.core.scope import Policy
from utsuwa.core.threads import in_thread
from utsuwa.db import codes
from utsuwa.db import images as image_rows
from utsuwa.db import instances as instance_rows
from utsuwa.db.images import ImageRow
from utsuwa.db.instance_data import InstanceData
from utsuwa.db.instances import InstanceRow
from utsuwa.db.transaction import Transaction
from utsuwa.devices import root_disk
from utsuwa.host.cgroups import moves as cgroup_moves
from utsuwa.host.files.filetree import remove_tree
from utsuwa.images.remote.records import RemoteSource, is_full_fingerprint, source_of
from utsuwa.instances import allocations, identity
from utsuwa.instances.confinement import limits
from utsuwa.instances.context import Context, merge, profiles_named
from utsuwa.instances.lifecycle import device_host, device_updates
from utsuwa.instances.model import Loaded
from utsuwa.instances.policy import judge
from utsuwa.projects import limits as project_limits
from utsuwa.projects import restrictions
from utsuwa.wire.instances import InstanceSource, InstancesPost

_OWN_VOLATILE = ("volatile.base_image", "volatile.uuid", "volatile.idmap.", "volatile.last_state.")

# fmt: off
_FIRST = (
    "amber", "brave", "calm", "clever", "eager", "fair", "gentle", "happy", "honest", "keen",
    "kind", "lively", "lucky", "mellow", "neat", "noble", "proud", "quick", "quiet", "ready",
    "sharp", "sunny", "swift", "tidy", "vivid", "warm", "wise",
)
# fmt: on
# fmt: off
_SECOND = (
    "badger", "beaver", "bison", "crane", "dolphin", "falcon", "ferret", "gecko", "heron", "ibex",
    "jackal", "koala", "lemur", "lynx", "marten", "newt", "otter", "panda", "puffin", "quail",
    "raven", "robin", "seal", "sparrow", "stork", "tapir", "walrus", "wombat", "yak",
)
# fmt: on


def is_own_volatile(key: str) -> bool:
    """Whether only the daemon writes a key, so that values in requests are ignored.

    This includes the names of interfaces on the host, which the daemon removes by name.
    """
    return key.startswith(_OWN_VOLATILE) or (key.startswith("volatile.") and key.endswith(".host_name"))


def random_name() -> str:
    """Return a random name for an instance without one."""
    return f"{secrets.choice(_FIRST)}-{secrets.choice(_SECOND)}-{secrets.token_hex(2)}"


async def reserve(
    ctx: Context, policy: Policy, project: str, request: InstancesPost
) -> tuple[Loaded, ImageRow | None]:
    """Validate a request and reserve the name, with a row in the state `creating`, for `build` or `discard`.

    Raises InvalidRequest, NotFound (image, profile, pool), AlreadyExists, Forbidden or OutOfSpace, without
    having stored anything.
    """
    reject_unsupported(request)
    image = await find_image(ctx, project, request.source)
    return await reserve_with(ctx, policy, project, request, image), image


async def reserve_with(
    ctx: Context, policy: Policy, project: str, request: InstancesPost, image: ImageRow | None
) -> Loaded:
    """As `reserve`, with an image that is known."""
    name = check_instance_name(request.name or random_name())
    row = _new_row(InstanceRef(project, name), request, image)
    instance = await check_and_store(ctx, policy, row, request.config)
    await ctx.networks.follow({instance.ref}, allocations.ports(instance))
    return instance


async def reserve_received(ctx: Context, policy: Policy, project: str, request: InstancesPost) -> Loaded:
    """As `reserve`, for an instance that comes from another server.

    It stays the instance of which cloud-init knows that it has set it up, if the request says so; that is
    the difference between a move and a copy. In a restricted project, it gets new MAC addresses and whatever
    else its owner must not choose. The row is written to disk while the other server is connected to: nothing
    may be created before the database has settled.
    """
    rules = await ctx.database.read("restrictions", restrictions.get, project)
    request = msgspec.structs.replace(request, config=rules.without_volatile(request.config))
    row = _new_row(InstanceRef(project, check_instance_name(request.name)), request, None)
    base = request.config.get("volatile.base_image", "") or request.source.base_image
    kept = {"volatile.base_image": base} if is_full_fingerprint(base) else {}
    if instance_id := request.config.get("volatile.cloud-init.instance-id", ""):
        kept["volatile.cloud-init.instance-id"] = instance_id
    row = row.with_config({**row.data.config, **kept, "volatile.apply_template": "copy"})
    instance = await check_and_store(ctx, policy, row, request.config, synced=False)
    ctx.database.sync_soon()
    await ctx.networks.refresh(instance.ref)
    return instance


async def check_before_image(
    ctx: Context, policy: Policy, project: str, request: InstancesPost
) -> RemoteSource:
    """Check a request whose image must be fetched first, as far as possible without it; return its source.

    Raises as `reserve`.
    """
    reject_unsupported(request)
    source = remote_source(request.source)
    await ctx.remote_images.check_allowed(project, source.server)
    ref = InstanceRef(project, check_instance_name(request.name))
    if await ctx.database.read("instance name", instance_rows.is_taken, ref):
        raise AlreadyExists(f"Instance {ref.name!r} already exists: choose another name")
    await _checked(ctx, policy, _new_row(ref, request, None))
    return source


def remote_source(source: InstanceSource) -> RemoteSource:
    """Return the source of an image on another server. A private one is known by its fingerprint only."""
    names = source.alias, source.fingerprint
    return source_of(source, *(reversed(names) if source.secret else names))


async def check_and_store(
    ctx: Context, policy: Policy, row: InstanceRow, requested: Mapping[str, str], *, synced: bool = True
) -> Loaded:
    """Check with the profiles as they are when the row is stored; `requested` is the request's config.

    The row is on disk then, unless it need not be `synced`.
    """
    if any(key.startswith(VOLATILE) for key in requested):
        rules = await ctx.database.read("restrictions", restrictions.get, row.ref.project)
        rules.check_volatile({}, requested)
    while True:
        instance = await _checked(ctx, policy, row)
        async with allocations.hold(ctx, row.ref.project, row.data.profiles):
            if await merged(ctx, row) == instance:
                return await _insert(ctx, instance, synced=synced)


async def _checked(ctx: Context, policy: Policy, row: InstanceRow) -> Loaded:
    loaded = await merged(ctx, row)
    judge(loaded.data, loaded.expanded, loaded.restrictions, policy)
    await limits.check_change({}, loaded.expanded.config)
    await check_by_liblxc(ctx, loaded)
    await device_updates.check_added(device_host.host_of(ctx, loaded, IdMap()), {})
    await _check_pool(ctx, loaded)
    return loaded


async def _check_pool(ctx: Context, instance: Loaded) -> None:
    """Raise NotFound if the pool of the root disk does not exist."""
    if ctx.storage.pools.has(instance.pool):
        return
    try:
        await ctx.storage.pools.get(instance.pool)
    except NotFound as error:
        name, _ = root_disk(instance.expanded.devices)
        raise NotFound(
            f"Invalid device {name!r}: {error.message}: create it, or choose one of `utsuwa storage list`"
        ) from error


async def _insert(ctx: Context, instance: Loaded, *, synced: bool) -> Loaded:
    given = await identity.reserve(ctx, instance)
    await allocations.check(ctx, [instance], given)
    stored = instance.row.with_config({**instance.data.config, **given})
    insert = ctx.database.begin if synced else ctx.database.note
    row_id = await insert("reserve instance", _insert_within_limits, stored)
    return replace(instance, row=replace(stored, id=row_id))


def _insert_within_limits(tx: Transaction, row: InstanceRow) -> int:
    """Return the id. Raises as `db.instances.insert`, or Forbidden if the project's limits are exceeded."""
    row_id = instance_rows.insert(tx, row)
    project_limits.check(tx, row.ref.project)
    return row_id


async def merged(ctx: Context, row: InstanceRow) -> Loaded:
    """Return the instance of a row, expanded by its profiles as stored now. Raises NotFound, UnknownCode."""
    return await ctx.database.read("profiles", merge_stored, row)


def merge_stored(tx: Transaction, row: InstanceRow) -> Loaded:
    profiles = profiles_named(tx, row.ref.project, row.data.profiles)
    return merge(row, profiles, restrictions.get(tx, row.ref.project))


async def check_by_liblxc(ctx: Context, instance: Loaded, old: Loaded | None = None) -> None:
    """Validate a changed `raw.lxc` with liblxc's parser. Raises InvalidConfig with its message."""
    raw = instance.expanded.config.get("raw.lxc", "")
    if not raw or (old is not None and raw == old.expanded.config.get("raw.lxc")):
        return
    handle = os.memfd_create("raw.lxc", os.MFD_CLOEXEC)
    conf = Path(f"/proc/{os.getpid()}/fd/{handle}")
    try:
        os.write(handle, raw.encode() + b"\n")
        await ctx.helper.check_config(conf)
    except InvalidConfig as error:
        reason = error.message.replace(f'config file "{conf}" at ', "").replace("config file at ", "")
        raise InvalidConfig(
            f"Invalid value for 'raw.lxc': {reason}: correct this line, or remove it"
        ) from error
    finally:
        os.close(handle)


def reject_unsupported(request: InstancesPost) -> None:
    if request.type not in ("", "container"):
        raise InvalidRequest(
            f"Instance type {request.type!r} is not supported: this server runs containers only"
        )
    kind = request.source.type
    if request.stateful and kind not in ("copy", "migration"):
        raise InvalidRequest("A new instance cannot be stateful")
    if kind == "backup":
        raise NotSupportedYet("Creating an instance from a backup is not supported yet")
    if kind not in ("image", "copy", "migration", "none"):
        raise InvalidRequest(f"Unknown source type {kind!r}: use image, copy, migration or none")


async def find_image(ctx: Context, project: str, source: InstanceSource) -> ImageRow | None:
    """Return the image of a source, None for the type `none`. Raises NotFound, InvalidRequest."""
    if source.type == "none":
        return None
    image = await ctx.images.resolve(
        project,
        alias=source.alias or None,
        fingerprint=source.fingerprint or None,
        properties=source.properties or None,
    )
    return ctx.images.check_here(image)


def _new_row(ref: InstanceRef, request: InstancesPost, image: ImageRow | None) -> InstanceRow:
    given = {key: value for key, value in request.config.items() if not is_own_volatile(key)}
    config = limits_of_type(request.instance_type) | given
    if image is not None:
        config |= config_of_image(image)
    config["volatile.uuid"] = str(uuid.uuid4())
    config |= identity.new_cloud_init_id()
    data = InstanceData(
        architecture=_architecture(request.architecture, image),
        ephemeral=request.ephemeral,
        description=request.description,
        config=config,
        devices={key: dict(device) for key, device in request.devices.items()},
        profiles=_profiles(request, image),
    )
    return InstanceRow(id=0, ref=ref, data=data, created_at=clock.now())


def config_of_image(image: ImageRow) -> dict[str, str]:
    """Return the keys that an instance gets from its image."""
    config = {f"image.{key}": value for key, value in image.properties.items()}
    return config | {"volatile.base_image": image.fingerprint, "volatile.apply_template": "create"}


def _architecture(wanted: str, image: ImageRow | None) -> str:
    """Return the image's architecture; that of the request is ignored, as clients use other names for it."""
    return image.architecture if image else known_architecture(wanted) or identity.machine()


def known_architecture(name: str) -> str:
    """Return the kernel's name of an architecture in a request; empty if not given. Raises InvalidConfig."""
    found = canonical_architecture(name) or name
    if found:
        codes.number(codes.ARCHITECTURES, found, "architecture")
    return found


def _profiles(request: InstancesPost, image: ImageRow | None) -> list[str]:
    """Return the requested profiles, by default those of the image, or `default`."""
    if request.profiles is not None:
        return list(request.profiles)
    return list(image.profiles) if image is not None else ["default"]


async def build(ctx: Context, instance: Loaded, image: ImageRow | None) -> None:
    """Create the files of a reserved instance and make it visible; on failure, remove everything."""
    cgroup_moves.warm_soon()  # most instances are started immediately after their creation
    async with ctx.locks.hold("instance", instance.ref), Rollback() as undo:
        undo.push(discard, ctx, instance)
        idmap = identity.next_idmap(instance)
        source = ctx.images.source(image) if image is not None else None
        await ctx.storage.volumes.create(
            instance.pool, instance.ref.volume, idmap, source, instance.expanded.root_size
        )
        undo.push(ctx.storage.volumes.delete, instance.pool, instance.ref.volume)
        await in_thread(create_log_folder, ctx, instance)
        await ctx.database.write("complete creation of instance", _mark_ready, instance, image)
        undo.keep()
    ctx.warn_of_keys(instance)
    location = ctx.database.member.name
    context = {"location": location, "storage-pool": instance.pool, "type": "container"}
    ctx.lifecycle("created", instance.ref, context)


def _mark_ready(tx: Transaction, instance: Loaded, image: ImageRow | None) -> None:
    """Make the instance visible. Its image may have been deleted meanwhile."""
    instance_rows.set_ready(tx, instance.row.id)
    if image is not None:
        with contextlib.suppress(NotFound):
            image_rows.set_last_used(tx, image.id, clock.now())


async def discard(ctx: Context, instance: Loaded) -> None:
    """Release a reserved name."""
    await ctx.database.write("discard instance", instance_rows.delete, instance.row.id)
    await ctx.networks.follow({instance.ref}, ())


def create_log_folder(ctx: Context, instance: Loaded) -> None:
    """Discard logs of an earlier instance of that name."""
    folder = ctx.paths.instance_logs(instance.ref.storage_name)
    if folder.exists():
        remove_tree(folder)
    folder.mkdir(mode=0o700)

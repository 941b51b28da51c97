"""Creation of instances: the request is validated immediately, files are created in the background."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import uuid
from dataclasses import replace
from pathlib import Path

from utsuwa.core import clock
from utsuwa.core.architectures import canonical_architecture
from utsuwa.core.errors import InvalidConfig, InvalidRequest, NotFound, NotSupportedYet
from utsuwa.core.names import check_instance_name
from utsuwa.core.rollback import Rollback
from utsuwa.core.scope import Policy
from utsuwa.db import codes
from utsuwa.db import images as image_rows
from utsuwa.db import instances as instance_rows
from utsuwa.db.images import ImageRow
from utsuwa.db.instances import InstanceRow
from utsuwa.db.transaction import Transaction
from utsuwa.host.cgroups import moves as cgroup_moves
from utsuwa.host.files.filetree import remove_tree
from utsuwa.instances import allocations, identity
from utsuwa.instances.confinement import limits
from utsuwa.instances.context import Context, merge, profiles_named
from utsuwa.instances.model import Loaded
from utsuwa.instances.policy import judge
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
    """Whether the daemon alone writes a key, whatever a request says: a request leaves it as it is.

    So are the names of interfaces on the host, which are removed by them.
    """
    return key.startswith(_OWN_VOLATILE) or (key.startswith("volatile.") and key.endswith(".host_name"))


def random_name() -> str:
    """Return a random name for an instance without one."""
    return f"{secrets.choice(_FIRST)}-{secrets.choice(_SECOND)}-{secrets.token_hex(2)}"


async def reserve(
    ctx: Context, policy: Policy, project: str, request: InstancesPost
) -> tuple[Loaded, ImageRow | None]:
    """Judge the request and reserve the name: a row in the state `creating` that `build` or `discard` ends.

    Raises InvalidRequest, NotFound (image, profile, pool), AlreadyExists or OutOfSpace, nothing being made.
    """
    _refuse_what_is_not_there(request)
    name = check_instance_name(request.name or random_name())
    image = await _find_image(ctx, project, request.source)
    row = _first_row(project, name, request, image)
    instance = await _judged_and_stored(ctx, policy, row)
    await ctx.networks.refresh(instance.key)
    return instance, image


async def _judged_and_stored(ctx: Context, policy: Policy, row: InstanceRow) -> Loaded:
    """Judge by the profiles as they are when the row is stored."""
    while True:
        instance = await _judged(ctx, policy, row)
        async with allocations.hold(ctx, row.project, row.profiles):
            if await merged(ctx, row) == instance:
                return await _insert(ctx, instance)


async def _judged(ctx: Context, policy: Policy, row: InstanceRow) -> Loaded:
    loaded = judge(await merged(ctx, row), policy)
    await limits.check_change({}, loaded.expanded_config)
    await check_by_liblxc(ctx, loaded)
    await ctx.storage.pools.get(loaded.pool)
    return loaded


async def _insert(ctx: Context, instance: Loaded) -> Loaded:
    given = await identity.reserve(ctx, instance)
    await allocations.check(ctx, [instance], given)
    stored = replace(instance.row, config={**instance.row.config, **given})
    row_id = await ctx.database.begin("reserve instance", instance_rows.insert, stored)
    return replace(instance, row=replace(stored, id=row_id))


async def merged(ctx: Context, row: InstanceRow) -> Loaded:
    """The instance of a row as its profiles are stored now. Raises NotFound, UnknownCode."""
    return merge(row, await ctx.database.read("profiles", profiles_named, row.project, row.profiles))


async def check_by_liblxc(ctx: Context, instance: Loaded, old: Loaded | None = None) -> None:
    """Have liblxc read `raw.lxc` where it is not the `old` one. Raises InvalidConfig with its reason."""
    raw = instance.expanded_config.get("raw.lxc", "")
    if not raw or (old is not None and raw == old.expanded_config.get("raw.lxc")):
        return
    handle = os.memfd_create("raw.lxc", os.MFD_CLOEXEC)
    try:
        os.write(handle, raw.encode() + b"\n")
        await ctx.helper.check_config(Path(f"/proc/{os.getpid()}/fd/{handle}"))
    except InvalidConfig as error:
        raise InvalidConfig(f"Invalid value for 'raw.lxc': {error.message}") from error
    finally:
        os.close(handle)


def _refuse_what_is_not_there(request: InstancesPost) -> None:
    if request.type not in ("", "container"):
        raise InvalidRequest(
            f"Instance type {request.type!r} is not supported: this server runs containers only"
        )
    if request.instance_type:
        raise NotSupportedYet(
            "Instance types by size (instance_type) are not supported yet: set limits instead"
        )
    if request.stateful:
        raise InvalidRequest("A new instance cannot be stateful")
    kind = request.source.type
    if kind in ("copy", "migration", "backup"):
        raise NotSupportedYet(f"Creating an instance from a {kind} is not supported yet")
    if kind not in ("image", "none"):
        raise InvalidRequest(f"Unknown source type {kind!r}: use image or none")
    if request.source.server:
        raise NotSupportedYet("Images from remote servers are not supported yet: import the image first")


async def _find_image(ctx: Context, project: str, source: InstanceSource) -> ImageRow | None:
    if source.type == "none":
        return None
    image = await ctx.images.resolve(
        project,
        alias=source.alias or None,
        fingerprint=source.fingerprint or None,
        properties=source.properties or None,
    )
    return ctx.images.check_here(image)


def _first_row(project: str, name: str, request: InstancesPost, image: ImageRow | None) -> InstanceRow:
    config = {key: value for key, value in request.config.items() if not is_own_volatile(key)}
    if image is not None:
        config.update({f"image.{key}": value for key, value in image.properties.items()})
        config["volatile.base_image"] = image.fingerprint
        config["volatile.apply_template"] = "create"
    config["volatile.uuid"] = str(uuid.uuid4())
    config["volatile.cloud-init.instance-id"] = str(uuid.uuid4())
    return InstanceRow(
        id=0,
        project=project,
        name=name,
        architecture=_architecture(request.architecture, image),
        ephemeral=request.ephemeral,
        stateful=False,
        description=request.description,
        created_at=clock.now(),
        last_used_at=None,
        config=config,
        devices={key: dict(device) for key, device in request.devices.items()},
        profiles=_profiles(request, image),
        state="creating",
    )


def _architecture(wanted: str, image: ImageRow | None) -> str:
    """That of the image, whatever the request says: clients send their own numbers and names for it."""
    return image.architecture if image else known_architecture(wanted) or identity.machine()


def known_architecture(name: str) -> str:
    """The kernel's name for what a request calls an architecture, empty for none. Raises InvalidConfig."""
    found = canonical_architecture(name) or name
    if found:
        codes.number(codes.ARCHITECTURES, found, "architecture")
    return found


def _profiles(request: InstancesPost, image: ImageRow | None) -> list[str]:
    """Those asked for, else those of the image, else `default`."""
    if request.profiles is not None:
        return list(request.profiles)
    return list(image.profiles) if image is not None else ["default"]


async def build(ctx: Context, instance: Loaded, image: ImageRow | None) -> None:
    """Create the reserved instance's files and make it visible; on failure, remove everything."""
    cgroup_moves.warm_soon()  # most instances are started as soon as they are there
    async with ctx.locks.hold("instance", *instance.key), Rollback() as undo:
        undo.push(discard, ctx, instance)
        idmap = identity.idmap_of(instance.row.config, "volatile.idmap.next")
        source = ctx.images.source(image) if image is not None else None
        await ctx.storage.volumes.create(instance.pool, instance.volume, idmap, source, instance.root_size)
        undo.push(ctx.storage.volumes.delete, instance.pool, instance.volume)
        await asyncio.to_thread(_fresh_log_folder, ctx, instance)
        await ctx.database.write("instance is ready", _made, instance, image)
        undo.keep()
    location = ctx.database.member.name
    context = {"location": location, "storage-pool": instance.pool, "type": "container"}
    ctx.lifecycle("created", *instance.key, context)


def _made(tx: Transaction, instance: Loaded, image: ImageRow | None) -> None:
    """Make the instance visible; its image may have been deleted meanwhile."""
    instance_rows.set_ready(tx, instance.row.id)
    if image is not None:
        with contextlib.suppress(NotFound):
            image_rows.set_last_used(tx, image.id, clock.now())


async def discard(ctx: Context, instance: Loaded) -> None:
    """Release a reserved name."""
    await ctx.database.write("discard instance", instance_rows.delete, instance.row.id)
    await ctx.networks.refresh(instance.key)


def _fresh_log_folder(ctx: Context, instance: Loaded) -> None:
    """Discard logs of an earlier instance of that name."""
    folder = ctx.paths.instance_logs(instance.storage_name)
    if folder.exists():
        remove_tree(folder)
    folder.mkdir(mode=0o700)

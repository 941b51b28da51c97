"""The services for the verbs of this package, and loading of instances."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from utsuwa.core.errors import NotFound, OtherMember
from utsuwa.core.instance_keys import INSTANCE_KEYS
from utsuwa.core.locks import NamedLocks
from utsuwa.core.paths import StatePaths
from utsuwa.core.refs import InstanceRef, SnapshotRef
from utsuwa.core.scope import Policy
from utsuwa.core.warning_types import KEYS_WITHOUT_EFFECT
from utsuwa.db import instances as instance_rows
from utsuwa.db import profiles as profile_rows
from utsuwa.db.codes import State
from utsuwa.db.database import Database
from utsuwa.db.instances import InstanceRow
from utsuwa.db.profiles import ProfileRow
from utsuwa.db.projects import effective
from utsuwa.db.transaction import Transaction
from utsuwa.host.checkpoint.finder import CriuFinder
from utsuwa.host.helper.client import Helper
from utsuwa.images.manager import ImageManager
from utsuwa.images.remote.manager import RemoteImages
from utsuwa.instances.files.places import Places
from utsuwa.instances.guest.sockets import GuestSockets
from utsuwa.instances.model import Loaded, Running, RuntimePaths, RuntimeTable, not_found
from utsuwa.instances.templates.process import TemplateProcess
from utsuwa.networks.attachments import Attachments
from utsuwa.operations.kinds import Kind
from utsuwa.operations.operations import Operation, Operations
from utsuwa.operations.warnings import Warnings
from utsuwa.profiles.expand import expand
from utsuwa.projects import restrictions as project_rules
from utsuwa.projects.restrictions import Restrictions
from utsuwa.security.apparmor import Profiles
from utsuwa.security.server_config import ServerConfig
from utsuwa.storage.manager import StorageManager


@dataclass(frozen=True)
class Context:
    """The context of every verb, which must not use anything else."""

    database: Database
    paths: StatePaths
    operations: Operations
    warnings: Warnings
    helper: Helper
    storage: StorageManager
    images: ImageManager
    remote_images: RemoteImages
    networks: Attachments
    apparmor: Profiles
    policy: Policy
    """The policy for all instances, regardless of the caller."""
    guest_sockets: GuestSockets
    cgroup: str
    """The name of the daemon's own cgroup, below which all of its containers are."""
    criu: CriuFinder
    settings: ServerConfig
    boot_id: str
    """The kernel's id of this boot, which distinguishes a reboot of the host from a restart of the daemon."""
    runtime: RuntimeTable = field(default_factory=RuntimeTable)
    locks: NamedLocks = field(default_factory=NamedLocks)
    files: Places = field(default_factory=Places)
    templates: TemplateProcess = field(default_factory=TemplateProcess)

    def runtime_paths(self, instance: Loaded | Running) -> RuntimePaths:
        return RuntimePaths(self.paths.instance_logs(instance.ref.storage_name))

    def lifecycle(self, action: str, ref: InstanceRef, context: Mapping[str, object] | None = None) -> None:
        """Publish a lifecycle event of an instance (`started` becomes `instance-started`)."""
        self.operations.events.publish_lifecycle(
            f"instance-{action}", ref.url(), ref.project, dict(context) if context else None
        )

    def snapshot_lifecycle(
        self, action: str, ref: SnapshotRef, context: Mapping[str, object] | None = None
    ) -> None:
        """Publish a lifecycle event of a snapshot (`created` becomes `instance-snapshot-created`)."""
        self.operations.events.publish_lifecycle(
            f"instance-snapshot-{action}",
            ref.url,
            ref.instance.project,
            dict(context) if context else None,
        )

    def in_background(self, kind: Kind, ref: InstanceRef, work: Callable[[], Awaitable[None]]) -> Operation:
        """Start an operation on an instance that does `work`."""

        async def run(_: Operation) -> None:
            await work()

        return self.operations.start(kind, ref.project, run, names=[ref.name])

    def warn_of_keys(self, instance: Loaded) -> None:
        """Raise or resolve the warning about an instance's keys that have no effect in this version.

        They are its own or those of its profiles.
        """
        names = INSTANCE_KEYS.without_effect(instance.expanded.config)
        self.warnings.judge(
            KEYS_WITHOUT_EFFECT,
            f"these keys of instance {instance.name!r} have no effect in this version: {', '.join(names)}"
            if names
            else "",
            instance.subject,
        )

    async def patch_config(self, row_id: int, changes: Mapping[str, str | None]) -> None:
        """Change some keys in one transaction; None removes a key."""
        await self.database.write("patch instance config", instance_rows.patch_config, row_id, changes)


Parts = tuple[InstanceRow, Sequence[ProfileRow], Restrictions]
"""An instance's row, its profiles in order, and the restrictions of its project: what `merge` takes."""


def merge(row: InstanceRow, profiles: Sequence[ProfileRow], restrictions: Restrictions) -> Loaded:
    """Return the instance, expanded by its profiles, in order; `restrictions` are those of its project."""
    return Loaded(row, expand(profiles, row.data), restrictions)


def profiles_named(tx: Transaction, project: str, names: Iterable[str]) -> list[ProfileRow]:
    """Return the profiles that an instance of `project` has under these names, in this order.

    Raises NotFound for the first that does not exist, UnknownCode for an unreadable one.
    """
    wanted = list(names)
    if not wanted:
        return []
    known = {p.name: p for p in profile_rows.get_all(tx, effective(tx, project, "profiles"))}
    for name in wanted:
        if name not in known:
            raise NotFound(
                f"Requested profile {name!r} does not exist: create it, "
                "or choose one of `utsuwa profile list`"
            )
    found = [known[name] for name in wanted]
    profile_rows.refuse_unreadable(found)
    return found


async def load(ctx: Context, ref: InstanceRef) -> Loaded:
    """Load an instance on this member, in order to act on it. Raises as `find`, and OtherMember."""
    return check_here(await find(ctx, ref))


@dataclass(frozen=True)
class Seen:
    """An instance as it was loaded."""

    instance: Loaded
    moment: int | None
    """When it was read, for `Database.unchanged_since`."""


async def look(ctx: Context, ref: InstanceRef) -> Seen:
    """As `load`, for a `load_again` that follows."""
    moment = ctx.database.moment()
    return Seen(await load(ctx, ref), moment)


async def load_again(ctx: Context, ref: InstanceRef, seen: Seen | None) -> Loaded:
    """As `load`, without reading it if nothing was written since it was seen."""
    if seen is not None and ctx.database.unchanged_since(seen.moment):
        return seen.instance
    return await load(ctx, ref)


def check_here(instance: Loaded) -> Loaded:
    """Return an instance, or raise OtherMember if it is on another member."""
    if not instance.row.here:
        raise OtherMember(f"The instance {instance.name!r} is on {instance.row.location!r}: ask that member")
    return instance


async def find(ctx: Context, ref: InstanceRef) -> Loaded:
    """Load a ready instance on any member.

    Raises NotFound, also while it is being created, and UnknownCode if its row or that of a profile is
    unreadable.
    """
    return merge(*await recall_parts(ctx, ref))


async def recall_parts(ctx: Context, ref: InstanceRef) -> Parts:
    """Return what `fetch_parts` returns, without reading it if nothing was written since the last time.

    It must not be modified.
    """
    return await ctx.database.recall("instance", fetch_parts, ref)


def fetch(tx: Transaction, ref: InstanceRef) -> Loaded:
    """Return a ready instance on any member. Raises as `find`."""
    return merge(*fetch_parts(tx, ref))


def fetch_parts(tx: Transaction, ref: InstanceRef) -> Parts:
    """Return what `merge` makes a ready instance of. Raises as `find`."""
    row = instance_rows.get(tx, ref)
    if row.state != "ready":
        raise not_found(ref.name)
    found = profile_rows.get_applied(tx, row.id)
    profile_rows.refuse_unreadable(found)
    applied = {profile.id: profile for profile in found}
    used = [applied[profile_id] for profile_id in row.data.profile_ids]
    return row, used, project_rules.get(tx, ref.project)


async def find_all(ctx: Context, project: str | None) -> Sequence[Loaded]:
    """Return the ready instances of a project, or of all (None), on all members, in order.

    In a constant number of queries, or in none if nothing was written since the last time: the result must
    not be modified. Those with an unreadable profile are omitted, as their expansion is unknown.
    """
    return await ctx.database.recall("instances", _ready, project)


def _ready(tx: Transaction, project: str | None) -> Sequence[Loaded]:
    return _merged(tx, instance_rows.get_all(tx, project), ("ready",))


async def load_all(ctx: Context, states: tuple[State, ...] = ("ready",)) -> list[Loaded]:
    """As `find_all`, for the instances of this member in these states, of all projects."""

    def fetch(tx: Transaction) -> list[Loaded]:
        return _merged(tx, instance_rows.get_here(tx), states)

    return await ctx.database.read("instances", fetch)


def _merged(tx: Transaction, found: Iterable[InstanceRow], states: tuple[State, ...]) -> list[Loaded]:
    rows = [row for row in found if row.state in states]
    profiles = {profile.id: profile for profile in profile_rows.get_all(tx, None)}
    applied = ((row, [profiles[profile_id] for profile_id in row.data.profile_ids]) for row in rows)
    rules = project_rules.get_all(tx)
    return [
        merge(row, used, rules[row.ref.project])
        for row, used in applied
        if all(profile.readable for profile in used)
    ]

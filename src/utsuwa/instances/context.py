"""The services for the verbs of this package, and loading of instances."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from utsuwa.core.errors import NotFound, OtherMember
from utsuwa.core.locks import NamedLocks
from utsuwa.core.paths import StatePaths
from utsuwa.core.scope import Policy
from utsuwa.core.urls import object_url
from utsuwa.db import instances as instance_rows
from utsuwa.db import profiles as profile_rows
from utsuwa.db.codes import State
from utsuwa.db.database import Database
from utsuwa.db.instances import InstanceRow
from utsuwa.db.profiles import ProfileRow
from utsuwa.db.projects import effective
from utsuwa.db.transaction import Transaction
from utsuwa.host.helper.client import Helper
from utsuwa.images.manager import ImageManager
from utsuwa.instances.model import Loaded, RuntimePaths, RuntimeTable, not_found
from utsuwa.networks.attachments import Attachments
from utsuwa.operations.kinds import Kind
from utsuwa.operations.operations import Operation, Operations
from utsuwa.profiles.expand import expand
from utsuwa.security.apparmor import Profiles
from utsuwa.storage.manager import StorageManager


@dataclass(frozen=True)
class Context:
    """The context of every verb, which must not use anything else."""

    database: Database
    paths: StatePaths
    operations: Operations
    helper: Helper
    storage: StorageManager
    images: ImageManager
    networks: Attachments
    apparmor: Profiles
    policy: Policy
    """The policy for all instances, regardless of the caller."""
    cgroup: str
    """The name of the daemon's own cgroup, below which all of its containers are."""
    boot_id: str
    """The kernel's id of this boot: tells a machine's reboot from the daemon's restart."""
    runtime: RuntimeTable = field(default_factory=RuntimeTable)
    locks: NamedLocks = field(default_factory=NamedLocks)

    def runtime_paths(self, instance: Loaded) -> RuntimePaths:
        return RuntimePaths(self.paths.instance_logs(instance.storage_name))

    def lifecycle(
        self, action: str, project: str, name: str, context: Mapping[str, object] | None = None
    ) -> None:
        """Publish a lifecycle event of an instance (`started` becomes `instance-started`)."""
        self.operations.events.publish_lifecycle(
            f"instance-{action}",
            object_url("instances", name, project=project),
            project,
            dict(context) if context else None,
        )

    def in_background(
        self, kind: Kind, project: str, names: Sequence[str], work: Callable[[], Awaitable[None]]
    ) -> Operation:
        """An operation on some instances, which does `work`."""

        async def run(_: Operation) -> None:
            await work()

        return self.operations.start(kind, project, run, names=names)

    async def patch_config(self, row_id: int, changes: Mapping[str, str | None]) -> None:
        """Store volatile changes in one transaction; None removes a key."""
        await self.database.write("patch instance config", instance_rows.patch_config, row_id, changes)


def merge(row: InstanceRow, profiles: Sequence[ProfileRow]) -> Loaded:
    """Return the instance with its config expanded by its profiles, in order."""
    config, devices = expand(profiles, row.config, row.devices)
    return Loaded(row=row, expanded_config=config, expanded_devices=devices)


def profiles_named(tx: Transaction, project: str, names: Iterable[str]) -> list[ProfileRow]:
    """The profiles that an instance of `project` has by these names, in their order.

    Raises NotFound for the first that does not exist, UnknownCode for one that cannot be read.
    """
    wanted = list(names)
    if not wanted:
        return []
    known = {p.name: p for p in profile_rows.get_all(tx, effective(tx, project, "profiles"))}
    for name in wanted:
        if name not in known:
            raise NotFound(f"Requested profile {name!r} does not exist")
    found = [known[name] for name in wanted]
    profile_rows.refuse_unreadable(found)
    return found


async def load(ctx: Context, project: str, name: str) -> Loaded:
    """Load an instance on this member, in order to act on it. Raises as `find` does, and OtherMember."""
    return check_here(await find(ctx, project, name))


def check_here(instance: Loaded) -> Loaded:
    """Return an instance, or raise OtherMember if it is on another member."""
    if not instance.row.here:
        raise OtherMember(f"The instance {instance.name!r} is on {instance.row.location!r}: ask that member")
    return instance


async def find(ctx: Context, project: str, name: str) -> Loaded:
    """Load a ready instance on any member.

    Raises NotFound, also while it is still being created, and UnknownCode where its row or a profile's
    cannot be read.
    """
    return await ctx.database.read("instance", _fetch, project, name)


def _fetch(tx: Transaction, project: str, name: str) -> Loaded:
    row = instance_rows.get(tx, project, name)
    if row.state != "ready":
        raise not_found(name)
    found = profile_rows.get_applied(tx, row.id)
    profile_rows.refuse_unreadable(found)
    applied = {profile.id: profile for profile in found}
    return merge(row, [applied[profile_id] for profile_id in row.profile_ids])


async def find_all(ctx: Context, project: str | None) -> list[Loaded]:
    """All ready instances of a project, or of all (None), on all members, by name; a constant number of
    queries.

    Those with a profile that cannot be read are left out: what they are as a whole is not known.
    """

    def fetch(tx: Transaction) -> list[Loaded]:
        return _merged(tx, instance_rows.get_all(tx, project), ("ready",))

    return await ctx.database.read("instances", fetch)


async def load_all(ctx: Context, states: tuple[State, ...] = ("ready",)) -> list[Loaded]:
    """The instances of this member that are in these states, of all projects; otherwise as `find_all`."""

    def fetch(tx: Transaction) -> list[Loaded]:
        return _merged(tx, instance_rows.get_here(tx), states)

    return await ctx.database.read("instances", fetch)


def _merged(tx: Transaction, found: Iterable[InstanceRow], states: tuple[State, ...]) -> list[Loaded]:
    rows = [row for row in found if row.state in states]
    profiles = {profile.id: profile for profile in profile_rows.get_all(tx, None)}
    applied = ((row, [profiles[profile_id] for profile_id in row.profile_ids]) for row in rows)
    return [merge(row, used) for row, used in applied if all(profile.readable for profile in used)]

"""Profiles, whose changes are applied to the running instances that use them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import replace
from typing import Any, Protocol

from utsuwa import devices as device_types
from utsuwa.core.errors import Forbidden, InUse, InvalidConfig
from utsuwa.core.instance_keys import PROFILE_KEYS
from utsuwa.core.names import check_object_name
from utsuwa.core.rollback import Rollback
from utsuwa.core.scope import Policy, Scope
from utsuwa.core.tasks import finish
from utsuwa.core.urls import object_url
from utsuwa.db import networks as network_rows
from utsuwa.db import profiles as rows
from utsuwa.db import storage_pools as pool_rows
from utsuwa.db.database import Database
from utsuwa.db.profiles import ProfileRow, Users
from utsuwa.db.transaction import Transaction
from utsuwa.operations.events import EventHub
from utsuwa.projects import restrictions, rules
from utsuwa.projects.scope import effective
from utsuwa.wire.edits import Change, IfMatch, edited
from utsuwa.wire.profiles import Profile, ProfilePut, ProfilesPost

DEFAULT = "default"


Judge = Callable[[Policy, ProfileRow], None]
"""Raises if the policy does not allow a profile, even if no instance uses it."""


Store = Callable[[Transaction], None]
"""Stores what a change of a profile has changed in the instances that use it."""


class Follower(Protocol):
    """Applies a changed profile to the instances that use it."""

    def __call__(
        self, policy: Policy, old: ProfileRow, new: ProfileRow, undo: Rollback, /
    ) -> AbstractAsyncContextManager[AbstractAsyncContextManager[Store]]:
        """Entered before the new profile is stored; raising then rejects the complete change.

        Undo steps of changes to instances are pushed to `undo`, which runs if a later step fails. The block
        is left when the profile is stored or everything is undone: until then, the instances are locked.
        The inner block is entered for the transaction in which profile and instances are stored together.
        """


def editable(row: ProfileRow) -> ProfilePut:
    return ProfilePut(config=row.config, description=row.description, devices=row.devices)


def _with(row: ProfileRow, wanted: ProfilePut) -> ProfileRow:
    return replace(
        row,
        description=wanted.description,
        config=PROFILE_KEYS.set_only(wanted.config, row.config),
        devices=_copied(wanted.devices),
    )


class ProfileManager:
    """The profiles of all projects."""

    def __init__(self, database: Database, events: EventHub) -> None:
        self._database = database
        self._events = events
        self._judges: list[Judge] = []
        self._followers: list[Follower] = []
        self._listeners: list[Callable[[], Awaitable[None]]] = []

    def judge_by(self, judge: Judge) -> None:
        """Have `judge` check every new and every changed profile."""
        self._judges.append(judge)

    def on_change(self, follower: Follower) -> None:
        self._followers.append(follower)

    def on_stored(self, listener: Callable[[], Awaitable[None]]) -> None:
        """Call `listener` after each change of a profile that instances may use."""
        self._listeners.append(listener)

    async def list(self, scope: Scope, project: str | None) -> list[Profile]:
        """Return the profiles of a project, or of all that the caller sees (None), with their users, in a
        constant number of queries."""
        holder = None if project is None else await effective(self._database, project, "profiles")

        def fetch(tx: Transaction) -> tuple[Collection[ProfileRow], rows.Users]:
            return rows.get_all(tx, holder), rows.used_by(tx, holder, None)

        found, users = await self._database.read("profiles", fetch)
        visible = [row for row in found if project is not None or scope.sees(row.project)]
        return [_shown(scope, row, users) for row in visible if row.readable]

    async def get(self, scope: Scope, project: str, name: str) -> tuple[Profile, ProfileRow]:
        """Return the profile's record and row (for its ETag). Raises NotFound."""
        holder = await effective(self._database, project, "profiles")

        def fetch(tx: Transaction) -> tuple[ProfileRow, rows.Users]:
            return rows.get(tx, holder, name), rows.used_by(tx, holder, (name,))

        row, users = await self._database.read("profile", fetch)
        return _shown(scope, row, users), row

    async def create(self, policy: Policy, project: str, request: ProfilesPost) -> str:
        """Create a profile and return its URL. Raises AlreadyExists, InvalidName, InvalidConfig, NotFound."""
        row = ProfileRow(
            id=0,
            project=await effective(self._database, project, "profiles"),
            name=check_object_name("Profile", request.name),
            description=request.description,
            config=PROFILE_KEYS.set_only(request.config),
            devices=_copied(request.devices),
        )
        await self._check(policy, row)
        await self._database.write("create profile", rows.insert, row)
        return self._publish("created", row)

    async def edit(
        self, policy: Policy, project: str, name: str, change: Change[ProfilePut], if_match: IfMatch
    ) -> None:
        """Change the editable part, and apply it to the instances that use the profile.

        Raises NotFound, PreconditionFailed, InvalidConfig, or the error of a running instance.
        """
        holder = await effective(self._database, project, "profiles")
        await finish(self._update(policy, holder, name, change, if_match))

    async def rename(self, project: str, name: str, new: str) -> str:
        """Rename and return the new URL. Raises Forbidden (`default`), AlreadyExists, NotFound."""
        if name == DEFAULT:
            raise Forbidden("The 'default' profile cannot be renamed")
        check_object_name("Profile", new)
        holder = await effective(self._database, project, "profiles")

        def rename(tx: Transaction) -> ProfileRow:
            row = rows.get(tx, holder, name)
            rows.rename(tx, row.id, new)
            return row

        async with self._database.locks.hold("profile", holder, name):
            row = await self._database.write("rename profile", rename)
        return self._publish("renamed", replace(row, name=new), {"old_name": name})

    async def delete(self, project: str, name: str) -> None:
        """Raises Forbidden (`default`), InUse, NotFound."""
        if name == DEFAULT:
            raise Forbidden("The 'default' profile cannot be deleted")
        holder = await effective(self._database, project, "profiles")

        def delete(tx: Transaction) -> ProfileRow:
            row = rows.get(tx, holder, name)
            if rows.used_by(tx, holder, (name,)):
                raise InUse(
                    f"Profile {name!r} is currently in use: remove it first from the instances that "
                    f"`utsuwa profile show {name}` lists"
                )
            rows.delete(tx, row.id)
            return row

        async with self._database.locks.hold("profile", holder, name):
            row = await self._database.write("delete profile", delete)
        self._publish("deleted", row)

    async def _update(
        self,
        policy: Policy,
        project: str,
        name: str,
        change: Change[ProfilePut],
        if_match: IfMatch,
    ) -> None:
        async with (
            self._database.locks.hold("profile", project, name),
            AsyncExitStack() as followed,
            Rollback() as undo,
        ):
            old = await self._database.read("profile", rows.get, project, name)
            new = _with(old, edited(editable(old), change, if_match))
            await self._check(policy, new)
            applied = [
                await followed.enter_async_context(follower(policy, old, new, undo))
                for follower in self._followers
            ]
            async with AsyncExitStack() as storing:
                stores = [await storing.enter_async_context(one) for one in applied]
                await self._database.write("update profile", _update_with_users, new, stores)
            undo.keep()
        for listener in self._listeners:
            await listener()
        self._publish("updated", new)

    async def _check(self, policy: Policy, row: ProfileRow) -> None:
        PROFILE_KEYS.check(row.config)
        for judge in self._judges:
            judge(policy, row)
        device_types.check_devices(row.devices, profile=True)
        restricted = await self._database.read("restrictions", restrictions.get, row.project)
        restricted.check(row.config, row.devices, profile=True)
        await self._check_named(row, "pool", "storage pool")
        await self._check_named(row, "network", "network")

    async def _check_named(self, row: ProfileRow, key: str, what: str) -> None:
        """Reject devices with a pool or network that does not exist."""
        wanted = {name: device[key] for name, device in row.devices.items() if device.get(key)}
        if not wanted:
            return
        if key == "pool":
            known = {pool.name for pool in await self._database.read("pools", pool_rows.get_all)}
        else:
            holder = await effective(self._database, row.project, "networks")
            networks = await self._database.read("networks", network_rows.get_all, holder)
            known = {network.name for network in networks}
        for name, value in wanted.items():
            if value not in known:
                raise InvalidConfig(f"Invalid device {name!r}: {what} {value!r} does not exist")

    def _publish(
        self,
        action: str,
        row: ProfileRow,
        context: Mapping[str, Any] | None = None,
    ) -> str:
        url = object_url("profiles", row.name, project=row.project)
        self._events.publish_lifecycle(f"profile-{action}", url, row.project, context)
        return url


def _update_with_users(tx: Transaction, row: ProfileRow, stores: Collection[Store]) -> None:
    """Raises NotFound, or Forbidden if it violates the limits or restrictions of a project that uses it.

    Instances of other members, which are not changed now, are checked as well.
    """
    rows.update(tx, row)
    for store in stores:
        store(tx)
    users = rows.used_by(tx, row.project, (row.name,)).get((row.project, row.name), ())
    rules.check_all(tx, [ref.project for ref in users])


def _shown(scope: Scope, row: ProfileRow, users: Users) -> Profile:
    return Profile(
        name=row.name,
        description=row.description,
        config=row.config,
        devices=row.devices,
        project=row.project,
        used_by=scope.visible(ref.url() for ref in users.get((row.project, row.name), ())),
    )


def _set_only(config: Mapping[str, str]) -> dict[str, str]:
    """Return the config without keys whose value is empty, which means unset."""
    return {key: value for key, value in config.items() if value}


def _copied(devices: Mapping[str, Mapping[str, str]]) -> dict[str, dict[str, str]]:
    return {name: _set_only(device) for name, device in devices.items()}

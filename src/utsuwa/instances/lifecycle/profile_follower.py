"""Changes of profiles, which apply to all instances that use them, or to none."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from functools import partial

from utsuwa.core.rollback import Rollback
from utsuwa.core.scope import Policy
from utsuwa.db.codes import State
from utsuwa.db.profiles import ProfileRow
from utsuwa.instances import allocations
from utsuwa.instances.confinement import limits
from utsuwa.instances.confinement.raw_lxc import check_raw_lxc
from utsuwa.instances.context import Context, load_all, merge, profiles_named
from utsuwa.instances.lifecycle import changes
from utsuwa.instances.lifecycle.create import check_by_liblxc
from utsuwa.instances.model import Loaded
from utsuwa.instances.policy import judge
from utsuwa.profiles.manager import Store


def judge_profile(policy: Policy, profile: ProfileRow) -> None:
    """Check a profile by itself, as restricted callers must not create profiles for use by others."""
    if policy.restricted:
        check_raw_lxc(profile.config.get("raw.lxc", ""), policy)


class ProfileFollower:
    """Applies a change of a profile to the instances that use it: to all of them, or to none."""

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx

    @asynccontextmanager
    async def __call__(
        self, policy: Policy, old: ProfileRow, new: ProfileRow, undo: Rollback
    ) -> AsyncIterator[AbstractAsyncContextManager[Store]]:
        """Apply the change to the host, and hold the locks until the profile is stored or `undo` has run.

        Meanwhile, the instances are not changed or started otherwise, and none is created with the old
        profile.
        """
        async with await self._locked(old):
            plan, changed = await self._follow(policy, old, new, undo)
            yield self._storing(plan, changed)

    @asynccontextmanager
    async def _storing(self, plan: changes.Plan, changed: Sequence[Loaded]) -> AsyncIterator[Store]:
        async with allocations.hold(self._ctx):
            yield partial(changes.update_all, rows=await changes.rows_to_store(self._ctx, plan, changed))
        for new in changed:
            self._ctx.runtime.update(new)
            self._ctx.warn_of_keys(new)

    async def _locked(self, profile: ProfileRow) -> AsyncExitStack:
        """Acquire the locks of all ready instances with the profile, in order, and of the profile."""
        while True:
            users = await self._users(profile, ("ready",))
            async with AsyncExitStack() as locks:
                for user in users:
                    await locks.enter_async_context(self._ctx.locks.hold("instance", user.ref))
                held = self._ctx.locks.hold("profile", profile.project, profile.name)
                await locks.enter_async_context(held)
                now = await self._users(profile, ("ready",))
                if {user.ref for user in now} <= {user.ref for user in users}:
                    return locks.pop_all()

    async def _users(self, profile: ProfileRow, states: tuple[State, ...]) -> list[Loaded]:
        """Return the instances on this member. Those on others use the new profile from their next start."""
        return _using(profile, await load_all(self._ctx, states))

    async def _follow(
        self, policy: Policy, old: ProfileRow, new: ProfileRow, undo: Rollback
    ) -> tuple[changes.Plan, list[Loaded]]:
        """Apply the new profile to the host, and return what is to be stored with it."""
        ctx = self._ctx
        # Including those being created, which will be started with what is stored now.
        users = await self._users(old, ("ready", "creating"))
        found = await ctx.database.read("profiles", profiles_named, old.project, _all_profiles(users))
        profiles = {profile.name: profile for profile in found}
        profiles[old.name] = new
        wanted = []
        for before in users:
            with changes.naming(before):
                applied = [profiles[name] for name in before.data.profiles]
                after = merge(before.row, applied, before.restrictions)
                judge(after.data, after.expanded, after.restrictions, policy)
                await changes.check_change(ctx, before, after)
                await limits.check_change(before.expanded.config, after.expanded.config)
                await check_by_liblxc(ctx, after, before)
            wanted.append(after)
        await changes.check_limits_of_projects(ctx, wanted)
        async with allocations.hold(ctx):
            plan = await changes.reserve(ctx, list(zip(users, wanted, strict=True)), undo, named=True)
        return plan, await changes.apply_to_host(ctx, plan, undo)


def _using(profile: ProfileRow, instances: Sequence[Loaded]) -> list[Loaded]:
    return [instance for instance in instances if profile.id in instance.data.profile_ids]


def _all_profiles(instances: Sequence[Loaded]) -> list[str]:
    return sorted({name for instance in instances for name in instance.data.profiles})

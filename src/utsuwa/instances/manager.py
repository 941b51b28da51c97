"""The instances manager: what the API and the daemon's root call; the verbs have modules of their own."""

from __future__ import annotations

import contextlib
from functools import partial

from utsuwa.core.errors import InvalidRequest, NotFound
from utsuwa.core.rollback import Rollback
from utsuwa.core.scope import Policy, Scope
from utsuwa.db import instances as instance_rows
from utsuwa.host.network.link_events import LinkEvents
from utsuwa.instances import state
from utsuwa.instances.commands.exec import ExecTarget
from utsuwa.instances.confinement import cpu_balance, limits
from utsuwa.instances.context import Context, find, find_all, load
from utsuwa.instances.lifecycle import (
    actions,
    create,
    delete,
    end,
    recover,
    rename,
    shutdown,
    start,
    stop,
    update,
)
from utsuwa.instances.lifecycle.autostart import Autostart
from utsuwa.instances.lifecycle.end import Watch
from utsuwa.instances.model import Comeback, Loaded
from utsuwa.operations import kinds, operations
from utsuwa.operations.operations import Operation
from utsuwa.wire.edits import IfMatch
from utsuwa.wire.instances import (
    Instance,
    InstanceFull,
    InstancesPost,
    InstanceState,
    InstanceStatePut,
)


class InstanceManager:
    """All instances of the daemon, by project and name."""

    def __init__(self, ctx: Context, links: LinkEvents) -> None:
        self._ctx = ctx
        self._watch = Watch(ctx, self._reboot, self._delete_ephemeral)
        self.follow_profile = update.ProfileFollower(ctx)
        self._autostart = Autostart(ctx, links, self.start)

    # The daemon's start and end.

    async def recover(self) -> None:
        """Find running containers again, put right what a kill left, and start what should run by itself."""
        ctx = self._ctx
        await recover.write_shared_files(ctx)
        await recover.sweep(ctx)
        stopped = await recover.adopt_all(ctx, self._watch)
        await limits.enforce_all(ctx.runtime.all())
        await cpu_balance.try_to_rebalance(ctx)
        self._autostart.begin(await recover.settle(ctx, stopped))

    async def stop_watching(self) -> None:
        """The daemon ends, the containers run on; a start that is under way is undone."""
        await self._autostart.end()
        await self._watch.stop()

    @property
    def any_running(self) -> bool:
        return bool(self._ctx.runtime.all())

    async def shutdown_all(self, *, force: bool = False) -> None:
        """Stop every container for the host's end; each runs again at the daemon's next start."""
        await self._autostart.end()
        await shutdown.shutdown_all(self._ctx, force=force)

    # Reading.

    async def find(self, project: str, name: str) -> Loaded:
        """Raises NotFound, UnknownCode."""
        return await find(self._ctx, project, name)

    async def records(self, scope: Scope, project: str | None) -> list[Instance]:
        """The instances of a project, or of all that the caller sees (None)."""
        found = await find_all(self._ctx, project)
        return [state.record(self._ctx, instance) for instance in found if scope.sees(instance.project)]

    async def full_records(self, scope: Scope, project: str | None) -> list[InstanceFull]:
        """The same with their states."""
        found = await state.full_of_all(self._ctx, project)
        return [record for record in found if scope.sees(record.project)]

    async def names(self, scope: Scope, project: str | None) -> list[tuple[str, str]]:
        """Project and name of each instance, in order."""
        found = await self._ctx.database.read("instance names", instance_rows.names, project)
        return [key for key in found if scope.sees(key[0])]

    def record(self, instance: Loaded) -> Instance:
        return state.record(self._ctx, instance)

    async def full_record(self, instance: Loaded) -> InstanceFull:
        return (await state.full(self._ctx, [instance]))[0]

    async def state(self, instance: Loaded) -> InstanceState:
        return await state.state(self._ctx, instance)

    async def exec_target(self, project: str, name: str) -> ExecTarget:
        """What running a command inside needs to know. A running container's is at hand: exec is fast."""
        running = self._ctx.runtime.get((project, name))
        if running is not None:
            return state.running_target(self._ctx, running)
        return state.stopped_target(self._ctx, await load(self._ctx, project, name))

    # Changing.

    async def create(self, policy: Policy, project: str, request: InstancesPost) -> Operation:
        """Make an instance, and start it where the request says so. Raises as `create.reserve`."""
        ctx = self._ctx
        instance, image = await create.reserve(ctx, policy, project, request)

        async def build() -> None:
            await create.build(ctx, instance, image)
            if request.start:
                await self.start(*instance.key)

        async with Rollback() as undo:
            undo.push(create.discard, ctx, instance)
            operation = ctx.in_background(kinds.INSTANCE_CREATE, project, [instance.name], build)
            undo.keep()
        return operation

    async def edit(
        self, policy: Policy, project: str, name: str, change: update.Edit, if_match: IfMatch
    ) -> None:
        """Raises as `update.edit`."""
        await update.edit(self._ctx, policy, project, name, change, if_match)

    async def edit_in_background(
        self, policy: Policy, project: str, name: str, change: update.Edit, if_match: IfMatch
    ) -> Operation:
        """`edit`, checked at once, and again when its turn comes: another change may be before it."""
        ctx = self._ctx
        await update.check(ctx, policy, project, name, change, if_match)
        work = partial(update.edit, ctx, policy, project, name, change, if_match)
        return ctx.in_background(kinds.INSTANCE_UPDATE, project, [name], work)

    async def rename(self, project: str, name: str, new: str) -> Operation:
        """Raises as `rename.check`."""
        ctx = self._ctx
        await rename.check(ctx, project, name, new)

        async def work() -> None:
            await rename.rename(ctx, project, name, new)
            self._autostart.renamed(project, name, new)

        return ctx.in_background(kinds.INSTANCE_RENAME, project, [name], work)

    async def delete(self, project: str, name: str) -> Operation:
        """Raises as `delete.check`."""
        ctx = self._ctx
        await delete.check(ctx, project, name)
        work = partial(delete.delete, ctx, project, name)
        return ctx.in_background(kinds.INSTANCE_DELETE, project, [name], work)

    async def change_state(self, project: str, name: str, request: InstanceStatePut) -> Operation:
        """Start, stop, restart, freeze or unfreeze an instance. Raises InvalidRequest, NotFound."""
        action = actions.requested(request)
        await load(self._ctx, project, name)
        work = partial(self._change_state, project, name, request)
        return self._ctx.in_background(action.kind, project, [name], work)

    async def change_all_states(self, project: str, request: InstanceStatePut) -> Operation:
        """Do the same with all instances of a project on this member that are in a state for it.

        Raises InvalidRequest.
        """
        action, ctx = actions.requested(request), self._ctx
        names = [
            name
            for _, name in await ctx.database.read("instance names", instance_rows.names_here, project)
            if ctx.runtime.status((project, name)) in action.statuses
        ]
        change = partial(self._change_state, project, request=request)
        return ctx.in_background(action.kind, project, names, partial(actions.do_all, names, change))

    async def _change_state(self, project: str, name: str, request: InstanceStatePut) -> None:
        match request.action:
            case "start":
                await self.start(project, name)
            case "stop":
                await self.stop(project, name, force=request.force, seconds=request.timeout)
            case "restart":
                await self.restart(project, name, force=request.force, seconds=request.timeout)
            case "freeze":
                await stop.freeze(self._ctx, project, name)
            case _:  # unfreeze: `requested` lets nothing else pass
                await stop.unfreeze(self._ctx, project, name)

    async def start(self, project: str, name: str) -> None:
        """Start a stopped container; a frozen one is thawed, as `lxc start` expects."""
        running = self._ctx.runtime.get((project, name))
        if running is not None and running.frozen:
            await stop.unfreeze(self._ctx, project, name)
            return
        await start.start(self._ctx, self._watch, project, name)
        self._autostart.started(project, name)
        self._ctx.lifecycle("started", project, name)

    async def stop(self, project: str, name: str, *, force: bool, seconds: float) -> None:
        """Stop a container, also one that is just starting, or is to start again: it stays stopped."""
        key = (project, name)
        await self._autostart.forget(project, name)
        comebacks = self._ctx.runtime.abandon(key)
        if self._ctx.runtime.get(key) is None:
            async with self._ctx.locks.hold("instance", *key):
                pass  # a start under way has come to its end
        if self._ctx.runtime.get(key) is not None or not comebacks:
            await stop.stop(self._ctx, project, name, force=force, seconds=seconds)
        for comeback in comebacks:
            await comeback.over.wait()

    async def restart(self, project: str, name: str, *, force: bool, seconds: float) -> None:
        """Stop a container and start it again, unless somebody stops it meanwhile (NotStartedAgain).

        Where it does not stop, or a client cancels this before it has, it runs on as if nothing had been
        asked. A restart that the daemon's end cuts off is completed by the next one.
        """
        stop.running(self._ctx, project, name)
        await start.check_again(self._ctx, project, name)
        running = stop.running(self._ctx, project, name)
        if running.forced:  # by somebody who wants it to end
            raise InvalidRequest(f"The instance {name!r} is being stopped: start it when it has ended")
        self._ctx.runtime.abandon(running.key)  # an earlier restart gives way
        with self._ctx.runtime.coming_back(running.key) as comeback:
            running.comeback = comeback
            try:
                await end.note_boot(self._ctx, running, None)
                await stop.stop(self._ctx, project, name, force=force, seconds=seconds, reboot=True)
            except BaseException as error:
                if isinstance(error, Exception) or operations.cancelled_by_client():
                    await end.not_restarted(self._ctx, running, comeback)
                raise
            operations.forbid_cancellation()
            try:
                await start.start(self._ctx, self._watch, project, name, comeback)
            except start.NotStartedAgain:
                if not running.noted_as_stopped:
                    await self._stay_stopped(running.key)
                raise
            except Exception:
                await end.note_stopped(self._ctx, project, name)
                raise
        self._ctx.lifecycle("restarted", project, name)

    async def _reboot(self, instance: Loaded, comeback: Comeback) -> None:
        try:
            await start.start(self._ctx, self._watch, instance.project, instance.name, comeback)
        except start.NotStartedAgain:
            await self._stay_stopped(instance.key)
            return
        self._ctx.lifecycle("restarted", instance.project, instance.name)

    async def _stay_stopped(self, key: tuple[str, str]) -> None:
        """A container that was to come back was stopped by somebody else: as any that is stopped, it goes
        where it is ephemeral. By a later restart it comes back all the same."""
        if self._ctx.runtime.comes_back(key):
            return
        await end.note_stopped(self._ctx, *key)
        with contextlib.suppress(NotFound, InvalidRequest):  # gone, or started by now
            if (await load(self._ctx, *key)).row.ephemeral:
                await delete.delete(self._ctx, *key)

    async def _delete_ephemeral(self, instance: Loaded) -> None:
        await delete.delete(self._ctx, instance.project, instance.name)

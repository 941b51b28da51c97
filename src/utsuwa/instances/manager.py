"""The instance manager, called by the API and the composition root; each verb has its own module."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial

import msgspec

from utsuwa.core.errors import InvalidRequest, NotFound
from utsuwa.core.refs import InstanceRef
from utsuwa.core.rollback import Rollback
from utsuwa.core.scope import Policy, Scope
from utsuwa.db import instances as instance_rows
from utsuwa.instances import metrics, state
from utsuwa.instances.commands.exec import ExecTarget
from utsuwa.instances.confinement import cpu_balance, limits
from utsuwa.instances.context import Context, Seen, find, find_all, load, look
from utsuwa.instances.files.transfer import FileManager
from utsuwa.instances.guest.manager import GuestManager
from utsuwa.instances.lifecycle import (
    actions,
    copy,
    create,
    delete,
    end,
    freeze,
    move,
    rebuild,
    recover,
    refresh,
    rename,
    shutdown,
    start,
    stop,
    update,
)
from utsuwa.instances.lifecycle import restart as restarts
from utsuwa.instances.lifecycle.autostart import Autostart
from utsuwa.instances.lifecycle.end import Watch
from utsuwa.instances.lifecycle.hotplug import HotPlug
from utsuwa.instances.lifecycle.profile_follower import ProfileFollower
from utsuwa.instances.metadata import MetadataManager
from utsuwa.instances.model import Loaded, PendingRestart, Running
from utsuwa.instances.publish import Publisher
from utsuwa.instances.running_state import preflight
from utsuwa.instances.running_state import stop as stateful
from utsuwa.instances.running_state.saved import Saved
from utsuwa.instances.snapshots import loading, restore
from utsuwa.instances.snapshots.manager import SnapshotManager
from utsuwa.instances.snapshots.scheduled import ScheduledSnapshots
from utsuwa.operations import kinds
from utsuwa.operations.operations import Operation
from utsuwa.operations.retries import Retries
from utsuwa.wire.checkpoints import InstanceCheckpoint
from utsuwa.wire.edits import IfMatch
from utsuwa.wire.images import ImagesPost
from utsuwa.wire.instances import (
    Instance,
    InstanceFull,
    InstancePost,
    InstanceSource,
    InstancesPost,
    InstanceState,
    InstanceStatePut,
)
from utsuwa.wire.metrics import Samples


class InstanceManager:
    """All instances of the daemon."""

    def __init__(self, ctx: Context, retries: Retries) -> None:
        self._ctx = ctx
        self._watch = Watch(ctx, self._reboot, self._delete_ephemeral)
        self.files = FileManager(ctx)
        self.follow_profile = ProfileFollower(ctx)
        self._autostart = Autostart(ctx, retries, self.start)
        self._hotplug = HotPlug(ctx)
        self.snapshots = SnapshotManager(ctx)
        self.metadata = MetadataManager(ctx)
        self.guest = GuestManager(ctx)
        self._scheduled = ScheduledSnapshots(ctx)
        self._publisher = Publisher(ctx)

    # Start and end of the daemon.

    async def recover(self) -> None:
        """Find running containers, clean up after a crash, and autostart instances."""
        ctx = self._ctx
        await recover.write_shared_files(ctx)
        await recover.sweep(ctx)
        await self.snapshots.sweep()
        stopped = await recover.adopt_all(ctx, self._watch)
        await limits.enforce_all(ctx.warnings, ctx.runtime.all())
        await cpu_balance.try_to_rebalance(ctx)
        self._autostart.begin(await recover.settle(ctx, stopped))
        self._scheduled.begin()

    async def stop_watching(self) -> None:
        """Stop watching containers, which keep running. A start in progress is undone."""
        await self.files.access.stop()
        await self._scheduled.end()
        await self._autostart.end()
        await self._watch.stop()
        await self._hotplug.stop()

    @property
    def autostarted(self) -> bool:
        """Whether each instance to be started with the daemon was, or could not be started once."""
        return self._autostart.tried

    @property
    def any_running(self) -> bool:
        return bool(self._ctx.runtime.all())

    async def shutdown_all(self, *, force: bool = False) -> None:
        """Stop every container for the host's end; each runs again at the daemon's next start."""
        await self._autostart.end()
        await shutdown.shutdown_all(self._ctx, force=force)

    # Queries.

    async def find(self, ref: InstanceRef) -> Loaded:
        """Raises NotFound, UnknownCode."""
        return await find(self._ctx, ref)

    async def records(self, scope: Scope, project: str | None) -> list[Instance]:
        """The instances of a project, or of all that the caller sees (None)."""
        found = await find_all(self._ctx, project)
        return [state.record(self._ctx, instance) for instance in found if scope.sees(instance.project)]

    async def full_records(self, scope: Scope, project: str | None) -> list[InstanceFull]:
        """As `records`, with their states."""
        found = await state.full_of_all(self._ctx, project)
        snapshots = await loading.find_all(self._ctx, project)
        for record in found:
            of_record = snapshots.get(InstanceRef(record.project, record.name))
            record.snapshots = list(map(loading.record, of_record)) if of_record else None
        return [record for record in found if scope.sees(record.project)]

    async def names(self, scope: Scope, project: str | None) -> list[InstanceRef]:
        """References to the instances that `records` would return, in order."""
        found = await self._ctx.database.read("instance names", instance_rows.names, project)
        return [ref for ref in found if scope.sees(ref.project)]

    def record(self, instance: Loaded) -> Instance:
        return state.record(self._ctx, instance)

    async def full_record(self, instance: Loaded) -> InstanceFull:
        full = (await state.full(self._ctx, [instance]))[0]
        snapshots = await loading.find_of(self._ctx, instance.ref)
        full.snapshots = list(map(loading.record, snapshots)) or None
        return full

    async def state(self, instance: Loaded) -> InstanceState:
        return await state.state(self._ctx, instance)

    async def checkpoint(self, ref: InstanceRef) -> InstanceCheckpoint:
        """Return what stands in the way of saving the running state of an instance here. Raises NotFound."""
        instance = await load(self._ctx, ref)
        return await preflight.look(self._ctx, instance, self._ctx.runtime.get(ref))

    async def metrics(self, scope: Scope, project: str | None, samples: Samples) -> None:
        """Add the samples of the running instances here, of a project or of all that are visible (None)."""
        await metrics.collect(self._ctx, scope, project, samples)

    async def exec_target(self, ref: InstanceRef) -> ExecTarget:
        """Return what is needed to run a command inside. For a running container the database is not read."""
        running = self._ctx.runtime.get(ref)
        if running is not None:
            return state.running_target(self._ctx, running)
        return state.stopped_target(self._ctx, await load(self._ctx, ref))

    # Changes.

    async def create(self, scope: Scope, project: str, request: InstancesPost) -> Operation:
        """Create an instance, or refresh a copy, and start it if requested.

        Raises as `create.reserve`, `copy.reserve` or `refresh.check`.
        """
        ctx = self._ctx
        if request.source.type == "copy" and request.source.refresh:
            found = await refresh.check(ctx, scope, project, request)
            if found is not None:
                return self._refresh(scope, found[0].ref, request)
        if request.source.type == "image" and request.source.server:
            return await self._create_from_remote(scope, project, request)
        if request.source.type == "copy":
            instance, source = await copy.reserve(ctx, scope, project, request)
            make = partial(copy.build, ctx, instance, source)
        else:
            instance, image = await create.reserve(ctx, scope.policy, project, request)
            make = partial(create.build, ctx, instance, image)

        async def build() -> None:
            await make()
            if request.start:
                await self.start(instance.ref)

        async with Rollback() as undo:
            undo.push(create.discard, ctx, instance)
            operation = ctx.in_background(kinds.INSTANCE_CREATE, instance.ref, build)
            undo.keep()
        return operation

    async def _create_from_remote(self, scope: Scope, project: str, request: InstancesPost) -> Operation:
        """Fetch the image in the operation, and check all of the request again with it."""
        ctx, request = self._ctx, msgspec.structs.replace(request, name=request.name or create.random_name())
        source = await create.check_before_image(ctx, scope.policy, project, request)
        ref = InstanceRef(project, request.name)

        async def work() -> None:
            image = await ctx.remote_images.for_instance(project, source, trusted=scope.root)
            instance = await create.reserve_with(ctx, scope.policy, project, request, image)
            await create.build(ctx, instance, image)
            if request.start:
                await self.start(ref)

        return ctx.in_background(kinds.INSTANCE_CREATE, ref, work)

    def _refresh(self, scope: Scope, ref: InstanceRef, request: InstancesPost) -> Operation:
        async def work() -> None:
            await refresh.refresh(self._ctx, scope, ref, request)
            if request.start:
                await self.start(ref)

        return self._ctx.in_background(kinds.INSTANCE_CREATE, ref, work)

    async def publish(self, scope: Scope, project: str, request: ImagesPost) -> Operation:
        """Create an image from an instance or a snapshot. Raises as `Publisher.check`."""
        await self._publisher.check(scope, project, request)

        async def run(operation: Operation) -> None:
            row = await self._publisher.publish(scope, project, request)
            operation.update_metadata({"fingerprint": row.fingerprint, "size": str(row.size)})

        return self._ctx.operations.start(kinds.IMAGE_DOWNLOAD, project, run)

    async def edit(self, policy: Policy, ref: InstanceRef, change: update.Edit, if_match: IfMatch) -> None:
        """Raises as `update.edit`."""
        await update.edit(self._ctx, policy, ref, change, if_match)

    async def edit_in_background(
        self, policy: Policy, ref: InstanceRef, change: update.Edit, if_match: IfMatch
    ) -> Operation:
        """As `edit`. Checked immediately, and again when it runs if another change has run before."""
        ctx = self._ctx
        checked = await update.check(ctx, policy, ref, change, if_match)
        work = partial(update.edit, ctx, policy, ref, change, if_match, checked)
        return ctx.in_background(kinds.INSTANCE_UPDATE, ref, work)

    async def rename(self, ref: InstanceRef, new: str) -> Operation:
        """Raises as `rename.check`."""
        ctx = self._ctx
        await rename.check(ctx, ref, new)

        async def work() -> None:
            await rename.rename(ctx, ref, new)
            self._autostart.renamed(ref, replace(ref, name=new))

        return ctx.in_background(kinds.INSTANCE_RENAME, ref, work)

    async def move(self, scope: Scope, ref: InstanceRef, request: InstancePost) -> Operation:
        """Move a stopped instance to another pool or project. Raises as `move.check`."""
        ctx = self._ctx
        await move.check(ctx, scope, ref, request)

        async def work() -> None:
            await move.move(ctx, scope, ref, request)
            self._autostart.renamed(ref, move.target(ref, request))

        return ctx.in_background(kinds.INSTANCE_MIGRATE, ref, work)

    async def rebuild(self, scope: Scope, ref: InstanceRef, source: InstanceSource) -> Operation:
        """Replace the root disk of a stopped instance. Raises as `rebuild.check`."""
        ctx = self._ctx
        image = await rebuild.check(ctx, scope.policy, ref, source)
        work = partial(rebuild.rebuild, ctx, scope, ref, image)
        return ctx.in_background(kinds.INSTANCE_REBUILD, ref, work)

    async def delete(self, ref: InstanceRef) -> Operation:
        """Raises as `delete.check`."""
        ctx = self._ctx
        seen = await delete.check(ctx, ref)
        work = partial(delete.delete, ctx, ref, seen)
        return ctx.in_background(kinds.INSTANCE_DELETE, ref, work)

    async def change_state(self, ref: InstanceRef, request: InstanceStatePut) -> Operation:
        """Start, stop, restart, freeze or unfreeze an instance. Raises InvalidRequest, NotFound."""
        action = actions.requested(request)
        seen = await look(self._ctx, ref)
        if request.stateful and request.action == "stop":
            await stateful.check(self._ctx, ref)
        if request.stateful and request.action == "start" and not seen.instance.data.stateful:
            raise InvalidRequest(f"The instance {ref.name!r} has no saved running state: start it without")
        work = partial(self._change_state, ref, request, seen)
        return self._ctx.in_background(action.kind, ref, work)

    async def change_all_states(self, project: str, request: InstanceStatePut) -> Operation:
        """Do the same with all instances of a project on this member that are in a state for it.

        Raises InvalidRequest.
        """
        action, ctx = actions.requested(request), self._ctx
        here = await ctx.database.read("instance names", instance_rows.names_here, project)
        refs = [ref for ref in here if ctx.runtime.status(ref) in action.statuses]

        async def run(_: Operation) -> None:
            await actions.do_all(refs, partial(self._change_state, request=request))

        return ctx.operations.start(action.kind, project, run, names=[ref.name for ref in refs])

    async def _change_state(
        self, ref: InstanceRef, request: InstanceStatePut, seen: Seen | None = None
    ) -> None:
        match request.action:
            case "start":
                await self.start(ref, stateless=not request.stateful, seen=seen)
            case "stop" if request.stateful:
                await self.stop_stateful(ref)
            case "stop":
                await self.stop(ref, force=request.force, seconds=request.timeout)
            case "restart":
                await self.restart(ref, force=request.force, seconds=request.timeout)
            case "freeze":
                await freeze.freeze(self._ctx, ref)
            case _:  # unfreeze, the only other action that `requested` accepts
                await freeze.unfreeze(self._ctx, ref)

    async def start(self, ref: InstanceRef, *, stateless: bool = False, seen: Seen | None = None) -> None:
        """Start a stopped container, or unfreeze a frozen one, as `lxc start` expects.

        A saved running state is restored, or discarded if `stateless`.
        """
        running = self._ctx.runtime.get(ref)
        if running is not None and running.frozen:
            await freeze.unfreeze(self._ctx, ref)
            return
        await start.start(self._ctx, self._watch, ref, stateless=stateless, seen=seen)
        self._autostart.started(ref)
        self._ctx.lifecycle("started", ref)
        await self._scheduled.started(ref)

    async def stop_stateful(self, ref: InstanceRef) -> None:
        """Save the running state of a container and stop it, or leave it running."""
        await stateful.stop_stateful(self._ctx, ref)
        await self._autostart.forget(ref)

    async def stop(self, ref: InstanceRef, *, force: bool, seconds: float) -> None:
        """Stop a container, also one that is being started or restarted, and keep it stopped."""
        await self._autostart.forget(ref)
        restarts = self._ctx.runtime.cancel_restarts(ref)
        if self._ctx.runtime.get(ref) is None:
            async with self._ctx.locks.hold("instance", ref):
                pass  # wait for a start in progress
        if self._ctx.runtime.get(ref) is not None or not restarts:
            await stop.stop(self._ctx, ref, force=force, seconds=seconds)
        for restart in restarts:
            await restart.finished.wait()

    async def restore(
        self, policy: Policy, ref: InstanceRef, name: str, if_match: IfMatch, *, with_state: bool
    ) -> Operation:
        """Restore an instance to a snapshot; one that runs is stopped for that. Raises as `restore.check`.

        With `with_state`, it then runs on from the moment of the snapshot. Raises InvalidRequest if the
        snapshot has no running state, Unavailable without CRIU.
        """
        snapshot, ctx = restore.named(ref, name), self._ctx
        judged = await restore.check(ctx, policy, snapshot, if_match)
        resume = await restore.saved_state(ctx, judged) if with_state else None

        async def work() -> None:
            run = partial(restore.restore, ctx, policy, snapshot, judged)
            if ctx.runtime.get(ref) is not None:
                await self.restart(ref, force=True, seconds=-1, meanwhile=run, resume=resume)
                return
            await run()
            if resume is not None:
                await start.start(ctx, self._watch, ref, saved=resume)
                self._autostart.started(ref)
                ctx.lifecycle("started", ref)

        return ctx.in_background(kinds.SNAPSHOT_RESTORE, ref, work)

    async def restart(
        self,
        ref: InstanceRef,
        *,
        force: bool,
        seconds: float,
        meanwhile: Callable[[], Awaitable[None]] | None = None,
        resume: Saved | None = None,
    ) -> None:
        """Stop a container and start it again. Raises NotStartedAgain if it is stopped meanwhile.

        `meanwhile` is called while it is stopped; if that fails, the container is started nevertheless.
        Otherwise, the running state `resume` is restored, if there is one.

        If it does not stop, or the client cancels the restart before it has stopped, it keeps running
        unchanged. A restart that is interrupted by the end of the daemon is completed at the daemon's next
        start.
        """
        async with restarts.stopped(
            self._ctx, ref, force=force, seconds=seconds, reboot=True, keeps_mounts=meanwhile is None
        ) as stopped:
            failure = await _failure_of(meanwhile)
            await self._start_again(*stopped, resume if failure is None else None)
        self._ctx.lifecycle("restarted", ref)
        if failure is not None:
            raise failure
        if meanwhile is None:
            await self._scheduled.started(ref)

    async def hand_over(
        self, ref: InstanceRef, *, seconds: float, meanwhile: Callable[[], Awaitable[None]]
    ) -> None:
        """Stop a container, have `meanwhile` hand it over to another server, and delete the instance here.

        If that fails, the container is started again; not if `meanwhile` raises InDoubt. A container that
        does not stop runs on. Raises as `restart`.
        """
        async with restarts.stopped(self._ctx, ref, force=False, seconds=seconds, reboot=False) as stopped:
            failure = await _failure_of(meanwhile)
            if failure is not None and not isinstance(failure, restarts.InDoubt):
                await self._start_again(*stopped)
                self._ctx.lifecycle("restarted", ref)
        if failure is not None:
            raise failure
        self._ctx.lifecycle("shutdown", ref)
        await delete.delete(self._ctx, ref)

    async def _start_again(
        self, running: Running, restart: PendingRestart, saved: Saved | None = None
    ) -> None:
        """Start a container that was stopped for this. Raises as `start.start`."""
        try:
            await start.start(self._ctx, self._watch, running.ref, restart, saved=saved)
        except start.NotStartedAgain:
            if not running.recorded_as_stopped:
                await self._stay_stopped(running.ref)
            raise
        except Exception:
            await end.record_stopped(self._ctx, running.ref)
            raise

    async def _reboot(self, instance: Loaded, restart: PendingRestart) -> None:
        try:
            await start.start(self._ctx, self._watch, instance.ref, restart)
        except start.NotStartedAgain:
            await self._stay_stopped(instance.ref)
            return
        self._ctx.lifecycle("restarted", instance.ref)
        await self._scheduled.started(instance.ref)

    async def _stay_stopped(self, ref: InstanceRef) -> None:
        """Complete the stop of a container whose restart was cancelled, unless another restart follows.

        An ephemeral instance is deleted.
        """
        if self._ctx.runtime.will_restart(ref):
            return
        await end.record_stopped(self._ctx, ref)
        with contextlib.suppress(NotFound, InvalidRequest):  # deleted or started meanwhile
            if (await load(self._ctx, ref)).data.ephemeral:
                await delete.delete(self._ctx, ref)

    async def _delete_ephemeral(self, instance: Loaded) -> None:
        await delete.delete(self._ctx, instance.ref)


async def _failure_of(work: Callable[[], Awaitable[None]] | None) -> Exception | None:
    """Do something, if there is anything to do; return its error instead of raising it."""
    try:
        if work is not None:
            await work()
    except Exception as error:
        return error
    return None

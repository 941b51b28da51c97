"""Saved running states of an instance and its snapshots, on their way between two servers.

They decide which processes are created as the container's root, so they are only taken from a source that a
caller names who may do anything here, and only under the instance's own name: another one would be its twin.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from utsuwa.core.errors import InvalidRequest
from utsuwa.core.idmap import IdMap
from utsuwa.core.scope import Scope
from utsuwa.db.snapshots import SnapshotRow
from utsuwa.instances.model import Loaded
from utsuwa.instances.running_state import saved
from utsuwa.migration.channel import Stream
from utsuwa.migration.images import Receiver, Sender
from utsuwa.migration.messages import Header, SavedStates
from utsuwa.migration.progress import Progress
from utsuwa.operations.operations import Operation
from utsuwa.security import idmap as idmaps
from utsuwa.wire.instances import InstancesPost


class Own(Enum):
    """What becomes of the running state of what is received itself."""

    LEFT_OUT = ""
    MOVED = "moved"
    """The instance moves, with the state with which it was stopped."""
    COPIED = "copied"
    """The instance is made of a stateful snapshot, and goes on with its state."""

    @classmethod
    def of(cls, request: InstancesPost) -> Own:
        """Return what a request wants. Only snapshots are stateful and live at the same time."""
        if not request.stateful or request.source.refresh:
            return cls.LEFT_OUT
        if request.source.live:
            return cls.COPIED
        return cls.MOVED if "volatile.cloud-init.instance-id" in request.config else cls.LEFT_OUT

    def refused(self, reason: str) -> InvalidRequest:
        instead = saved.INSTEAD
        if self is Own.MOVED:
            instead = (
                "start the instance, and stop it without --stateful, or discard the state with "
                "`start --stateless`"
            )
        return InvalidRequest(f"The saved running state cannot be {self.value}: {reason}: {instead}")


def offered(instance: Loaded, snapshots: Sequence[SnapshotRow], *, own: bool) -> SavedStates | None:
    """Return which saved states are offered with an instance, if there are any.

    `own` tells whether that of what is sent itself is one of them.
    """
    names = [row.ref.name for row in snapshots if row.data.stateful]
    return SavedStates(instance.name, names, own or None) if names or own else None


def in_order(states: SavedStates) -> list[str | None]:
    """Return the names of the snapshots whose states are sent, in order, and None for the instance itself."""
    return [*states.snapshots, *([None] if states.own else [])]


async def send(files: Stream, folder: Path, label: str, operation: Operation) -> None:
    """Send the state in the directory of a volume. Raises Unavailable, InvalidRequest."""
    sender = Sender(files, Progress(operation, f"{label} (running state)").add)
    try:
        await sender.send(folder / saved.FOLDER, last=True)
    finally:
        await asyncio.to_thread(sender.close)


def wanted(
    offer: Header, instance: Loaded, scope: Scope, names: Collection[str], own: Own
) -> tuple[SavedStates | None, str]:
    """Return which of the offered states are received, and why others are not.

    `names` are those of the snapshots that are received. Raises InvalidRequest if an `own` state that is
    wanted cannot be kept, or is not offered.
    """
    states, wants_own = offer.own.states if offer.own is not None else None, own is not Own.LEFT_OUT
    if wants_own and (states is None or not states.own):
        raise own.refused("the other server does not offer it in a form that this one can restore")
    if states is None:
        return None, ""
    reason = ""
    if scope.restricted:
        reason = f"the running state {saved.UNRESTRICTED}"
    elif states.name != instance.name:
        reason = f"the running state {saved.KEEPS_NAME}, {states.name!r}"
    if reason and wants_own:
        raise own.refused(reason)
    chosen = [] if reason else [name for name in states.snapshots if name in names]
    if states.own and not wants_own and not reason:
        reason = "a copy comes without that of the instance itself"
    return SavedStates(states.name, chosen, wants_own or None), reason


@dataclass
class ReceivedStates:
    """The states of one instance that were received; `snapshots` are the names of those with one."""

    wanted: SavedStates
    idmap: IdMap
    """That of the instance here."""
    kind: Own = Own.LEFT_OUT
    """What becomes of its own one."""
    snapshots: set[str] = field(default_factory=set)
    own: bool = False
    lost: str = ""
    """Why a state was not kept, if any was not."""

    async def receive(
        self, files: Stream, folder_of: Callable[[str | None], Path], label: str, operation: Operation
    ) -> None:
        """Receive the states into the directories of the volumes, which exist.

        Raises InvalidRequest, also if that of the instance itself cannot be kept; OutOfSpace, Unavailable.
        """
        for name in in_order(self.wanted):
            folder = folder_of(name)
            fresh = await asyncio.to_thread(saved.begin, folder)
            progress = Progress(operation, f"{label} (running state)")
            if not await Receiver(files, progress.add).receive(fresh):
                raise InvalidRequest("The other server sent a running state that is not complete")
            if not await asyncio.to_thread(self._keep, folder, f"the instance {label!r}"):
                reason = "the instance has other ids on this server"
                if name is None:
                    raise self.kind.refused(reason)
                self.lost = reason
            elif name is None:
                self.own = True
                if self.kind is Own.COPIED:
                    await asyncio.to_thread(saved.own_from_snapshot, folder, "the snapshot")
            else:
                self.snapshots.add(name)

    def tell(self, operation: Operation) -> None:
        """Have the operation say that a state was not kept."""
        if self.lost:
            operation.update_metadata({"without_running_state": self.lost})

    def _keep(self, folder: Path, what: str) -> bool:
        """Put a state into its place, unless it is one of another id map. Blocking. Raises InvalidRequest."""
        saved.complete(folder)
        if saved.load(folder, what, own=True).record.idmap == idmaps.to_json(self.idmap):
            return True
        saved.remove(folder)
        return False

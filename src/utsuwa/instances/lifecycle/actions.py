"""The actions that change an instance's state: what each is called, and which instances it concerns."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace

from utsuwa.core.errors import InvalidRequest, NotSupportedYet, UtsuwaError
from utsuwa.instances.model import Status
from utsuwa.operations import kinds
from utsuwa.operations.kinds import Kind
from utsuwa.operations.operations import INTERNAL_ERROR
from utsuwa.wire.instances import InstanceStatePut

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Action:
    """`statuses` are those of the instances that a change of all of them concerns."""

    kind: Kind
    statuses: tuple[Status, ...]


ACTIONS = {
    "start": Action(kinds.INSTANCE_START, (Status.STOPPED,)),
    "stop": Action(kinds.INSTANCE_STOP, (Status.RUNNING, Status.FROZEN)),
    "restart": Action(kinds.INSTANCE_RESTART, (Status.RUNNING,)),
    "freeze": Action(kinds.INSTANCE_FREEZE, (Status.RUNNING,)),
    "unfreeze": Action(kinds.INSTANCE_UNFREEZE, (Status.FROZEN,)),
}


def requested(request: InstanceStatePut) -> Action:
    """The action that a request wants. Raises InvalidRequest, NotSupportedYet."""
    action = ACTIONS.get(request.action)
    if action is None:
        raise InvalidRequest(f"Unknown action {request.action[:40]!r}: use one of {', '.join(ACTIONS)}")
    if request.stateful:
        raise NotSupportedYet("Keeping the running state (stateful) is not supported yet")
    if request.force:
        # Waiting for a container to stop by itself can take long, and can be given up: this does not.
        return replace(action, kind=replace(action.kind, cancellable=False))
    return action


async def do_all(names: Sequence[str], change: Callable[[str], Awaitable[None]]) -> None:
    """Change the states of all these at once. Raises InvalidRequest that tells of each that failed."""
    results = await asyncio.gather(*map(change, names), return_exceptions=True)
    problems = [
        f"{name}: {_told(name, error)}"
        for name, error in zip(names, results, strict=True)
        if error is not None
    ]
    if problems:
        raise InvalidRequest("; ".join(problems))


def _told(name: str, error: BaseException) -> str:
    """What a client may read of a failure; our own faults go to the log."""
    if isinstance(error, UtsuwaError):
        return error.message
    log.error("a change of instance %r failed", name, exc_info=error)
    return INTERNAL_ERROR

"""The actions of state changes: their kinds of operations, and the statuses to which they apply."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace

from utsuwa.core.errors import InvalidRequest, UtsuwaError
from utsuwa.core.refs import InstanceRef
from utsuwa.instances.model import Status
from utsuwa.operations import kinds
from utsuwa.operations.kinds import Kind
from utsuwa.operations.operations import INTERNAL_ERROR
from utsuwa.wire.instances import InstanceStatePut

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Action:
    """`statuses` selects the instances to which a bulk change applies."""

    kind: Kind
    statuses: tuple[Status, ...]


_RUNNING = (Status.RUNNING, Status.READY)
ACTIONS = {
    "start": Action(kinds.INSTANCE_START, (Status.STOPPED,)),
    "stop": Action(kinds.INSTANCE_STOP, (*_RUNNING, Status.FROZEN)),
    "restart": Action(kinds.INSTANCE_RESTART, _RUNNING),
    "freeze": Action(kinds.INSTANCE_FREEZE, _RUNNING),
    "unfreeze": Action(kinds.INSTANCE_UNFREEZE, (Status.FROZEN,)),
}
_STATEFUL = ("start", "stop")


def requested(request: InstanceStatePut) -> Action:
    """Return the requested action. Raises InvalidRequest."""
    action = ACTIONS.get(request.action)
    if action is None:
        raise InvalidRequest(f"Unknown action {request.action[:40]!r}: use one of {', '.join(ACTIONS)}")
    if request.stateful and request.action not in _STATEFUL:
        raise InvalidRequest(f"The running state is not kept by {request.action!r}: stop and start keep it")
    if request.force or request.stateful:
        # Only waiting for a container to stop by itself can be cancelled.
        return replace(action, kind=replace(action.kind, cancellable=False))
    return action


async def do_all(refs: Sequence[InstanceRef], change: Callable[[InstanceRef], Awaitable[None]]) -> None:
    """Change the states of several instances concurrently. Raises InvalidRequest with all failures."""
    results = await asyncio.gather(*map(change, refs), return_exceptions=True)
    problems = [
        f"{ref.name}: {_error_text(ref, error)}"
        for ref, error in zip(refs, results, strict=True)
        if error is not None
    ]
    if problems:
        raise InvalidRequest("; ".join(problems))


def _error_text(ref: InstanceRef, error: BaseException) -> str:
    """Return the message for the client; unexpected errors are logged instead."""
    if isinstance(error, UtsuwaError):
        return error.message
    log.error("a change of instance %r failed", ref.name, exc_info=error)
    return INTERNAL_ERROR

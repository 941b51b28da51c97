"""Autostart of instances, retried until the host is ready for them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from utsuwa.core.config_keys import parse_bool
from utsuwa.core.errors import NotFound, OtherMember, StartFailed, UtsuwaError
from utsuwa.core.refs import InstanceRef
from utsuwa.core.warning_types import AUTOSTART_FAILED, ENDS_TOO_OFTEN
from utsuwa.instances.context import Context, load
from utsuwa.instances.model import Loaded
from utsuwa.networks.ports import bridge_of
from utsuwa.operations.retries import Retries

log = logging.getLogger(__name__)

Start = Callable[[InstanceRef], Awaitable[None]]

_RETRY = "autostart"
_MAX_LIBLXC_FAILURES = 3
"""Number of failures of liblxc itself, which are not caused by the host, after which to give up."""


@dataclass
class Waiting:
    """An instance that should be running and could not be started yet."""

    instance: Loaded
    reason: str = ""
    liblxc_failures: int = 0
    """The number of failures of liblxc itself."""

    @property
    def bridges(self) -> set[str]:
        return {bridge_of(device) for device in self.instance.expanded.devices.values()} - {""}


class Autostart:
    """Starts instances with the daemon, until each is running or no longer wanted."""

    def __init__(self, ctx: Context, retries: Retries, start: Start) -> None:
        self._ctx = ctx
        self._retries = retries
        self._start = start
        self._waiting: dict[InstanceRef, Waiting] = {}
        self._task: asyncio.Task[object] | None = None
        self._tried = False

    @property
    def tried(self) -> bool:
        """Whether each instance has been started, or could not be started once."""
        return self._tried

    def begin(self, instances: Sequence[Loaded]) -> None:
        """Start instances in this order, in the background."""
        if instances:
            self._waiting = {instance.ref: Waiting(instance) for instance in instances}
            self._task = asyncio.create_task(self._run(), name="autostart")
        else:
            self._tried = True

    async def end(self) -> None:
        """Cancel all starts; one that is in progress is undone."""
        self._retries.drop(_RETRY)
        self._waiting.clear()
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    def started(self, ref: InstanceRef) -> None:
        """An instance has been started, by this or otherwise."""
        self._waiting.pop(ref, None)
        running = self._ctx.runtime.get(ref)
        if running is not None:
            for kind in (AUTOSTART_FAILED, ENDS_TOO_OFTEN):
                self._ctx.warnings.resolve(kind, running.subject)

    async def forget(self, ref: InstanceRef) -> None:
        """Cancel the start of an instance that is stopped by a request."""
        waiting = self._waiting.pop(ref, None)
        if waiting is not None:
            self._ctx.warnings.resolve(AUTOSTART_FAILED, waiting.instance.subject)
        if waiting is not None and self._ctx.runtime.get(ref) is None:
            await self._ctx.patch_config(waiting.instance.row.id, {"volatile.last_state.power": "STOPPED"})

    def renamed(self, ref: InstanceRef, new: InstanceRef) -> None:
        waiting = self._waiting.pop(ref, None)
        if waiting is not None:
            self._waiting[new] = waiting

    async def _run(self) -> None:
        completed = await self._round()
        self._tried = True
        if not completed:
            self._retries.add(_RETRY, self._again, self._bridges)

    def _bridges(self) -> set[str]:
        return {bridge for waiting in self._waiting.values() for bridge in waiting.bridges}

    async def _again(self) -> bool:
        """Run one more round, which `end` can cancel; return whether no instance is waiting any more."""
        self._task = asyncio.create_task(self._round(), name=_RETRY)
        return await self._task

    async def _round(self) -> bool:
        delay = 0
        for ref, waiting in list(self._waiting.items()):
            if ref in self._waiting:
                await asyncio.sleep(delay)
                delay = 0
            if ref in self._waiting and await self._try(ref, waiting):
                self._waiting.pop(ref, None)
                delay = int(waiting.instance.expanded.config.get("boot.autostart.delay") or 0)
        return not self._waiting

    async def _try(self, ref: InstanceRef, waiting: Waiting) -> bool:
        """Start an instance; return whether it need not be tried again."""
        try:
            waiting.instance = await load(self._ctx, ref)
        except (NotFound, OtherMember):
            return True
        if self._ctx.runtime.get(ref) is not None or (waiting.reason and not should_run(waiting.instance)):
            self._ctx.warnings.resolve(AUTOSTART_FAILED, waiting.instance.subject)
            return True
        try:
            await self._start(ref)
        except UtsuwaError as error:
            return self._ctx.runtime.get(ref) is not None or self._gives_up(waiting, error)
        except Exception:
            log.exception("autostart of instance %r failed and is not retried", waiting.instance.name)
            return True
        self._ctx.warnings.resolve(AUTOSTART_FAILED, waiting.instance.subject)
        if waiting.reason:
            log.info("instance %r has been autostarted after a retry", waiting.instance.name)
        return True

    def _gives_up(self, waiting: Waiting, error: UtsuwaError) -> bool:
        """Report a failure; return whether to give up."""
        if isinstance(error, StartFailed):
            waiting.liblxc_failures += 1
        name, give_up = waiting.instance.name, waiting.liblxc_failures >= _MAX_LIBLXC_FAILURES
        waiting.reason = error.message
        self._ctx.warnings.report(
            AUTOSTART_FAILED,
            f"autostart of instance {name!r} failed and is not retried: {error.message}: "
            "correct this and start it"
            if give_up
            else f"autostart of instance {name!r} failed: {error.message}; "
            "it is retried until the instance is stopped",
            waiting.instance.subject,
        )
        return give_up


def should_run(instance: Loaded) -> bool:
    """Whether an instance should be autostarted: as configured, by default if it was running before."""
    autostart = instance.expanded.config.get("boot.autostart", "")
    if autostart:
        return parse_bool(autostart)
    return instance.data.config.get("volatile.last_state.power") == "RUNNING"

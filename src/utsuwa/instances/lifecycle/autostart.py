"""Autostart of instances, retried while the host is not ready for them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from utsuwa.core.config_keys import parse_bool
from utsuwa.core.errors import NotFound, OtherMember, StartFailed, UtsuwaError
from utsuwa.host.network.link_events import LinkEvents
from utsuwa.instances.context import Context, load
from utsuwa.instances.model import Loaded
from utsuwa.networks.ports import bridge_of

log = logging.getLogger(__name__)

Key = tuple[str, str]
Start = Callable[[str, str], Awaitable[None]]

_WAITS = (1.0, 2.0, 5.0, 10.0, 30.0, 60.0)
"""Seconds before each further round, the last one again and again, unless an interface appears."""
_REST = 0.5
"""Seconds between two rounds, however often interfaces come and go."""
_TRIES_OF_ITS_OWN = 3
"""How often a container is started that the host has all for: what is wrong is then inside."""


@dataclass
class Waiting:
    """An instance that should run and could not start yet."""

    instance: Loaded
    why: str = ""
    failed_by_itself: int = 0
    """How often liblxc itself could not start it."""

    @property
    def bridges(self) -> set[str]:
        return {bridge_of(device) for device in self.instance.expanded_devices.values()} - {""}


class Autostart:
    """The instances that are to start with the daemon, until each runs or nobody wants it to any more."""

    def __init__(self, ctx: Context, links: LinkEvents, start: Start) -> None:
        self._ctx = ctx
        self._links = links
        self._start = start
        self._waiting: dict[Key, Waiting] = {}
        self._bridges: set[str] = set()
        self._appeared = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def begin(self, instances: Sequence[Loaded]) -> None:
        """Start these in their order, in the background."""
        if instances:
            self._waiting = {instance.key: Waiting(instance) for instance in instances}
            self._task = asyncio.create_task(self._run(), name="autostart")

    async def end(self) -> None:
        """Start nothing any more; what is just starting is undone."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    def started(self, project: str, name: str) -> None:
        """The instance runs now, whoever has started it."""
        self._waiting.pop((project, name), None)

    async def forget(self, project: str, name: str) -> None:
        """Somebody stops an instance that does not run yet: it stays so, whatever it was before."""
        waiting = self._waiting.pop((project, name), None)
        if waiting is not None and self._ctx.runtime.get((project, name)) is None:
            await self._ctx.patch_config(waiting.instance.row.id, {"volatile.last_state.power": "STOPPED"})

    def renamed(self, project: str, name: str, new: str) -> None:
        waiting = self._waiting.pop((project, name), None)
        if waiting is not None:
            self._waiting[project, new] = waiting

    async def _run(self) -> None:
        await self._round()
        if not self._waiting:
            return
        try:
            self._links.listen(self._heard)
        except OSError as error:
            log.warning("bridges that appear later are noticed late: %s", error)
        try:
            rounds = 0
            while self._waiting:
                self._bridges = {bridge for waiting in self._waiting.values() for bridge in waiting.bridges}
                await self._pause(_WAITS[min(rounds, len(_WAITS) - 1)])
                await self._round()
                rounds += 1
        finally:
            self._links.leave(self._heard)

    async def _pause(self, seconds: float) -> None:
        await asyncio.sleep(_REST)
        try:
            await asyncio.wait_for(self._appeared.wait(), seconds)
        except TimeoutError:
            return
        self._appeared.clear()

    def _heard(self, name: str | None) -> None:
        if name is None or name in self._bridges:
            self._appeared.set()

    async def _round(self) -> None:
        for key, waiting in list(self._waiting.items()):
            if key in self._waiting and await self._try(key, waiting):
                self._waiting.pop(key, None)
                await asyncio.sleep(int(waiting.instance.expanded_config.get("boot.autostart.delay") or 0))

    async def _try(self, key: Key, waiting: Waiting) -> bool:
        """Start an instance; gives whether that is settled, one way or the other."""
        try:
            waiting.instance = await load(self._ctx, *key)
        except (NotFound, OtherMember):
            return True
        if self._ctx.runtime.get(key) is not None or (waiting.why and not still_wanted(waiting.instance)):
            return True
        try:
            await self._start(*key)
        except UtsuwaError as error:
            return self._ctx.runtime.get(key) is not None or self._is_hopeless(waiting, error)
        except Exception:
            log.exception(
                "instance %r did not start by itself, and is not tried again", waiting.instance.name
            )
            return True
        if waiting.why:
            log.info("instance %r has started by itself after all", waiting.instance.name)
        return True

    def _is_hopeless(self, waiting: Waiting, error: UtsuwaError) -> bool:
        """Tell of a failure, each one once; gives whether a container is given up."""
        if isinstance(error, StartFailed):
            waiting.failed_by_itself += 1
        name, hopeless = waiting.instance.name, waiting.failed_by_itself >= _TRIES_OF_ITS_OWN
        if hopeless:
            log.warning(
                "instance %r did not start by itself, and is not tried again: %s: mend that and start it",
                name,
                error.message,
            )
        elif waiting.why != error.message:
            log.warning(
                "instance %r does not start by itself yet: %s; it is tried again until somebody stops it",
                name,
                error.message,
            )
        waiting.why = error.message
        return hopeless


def still_wanted(instance: Loaded) -> bool:
    """Whether an instance should run by itself: by its own setting, else because it ran before."""
    autostart = instance.expanded_config.get("boot.autostart", "")
    if autostart:
        return parse_bool(autostart)
    return instance.row.config.get("volatile.last_state.power") == "RUNNING"

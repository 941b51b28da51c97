"""The event hub: distributes the daemon's events to listeners.

Publishing never blocks. Each listener has a bounded buffer; one that does not read in time is disconnected
and logged, so that it can neither delay the daemon nor fill its memory.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Collection, Mapping
from contextvars import ContextVar
from typing import Any, Self

from utsuwa.core import clock
from utsuwa.core.names import LONE_MEMBER
from utsuwa.core.scope import EVERYTHING, Scope
from utsuwa.wire.codec import encode
from utsuwa.wire.events import Event, Lifecycle, Logging, Requestor

log = logging.getLogger(__name__)

OPERATION = "operation"
LIFECYCLE = "lifecycle"
LOGGING = "logging"
EVENT_TYPES = (OPERATION, LIFECYCLE, LOGGING)

BUFFER_EVENTS = 2000
"""Maximum number of buffered events per listener."""
BUFFER_BYTES = 8 * 2**20
"""Maximum size of the buffered JSON per listener, in bytes."""


class Actor:
    """The originator of events in a context, for the duration of a request or operation.

    Tasks that outlive it, such as the monitoring of a container, inherit the context but not the actor.
    """

    __slots__ = ("active", "requestor")

    def __init__(self, requestor: Requestor) -> None:
        self.requestor = requestor
        self.active = True


_actor: ContextVar[Actor | None] = ContextVar("actor", default=None)


def act_as(requestor: Requestor) -> Actor:
    """Attribute lifecycle events of this context to `requestor`, until the actor's `active` is False."""
    actor = Actor(requestor)
    _actor.set(actor)
    return actor


def current_requestor() -> Requestor | None:
    """Return the originator of events in this context; None for the daemon itself."""
    actor = _actor.get()
    return actor.requestor if actor is not None and actor.active else None


class Subscription:
    """The events for one listener, as an async iterator of their JSON.

    The iterator ends when the subscription is closed, by the listener or because it was too slow
    (`overflowed`). Use as `with hub.subscribe(...) as events: async for text in events: ...`.
    """

    def __init__(
        self,
        hub: EventHub,
        types: Collection[str],
        project: str | None,
        scope: Scope,
        name: str,
    ) -> None:
        self.name = name
        self.overflowed = False
        self._hub = hub
        self._types = frozenset(types)
        self._project = project
        self._scope = scope
        self._buffer: deque[bytes] = deque()
        self._bytes = 0
        self._closed = False
        self._wakeup = asyncio.Event()

    def wants(self, event: Event) -> bool:
        if self._closed or event.type not in self._types:
            return False
        if self._project is not None and event.project and event.project != self._project:
            return False
        return self._scope.sees(event.project)

    def put(self, text: bytes) -> None:
        hub = self._hub
        if len(self._buffer) >= hub.buffer_events or self._bytes + len(text) > hub.buffer_bytes:
            self.overflowed = True
            self.close()
            log.warning("an event listener is too slow and was cut off", extra={"listener": self.name})
            return
        self._buffer.append(text)
        self._bytes += len(text)
        self._wakeup.set()

    def close(self) -> None:
        """Discard buffered events and end the iterator; may be called more than once."""
        self._closed = True
        self._buffer.clear()
        self._wakeup.set()
        self._hub.forget(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        while not self._buffer:
            if self._closed:
                raise StopAsyncIteration
            self._wakeup.clear()
            await self._wakeup.wait()
        text = self._buffer.popleft()
        self._bytes -= len(text)
        return text


class EventHub:
    """Distributes events of the daemon; its methods must be called in the event loop's thread."""

    def __init__(
        self,
        location: str = LONE_MEMBER,
        *,
        buffer_events: int = BUFFER_EVENTS,
        buffer_bytes: int = BUFFER_BYTES,
    ) -> None:
        self.location = location
        """The name of this member, the location of all events."""
        self.buffer_events = buffer_events
        self.buffer_bytes = buffer_bytes
        self._subscriptions: set[Subscription] = set()

    @property
    def listened_to(self) -> bool:
        """Whether there are listeners; may be called from any thread."""
        return bool(self._subscriptions)

    def publish_lifecycle(
        self,
        action: str,
        source: str,
        project: str = "",
        context: Mapping[str, Any] | None = None,
    ) -> None:
        """Publish that `action` (such as `instance-started`) happened to the object at the URL `source`.

        The event contains the requestor of this context.
        """
        requestor = current_requestor()
        if log.isEnabledFor(logging.INFO):
            who = {} if requestor is None else {"user": requestor.username, "address": requestor.address}
            log.info(action, extra={"source": source, **who})
        if not self._subscriptions:
            return
        record = Lifecycle(
            action=action,
            source=source,
            context=dict(context) if context else None,
            requestor=requestor,
        )
        self.publish(LIFECYCLE, record, project)

    def publish_operation(self, operation: Any, project: str = "") -> None:
        """Publish the current record of an operation (`wire.operations.Operation`)."""
        self.publish(OPERATION, operation, project)

    def publish_logging(self, level: str, message: str, context: Mapping[str, str] | None = None) -> None:
        self.publish(LOGGING, Logging(message=message, level=level, context=dict(context or {})), "")

    def subscribe(
        self,
        types: Collection[str] = EVENT_TYPES,
        project: str | None = None,
        *,
        scope: Scope = EVERYTHING,
        name: str = "",
    ) -> Subscription:
        """Subscribe to events of the given types and of one project, or of all projects for None.

        The listener only receives events in its scope; `name` is used in the log.
        """
        subscription = Subscription(self, types, project, scope, name)
        self._subscriptions.add(subscription)
        return subscription

    def forget(self, subscription: Subscription) -> None:
        self._subscriptions.discard(subscription)

    def close(self) -> None:
        """End every subscription."""
        for subscription in list(self._subscriptions):
            subscription.close()

    def publish(self, kind: str, metadata: Any, project: str = "") -> None:
        """Publish a record as an event of the type `kind`."""
        if not self._subscriptions:
            return
        event = Event(
            type=kind, timestamp=clock.now(), metadata=metadata, location=self.location, project=project
        )
        listeners = [s for s in self._subscriptions if s.wants(event)]
        if listeners:
            text = encode(event)
            for listener in listeners:
                listener.put(text)

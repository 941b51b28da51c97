"""The guest API's manager: what running instances read, report and listen to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from utsuwa.core.errors import Forbidden, InvalidRequest, NotFound, OtherMember
from utsuwa.core.layering import Devices
from utsuwa.core.refs import InstanceRef
from utsuwa.images.forms import ExportedFile
from utsuwa.instances.context import Context, load
from utsuwa.instances.guest import view
from utsuwa.instances.guest.sockets import GuestSockets, is_enabled, offers_images
from utsuwa.instances.model import READY, Running
from utsuwa.operations.events import EventHub, Subscription
from utsuwa.wire.guest import Guest

CONFIG = "config"
DEVICE = "device"
EVENT_TYPES = (CONFIG, DEVICE)
_BUFFER_EVENTS = 200
_BUFFER_BYTES = 2**20
"""Bounds of what is kept for an instance that does not read its events, for each listener."""
_STATES = {"Ready": True, "Started": False}


@dataclass
class _Seen:
    """A running instance as its listeners know it."""

    config: Mapping[str, str]
    devices: Mapping[str, Mapping[str, str]]
    hub: EventHub


class GuestManager:
    """All methods raise Forbidden for an instance without the guest API, or that is not running any more."""

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx
        self.runtime = ctx.runtime
        self._seen: dict[InstanceRef, _Seen] = {}
        ctx.runtime.listen(self._note)

    @property
    def sockets(self) -> GuestSockets:
        return self._ctx.guest_sockets

    def shown(self, ref: InstanceRef) -> Guest:
        ready = self._running(ref).ready
        return Guest(
            api_version="1.0",
            location=self._ctx.operations.events.location,
            instance_type="container",
            state="Ready" if ready else "Started",
        )

    def keys(self, ref: InstanceRef) -> list[str]:
        """Return the keys that the instance can read."""
        return view.visible(self._running(ref).config)

    def value(self, ref: InstanceRef, key: str) -> str:
        """Return the value of a key. Raises Forbidden for keys of other kinds, NotFound if it is not set."""
        config = self._running(ref).config
        if not key.startswith(view.VISIBLE):
            raise _not_authorized()
        if key not in config:
            raise NotFound("not found")
        return config[key]

    def meta_data(self, ref: InstanceRef) -> str:
        return view.meta_data(ref.name, self._running(ref).config)

    async def devices(self, ref: InstanceRef) -> Devices:
        self._running(ref)
        return view.devices(await load(self._ctx, ref))

    async def report(self, ref: InstanceRef, state: str) -> None:
        """Store the state that the instance reports. Raises InvalidRequest."""
        self._running(ref)
        if state not in _STATES:
            raise InvalidRequest(f"Invalid state {state[:40]!r}: use one of {', '.join(_STATES)}")
        ready = _STATES[state]
        async with self._ctx.locks.hold("instance", ref):
            running = self._running(ref)
            if running.ready == ready:
                return
            await self._ctx.patch_config(running.row_id, {READY: "true" if ready else None})
            running.ready = ready
        if ready:
            self._ctx.lifecycle("ready", ref)

    async def image_files(self, ref: InstanceRef, fingerprint: str) -> list[ExportedFile]:
        """Return the open files of an image of the instance's project that is public or was downloaded.

        Raises Forbidden without `security.devlxd.images`, NotFound also for the beginning of a fingerprint.
        """
        if not offers_images(self._running(ref).config):
            raise _not_authorized()
        try:
            row = await self._ctx.images.resolve(ref.project, fingerprint=fingerprint)
            row = self._ctx.images.check_here(row)
        except (InvalidRequest, OtherMember) as error:
            raise _no_image(fingerprint) from error
        if row.fingerprint != fingerprint or not (row.public or row.cached):
            raise _no_image(fingerprint)
        return await self._ctx.images.files(row)

    def subscribe(self, ref: InstanceRef, types: list[str]) -> Subscription:
        """Return the changes of the instance from now on, of the given types.

        They end when it stops, or loses the guest API.
        """
        self._running(ref)
        return self._seen[ref].hub.subscribe(types, name=f"instance {ref.name}")

    def _running(self, ref: InstanceRef) -> Running:
        running = self.runtime.get(ref)
        if running is None or not is_enabled(running.config):
            raise _not_authorized()
        return running

    def _note(self, running: Running, present: bool) -> None:
        """Report what has changed since the last call."""
        before = self._seen.get(running.ref)
        if not present or not is_enabled(running.config):
            if before is not None:
                before.hub.close()
                del self._seen[running.ref]
            return
        if before is None:
            hub = EventHub("", buffer_events=_BUFFER_EVENTS, buffer_bytes=_BUFFER_BYTES)
            self._seen[running.ref] = _Seen(running.config, running.devices, hub)
            return
        if before.hub.listened_to:
            for change in view.config_changes(before.config, running.config):
                before.hub.publish(CONFIG, change)
            for device in view.device_changes(before.devices, running.devices):
                before.hub.publish(DEVICE, device)
        before.config, before.devices = running.config, running.devices


def _not_authorized() -> Forbidden:
    return Forbidden("not authorized")


def _no_image(fingerprint: str) -> NotFound:
    return NotFound(f"Image {fingerprint[:64]!r} not found")

"""The containers of visitors: a few stand ready, and more are made as they are used up.

Each is ephemeral and marked by a key, so that what a killed process has left is found and deleted.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from dataclasses import dataclass

from utsuwa.client.server import path_to
from utsuwa.core.errors import NotFound, Unavailable, UtsuwaError
from utsuwa.core.tasks import finish
from utsuwa.tryit.inside import Inside
from utsuwa.tryit.metrics import Metrics
from utsuwa.tryit.rest import Rest, settle
from utsuwa.tryit.settings import Settings

log = logging.getLogger(__name__)

MARK = "user.utsuwa-try"
"""The key of a visitor's container."""
_MAKERS = 2
"""Containers that are made at a time: more would delay each other."""
_PAUSE = 5.0
_LONGEST_PAUSE = 300.0
"""Seconds after a failure; a container that cannot be deleted is left in peace for ever longer."""
_START_SECONDS = 30.0
_STOP_SECONDS = 60.0
"""For the deletion of what is left, which the site waits for at its start and its end."""
_LOOK_SECONDS = 10.0
_PATIENCE = 60.0
"""Seconds that a visitor waits for a container."""


@dataclass(frozen=True, eq=False)
class Container:
    """A container whose daemon answers, and what is in it before its visitor comes."""

    name: str
    images: frozenset[str]
    """Fingerprints."""
    profiles: frozenset[str]


class Visitors:
    """All containers of the site."""

    def __init__(self, rest: Rest, settings: Settings, metrics: Metrics) -> None:
        self._rest = rest
        self._settings = settings
        self._metrics = metrics
        self._making: set[str] = set()
        self._kept: set[str] = set()
        """Of containers that are ready or in use."""
        self._removing: set[str] = set()
        self._ready: list[Container] = []
        self._waiting = 0
        self._arrived = asyncio.Condition()
        self._wanted = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._removals: set[asyncio.Task[None]] = set()

    @property
    def ready(self) -> int:
        return len(self._ready)

    async def start(self) -> None:
        """Delete what an earlier process has left, and begin to make containers. Raises UtsuwaError.

        What cannot be deleted does not keep visitors away: it is tried again and again.
        """
        await self._remove_strangers()
        await self._wait_for_removals(_START_SECONDS)
        self._wanted.set()
        self._tasks = [
            *(asyncio.create_task(self._make_ready(), name=f"maker {n}") for n in range(_MAKERS)),
            asyncio.create_task(self._look(), name="look for lost containers"),
        ]

    async def stop(self) -> None:
        """Delete all containers."""
        await settle(*self._tasks)
        await settle(*self._removals)
        for names in (self._making, self._kept, self._removing):
            names.clear()
        try:
            await self._remove_strangers()
        except UtsuwaError as error:
            log.warning("containers are left, which the next start deletes: %s", error.message)
        await self._wait_for_removals(_STOP_SECONDS)
        await settle(*self._removals)
        if self._removing:
            log.warning("the next start deletes what is left: %s", ", ".join(sorted(self._removing)))

    async def take(self) -> Container:
        """Return a ready container, or wait for one. Raises Unavailable."""
        self._waiting += 1
        self._wanted.set()
        try:
            async with asyncio.timeout(_PATIENCE), self._arrived:
                await self._arrived.wait_for(lambda: bool(self._ready))
                return self._ready.pop(0)
        except TimeoutError as error:
            raise Unavailable("No container became ready: try again in a minute") from error
        finally:
            self._waiting -= 1
            self._wanted.set()

    def exists(self, name: str) -> bool:
        """Whether a container existed when the daemon was last asked."""
        return name in self._kept

    def remove(self, name: str) -> None:
        """Delete a container in the background, however often that takes."""
        self._kept.discard(name)
        self._removing.add(name)
        task = asyncio.create_task(self._remove_certainly(name), name=f"remove {name}")
        self._removals.add(task)
        task.add_done_callback(self._removals.discard)

    # ---- making

    async def _make_ready(self) -> None:
        while True:
            await self._wanted.wait()
            if not self._lacking:
                self._wanted.clear()
                continue
            try:
                await self._make()
            except Exception:
                log.exception("cannot make a container for the next visitor")
                self._metrics.failures += 1
                await asyncio.sleep(_PAUSE)

    @property
    def _lacking(self) -> bool:
        """Whether another container is to be made: there are never more than sessions and spare ones."""
        missing = self._settings.ready + self._waiting - len(self._ready) - len(self._making)
        there = len(self._making) + len(self._kept) + len(self._removing)
        return missing > 0 and there < self._settings.sessions + self._settings.ready

    async def _make(self) -> None:
        name = f"visitor-{secrets.token_hex(4)}"
        self._making.add(name)
        begun = time.monotonic()
        try:
            container = await self._launch(name)
        except BaseException:
            self.remove(name)
            raise
        finally:
            self._making.discard(name)
        self._metrics.making.add(time.monotonic() - begun)
        self._kept.add(name)
        async with self._arrived:
            self._ready.append(container)
            self._arrived.notify()

    async def _launch(self, name: str) -> Container:
        body = {
            "name": name,
            "source": {"type": "image", **await self._image()},
            "ephemeral": True,
            "start": True,
            "config": {MARK: "true"},
        }
        # One that is being created is neither listed nor deleted.
        await finish(self._rest.do("POST", "/1.0/instances", body))
        inside = Inside(self._rest, name)
        await inside.wait_until_ready()
        images, profiles = await inside.ask("/1.0/images", "/1.0/profiles")
        return Container(name, _last_parts(images), _last_parts(profiles))

    async def _image(self) -> dict[str, str]:
        """Return how an instance's source names the image of the settings."""
        image = self._settings.image
        try:
            await self._rest.get(path_to("images", "aliases", image))
        except NotFound:
            return {"fingerprint": image}
        return {"alias": image}

    # ---- removing

    async def _look(self) -> None:
        """Compare with what the daemon has: visitors stop containers, and removals may have failed."""
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            try:
                await self._remove_strangers()
            except Exception:
                log.exception("cannot list the containers")

    async def _remove_strangers(self) -> None:
        kept = set(self._kept)
        found = await self._rest.get("/1.0/instances", recursion="1")
        running = {record["name"] for record in found if record["status"] == "Running"}
        for name in kept - running:
            self._kept.discard(name)
            self._ready = [container for container in self._ready if container.name != name]
        self._wanted.set()
        marked = {record["name"] for record in found if MARK in record["config"]}
        unused = marked - self._making - self._kept - self._removing
        if unused:
            log.info("deleting %s, which nobody uses", ", ".join(sorted(unused)))
        for name in unused:
            self.remove(name)

    async def _wait_for_removals(self, seconds: float) -> None:
        if self._removals:
            await asyncio.wait(set(self._removals), timeout=seconds)

    async def _remove_certainly(self, name: str) -> None:
        pause = _PAUSE
        while True:
            try:
                await self._remove(name)
            except Exception:
                log.exception("cannot delete %s yet", name)
                await asyncio.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)
            else:
                self._removing.discard(name)
                self._wanted.set()
                return

    async def _remove(self, name: str) -> None:
        """Delete a container, which stops it; the daemon may be doing so already."""
        try:
            stop = {"action": "stop", "force": True, "timeout": -1}
            await self._rest.do("PUT", f"/1.0/instances/{name}/state", stop)
        except NotFound:
            return
        except Unavailable:
            raise
        except UtsuwaError as error:  # it is stopped
            log.debug("%s: %s", name, error.message)
        try:
            await self._rest.do("DELETE", f"/1.0/instances/{name}")
        except NotFound:
            return


def _last_parts(urls: object) -> frozenset[str]:
    if not isinstance(urls, list):
        raise Unavailable("The daemon in the container does not list its images")
    return frozenset(str(url).rpartition("/")[2] for url in urls)

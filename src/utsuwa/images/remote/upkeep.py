"""Regular work on images of other servers: newer versions replace older ones, unused ones are removed."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Coroutine, Mapping
from datetime import datetime, timedelta
from typing import Any

from utsuwa.core import clock
from utsuwa.core.errors import Forbidden, NotFound, Unavailable
from utsuwa.db import images as image_rows
from utsuwa.db.database import Database
from utsuwa.db.images import ImageRow
from utsuwa.images.manager import ImageManager
from utsuwa.images.remote.manager import RemoteImages
from utsuwa.security.server_config import ServerConfig

log = logging.getLogger(__name__)

EXPIRY = "images.remote_cache_expiry"
INTERVAL = "images.auto_update_interval"
_HOUR = 3600.0


class ImageUpkeep:
    """Looks at the images of this member at the start of the daemon, and then every hour."""

    def __init__(
        self, images: ImageManager, remote: RemoteImages, database: Database, server: ServerConfig
    ) -> None:
        self._images = images
        self._remote = remote
        self._database = database
        self._server = server
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        server.on_change(self._config_changed)

    def begin(self) -> None:
        self._task = asyncio.create_task(self._run(), name="upkeep of images")

    async def end(self) -> None:
        """A download that is in progress leaves nothing."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _config_changed(self, changed: frozenset[str], new: Mapping[str, str]) -> None:
        del new
        if EXPIRY in changed:
            self._changed.set()

    async def _run(self) -> None:
        await self._try("the cache of image servers", self._remote.sweep(at_start=True))
        loop = asyncio.get_running_loop()
        began, hour = loop.time(), 0
        while True:
            await self._try("expired images", self.expire(clock.now()))
            await self._try("updates of images", self.update(hour))
            hour += 1
            while loop.time() < began + hour * _HOUR:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._changed.wait(), began + hour * _HOUR - loop.time())
                if self._changed.is_set():
                    self._changed.clear()
                    await self._server.settled()
                    await self._try("expired images", self.expire(clock.now()))
            await self._try("the cache of image servers", self._remote.sweep())

    async def expire(self, now: datetime) -> None:
        """Remove cached images that no instance has been created from for so many days."""
        for row in await self._here():
            if not row.cached:
                continue
            days = int(await self._remote.setting(row.project, EXPIRY))
            if days > 0 and (row.last_used_at or row.uploaded_at) < now - timedelta(days=days):
                log.info("removing an unused cached image", extra={"fingerprint": row.fingerprint})
                await self._try("an expired image", self._images.remove(row))

    async def update(self, hour: int) -> None:
        """Replace images whose servers have newer versions, if the hour is a multiple of the interval."""
        for row in await self._here():
            if not row.auto_update or row.source is None:
                continue
            interval = int(await self._remote.setting(row.project, INTERVAL))
            if interval > 0 and hour % interval == 0:
                await self._try(f"image {row.fingerprint[:12]}", self._update(row))

    async def _update(self, row: ImageRow) -> None:
        try:
            await self._remote.refresh(row)
        except (Forbidden, NotFound, Unavailable) as error:
            log.warning("image %s is not updated: %s", row.fingerprint[:12], error)

    async def _here(self) -> list[ImageRow]:
        rows = await self._database.read("all images", image_rows.get_all, None)
        return [row for row in rows if row.here and row.state == "ready"]

    async def _try(self, what: str, work: Coroutine[Any, Any, object]) -> None:
        try:
            await work
        except NotFound:
            pass  # deleted meanwhile
        except Exception:
            log.exception("the upkeep of %s failed", what)

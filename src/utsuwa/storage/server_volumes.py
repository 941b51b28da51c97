"""Custom volumes that hold files of the server itself (`storage.images_volume`, `storage.backups_volume`).

The directory of the state directory is then a symlink to the volume. What is configured decides: a start
after an interrupted change moves the files to where the stored config has them.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from utsuwa.core.errors import InUse, UtsuwaError
from utsuwa.core.names import DEFAULT_PROJECT
from utsuwa.core.volumes import Volume
from utsuwa.core.warning_types import SERVER_VOLUME_UNAVAILABLE
from utsuwa.db import volume_snapshots
from utsuwa.db.transaction import Transaction
from utsuwa.host.files import relocation
from utsuwa.operations.retries import Retries
from utsuwa.operations.warnings import Warnings
from utsuwa.storage.custom.context import CustomContext, get
from utsuwa.storage.custom.create import check_unused
from utsuwa.storage.custom.uses import Place
from utsuwa.storage.known_pools import KnownPool

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ServerFiles:
    """A directory of the server with the key of the volume that may hold it."""

    key: str
    path: Path
    paused: Callable[[], AbstractContextManager[None]] = nullcontext
    """Keeps new files from being written within the block; raises Busy if some are being written."""


class ServerVolumes:
    """Maintains where these files are. `config_changed` is a listener of the server config."""

    def __init__(
        self, ctx: CustomContext, files: Sequence[ServerFiles], warnings: Warnings, retries: Retries
    ) -> None:
        self._ctx = ctx
        self._files = files
        self._warnings = warnings
        self._retries = retries
        self._config: Mapping[str, str] = {}

    async def start(self, config: Mapping[str, str]) -> None:
        """Have the files where the config says; where that is not possible yet, it is tried again."""
        self._config = {files.key: config.get(files.key, "") for files in self._files}
        for files in self._files:
            if self._config[files.key]:
                self._ctx.uses.reserve(_place(self._config[files.key]), files.key)
        await self._retries.begin("volumes of the server", self._settle)

    async def _settle(self) -> bool:
        problems = []
        for files in self._files:
            try:
                await self._move(files, self._config[files.key])
            except UtsuwaError as error:
                problems.append(f"{files.key} is not available: {error.message}")
        self._warnings.judge(SERVER_VOLUME_UNAVAILABLE, "; ".join(problems))
        return not problems

    async def config_changed(self, changed: frozenset[str], config: Mapping[str, str]) -> None:
        """Move files to other volumes, or back to the state directory.

        Raises NotFound (pool, volume), InUse (also if it is not empty), Unavailable, Busy, OutOfSpace,
        HostError.
        """
        moved: list[ServerFiles] = []
        old = self._config
        for files in self._files:
            if files.key in changed:
                try:
                    await self._change(files, config)
                except BaseException:
                    for other in moved:
                        await self._change(other, old)
                    raise
                moved.append(files)

    async def _change(self, files: ServerFiles, config: Mapping[str, str]) -> None:
        old, new = self._config[files.key], config.get(files.key, "")
        if old == new:
            return
        if new:
            await self._take(files, new)
        else:
            await self._move(files, "")
        if old:
            self._ctx.uses.release(_place(old))
        self._config = {**self._config, files.key: new}

    async def _take(self, files: ServerFiles, value: str) -> None:
        """Move the files to a volume that nothing else uses."""
        place = _place(value)
        at = await self._ctx.pools.ensure_available(place[0])
        with self._ctx.uses.excluded(place, f"used for {files.key}"):
            async with self._ctx.locks.hold(*place):
                await self._ctx.database.read("volume of the server", _check_free, place)
                if found := await self._ctx.threads.quick.run(relocation.content, _root(at, place[1])):
                    raise InUse(
                        f"The storage volume {place[1].name!r} contains {found[0].name[:80]!r}: "
                        "only an empty one can be used"
                    )
                await self._move(files, value)
                self._ctx.uses.reserve(place, files.key)

    async def _move(self, files: ServerFiles, value: str) -> None:
        """Have the files at the right place; does nothing if they are there already."""
        target = await self._folder(value) if value else None
        await asyncio.to_thread(relocation.settle, files.path)
        if target == relocation.location(files.path):
            return
        with files.paused():
            log.info("moving files of the server", extra={"from": str(files.path), "to": str(target)})
            await self._ctx.threads.fill.run(relocation.relocate, files.path, target)

    async def _folder(self, value: str) -> Path:
        pool, volume = _place(value)
        at = await self._ctx.pools.ensure_available(pool)
        await self._ctx.database.read("volume of the server", get, (pool, volume))
        return _root(at, volume)


def _place(value: str) -> Place:
    pool, _, name = value.partition("/")
    return pool, Volume("custom", DEFAULT_PROJECT, name)


def _root(pool: KnownPool, volume: Volume) -> Path:
    return pool.driver.volume_folder(volume) / "rootfs"


def _check_free(tx: Transaction, place: Place) -> None:
    row = get(tx, place)
    check_unused(tx, place)
    if volume_snapshots.names(tx, row.id):
        raise InUse(
            f"The storage volume {row.name!r} has snapshots, of no use for files of the server: "
            "delete them first"
        )

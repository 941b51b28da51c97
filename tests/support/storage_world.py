"""A daemon's storage without the daemon, and processes that are killed while they use it."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from tests.support.open_warnings import OpenWarnings, no_retries
from tests.support.pools import MAP, TYPES, container
from utsuwa.core import clock, faults
from utsuwa.core.image_source import ImageSource
from utsuwa.core.paths import StatePaths
from utsuwa.core.refs import InstanceRef
from utsuwa.db import instances, storage_volumes
from utsuwa.db.codes import VOLUME_CONTAINER
from utsuwa.db.database import Database
from utsuwa.db.instance_data import InstanceData
from utsuwa.db.instances import InstanceRow
from utsuwa.db.sqlite import Sqlite
from utsuwa.operations.events import EventHub
from utsuwa.operations.operations import Operations
from utsuwa.storage.base import Driver
from utsuwa.storage.custom.context import CustomContext
from utsuwa.storage.manager import StorageManager


class StorageWorld:
    """The storage of one state directory, with the pool `p`."""

    def __init__(self, root: Path, driver: str) -> None:
        self.paths = StatePaths(root)
        self.driver_name = driver
        self.storage: StorageManager
        self.database: Database

    @asynccontextmanager
    async def started(self) -> AsyncIterator[StorageWorld]:
        """Start the storage as a daemon does, and stop it at the end; nothing is mounted then."""
        self.database = await Database.open(Sqlite(self.paths.database))
        self.storage = StorageManager(
            self.database, self.paths, Operations(EventHub()), OpenWarnings(), no_retries()
        )
        await self.storage.start()
        try:
            yield self
        finally:
            await self.storage.stop(unmount=True)
            await self.database.close()

    def run(self, work: Callable[[StorageWorld], Awaitable[object]]) -> None:
        """Start, do some work, and stop."""

        async def main() -> None:
            async with self.started():
                await work(self)

        asyncio.run(main())

    def create(self, image: ImageSource) -> None:
        """Create the state directory, the pool, and the instance `c1`."""
        self.paths.root.mkdir(mode=0o711)
        self.paths.create_directories()

        async def work(_: StorageWorld) -> None:
            await self.storage.pools.create("p", self.driver_name)
            await self.add_instance("c1")
            await self.storage.volumes.create("p", container("c1"), MAP, image)

        self.run(work)

    @property
    def custom(self) -> CustomContext:
        return self.storage.custom.context

    async def add_instance(self, name: str) -> None:
        """Insert the row of an instance."""
        row = InstanceRow(0, InstanceRef("default", name), InstanceData("x86_64"), clock.now(), state="ready")
        await self.database.write("test", instances.insert, row)

    async def intentions(self) -> list[str]:
        """What is recorded as not completed."""
        rows = await self.database.read("test", storage_volumes.get_here, "p", VOLUME_CONTAINER)
        return [row.new_name for row in rows if row.new_name]

    @property
    def driver(self) -> Driver:
        """A driver of the pool on its own."""
        return TYPES[self.driver_name].make(self.paths.pool("p"), {})

    def killed(self, work: Callable[[StorageWorld], Awaitable[object]], point: str, folder: Path) -> bool:
        """Do some work in a process that is killed at a fault point; return whether it was.

        The point is named, or the number of those before it.
        """
        folder.mkdir(exist_ok=True)
        (folder / "kill").write_text(point)
        child = os.fork()
        if not child:
            status = 1
            try:

                async def main() -> None:
                    async with self.started():
                        faults.use_folder(folder)
                        await work(self)

                asyncio.run(main())
                status = 0
            finally:
                os._exit(status)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert code in (0, -signal.SIGKILL), code
        return code != 0

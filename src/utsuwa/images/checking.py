"""The check of a split image, most of which happens while the image is still being received."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

from utsuwa.core.errors import UtsuwaError
from utsuwa.core.threads import Threads
from utsuwa.host.archives.check import RootfsCheck, check_archive
from utsuwa.host.processes.stopper import Stopper


class CheckAhead:
    """Checks the metadata at once, and prepares the check of the root file system.

    Always `stop` it.
    """

    def __init__(self, threads: Threads, metadata: Path, rootfs: Path, form: str) -> None:
        """The metadata is complete, the rootfs has the format `form`."""
        self._stopper = Stopper()
        self._rootfs = RootfsCheck(rootfs, form)
        check = threads.stopped_by(self._stopper.stop).run
        self._metadata = asyncio.create_task(
            check(check_archive, metadata, "metadata", stopper=self._stopper)
        )
        self.ended = False

    async def result(self) -> bytes:
        """Return metadata.yaml, after the check of files that are complete now. Raises as `check_image`."""
        outcomes = await asyncio.gather(self._metadata, self._rootfs.finish(), return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome
        return self._metadata.result()

    def interrupt(self) -> None:
        """Have `result` fail."""
        self._stopper.stop()
        self._rootfs.interrupt()

    async def stop(self) -> None:
        """End it, if it still runs. Safe to repeat."""
        self.interrupt()
        await self._rootfs.stop()
        with contextlib.suppress(UtsuwaError):
            await self._metadata
        self.ended = True

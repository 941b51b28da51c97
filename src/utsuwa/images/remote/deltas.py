"""Root file systems by their difference to that of an image that is here already."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

from yarl import URL

from utsuwa.core.errors import InvalidImage, NotFound, ProcessFailed, Unavailable
from utsuwa.core.simplestreams import StreamFile, StreamImage
from utsuwa.core.threads import Threads
from utsuwa.host.archives.delta import apply_delta, can_apply
from utsuwa.host.files.filetree import remove_tree
from utsuwa.host.processes.stopper import Stopper
from utsuwa.images.remote.bodies import receive
from utsuwa.images.remote.records import Progress
from utsuwa.images.remote.web import Web
from utsuwa.images.store import TEMPORARY
from utsuwa.images.upload import Upload

log = logging.getLogger(__name__)

FindBase = Callable[[str], Awaitable[Path | None]]
"""Returns the root file system of the image with a fingerprint, if it is here."""


class Deltas:
    """Receives root file systems by deltas; what these lead to is checked as the file itself."""

    def __init__(self, web: Web, find_base: FindBase, threads: Threads) -> None:
        self._web = web
        self._find_base = find_base
        self._threads = threads

    async def receive(
        self,
        image: StreamImage,
        wanted: StreamFile,
        url: Callable[[str], URL],
        upload: Upload,
        progress: Progress,
    ) -> bool:
        """Receive the part `rootfs`, if there is a delta for it; return whether this has succeeded.

        `url` returns that of a path. Raises TooLarge, OutOfSpace.
        """
        found = await self._choose(image, wanted)
        if found is None:
            return False
        base, delta = found
        await upload.expect(wanted.size)
        try:
            async with _folder(upload.directory) as folder, Upload(folder) as parcel:
                await receive(
                    self._web,
                    url(delta.path),
                    parcel,
                    "metadata",  # a single file
                    progress,
                    size=delta.size,
                    sha256=delta.sha256,
                    label="rootfs delta",
                )
                stopper = Stopper()
                run = self._threads.stopped_by(stopper.stop).run
                await run(_patch, base, parcel, folder, wanted, upload, stopper)
        except (InvalidImage, NotFound, ProcessFailed, Unavailable) as error:
            log.warning("the delta of an image is not used: %s", error)
            return False
        return True

    async def _choose(self, image: StreamImage, wanted: StreamFile) -> tuple[Path, StreamFile] | None:
        """Return the smallest delta from an image that is here, and the file that it applies to."""
        usable = [(base, delta) for base, delta in image.deltas() if 0 < delta.size < wanted.size]
        # Only a hash shows that it has led to the right file, before the rest of the image is hashed.
        if not usable or not wanted.sha256 or not await asyncio.to_thread(can_apply):
            return None
        for fingerprint, delta in sorted(usable, key=lambda entry: entry[1].size):
            base = await self._find_base(fingerprint)
            if base is not None:
                return base, delta
        return None


@contextlib.asynccontextmanager
async def _folder(parent: Path) -> AsyncIterator[Path]:
    """A private folder, which is removed; the daemon's next start does it after a kill."""
    path = parent / f"{TEMPORARY}{secrets.token_hex(8)}"
    await asyncio.to_thread(path.mkdir, 0o700)
    try:
        yield path
    finally:
        await asyncio.to_thread(remove_tree, path)


def _patch(
    base: Path, parcel: Upload, folder: Path, wanted: StreamFile, upload: Upload, stopper: Stopper
) -> None:
    patched = apply_delta(base, parcel.metadata, folder, wanted.size, stopper)
    with patched.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != wanted.sha256:
        raise InvalidImage(f"{wanted.path[:200]}: the delta leads to a file with the hash {found}")
    patched.chmod(0o600)
    with upload.made("rootfs") as path:
        patched.rename(path)

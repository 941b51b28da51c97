"""Checking of untrusted image archives without unpacking them, in the `sandbox`.

A tar archive is decompressed for this; only the tables of a squashfs are read.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from utsuwa.core.errors import InvalidImage, ProcessFailed, UtsuwaError
from utsuwa.host.archives import sandbox
from utsuwa.host.archives.formats import DECOMPRESSORS, archive_format
from utsuwa.host.archives.sandbox import DEFAULT_LIMITS, Tree, UnpackLimits, judge, run_job
from utsuwa.host.archives.scan import MAX_METADATA, METADATA
from utsuwa.host.processes.run import Completed, run
from utsuwa.host.processes.stopper import Stopper

_SQUASHFS = "squashfs"


def check_image(
    metadata: Path,
    rootfs: Path | None,
    *,
    limits: UnpackLimits = DEFAULT_LIMITS,
    stopper: Stopper | None = None,
) -> bytes:
    """Check a complete image; return its metadata.yaml. Blocking.

    The two files of a split image are read in parallel. Raises InvalidImage, OutOfSpace if it exceeds the
    limits, or ProcessFailed if `stopper` cuts it short.
    """
    if rootfs is None:
        return check_archive(metadata, "unified", limits, stopper)
    with ThreadPoolExecutor(1, thread_name_prefix="check-image") as beside:
        checked = beside.submit(check_archive, rootfs, "rootfs", limits, stopper)
        content = check_archive(metadata, "metadata", limits, stopper)
        checked.result()
    return content


def check_archive(
    archive: Path, tree: Tree, limits: UnpackLimits = DEFAULT_LIMITS, stopper: Stopper | None = None
) -> bytes:
    """Check one complete file of an image; return its metadata.yaml, if it has one. As `check_image`."""
    form = archive_format(archive)
    if form == _SQUASHFS:
        check_squashfs(archive, tree, limits, stopper)
        return b"" if tree == "rootfs" else _squashfs_metadata(archive, limits)
    result = run_job(archive, None, limits, *_job(form, tree, limits), stopper=stopper)
    return _verdict(form, result)


def check_squashfs(archive: Path, tree: Tree, limits: UnpackLimits, stopper: Stopper | None = None) -> None:
    """Check what is in a squashfs. As `check_image`."""
    _verdict(_SQUASHFS, run_job(archive, None, limits, *_job(_SQUASHFS, tree, limits), stopper=stopper))


def _job(form: str, tree: Tree, limits: UnpackLimits) -> tuple[str, ...]:
    sizes = tree, str(limits.entries), str(limits.size)
    return ("list", *sizes) if form == _SQUASHFS else ("check", *sizes, *DECOMPRESSORS[form])


def _verdict(form: str, result: Completed) -> bytes:
    judge(result, "unsquashfs" if form == _SQUASHFS else "decompression", "scan")
    return result.stdout


def _squashfs_metadata(archive: Path, limits: UnpackLimits) -> bytes:
    result = run_job(archive, None, limits, "cat", METADATA)
    judge(result, "unsquashfs")
    if len(result.stdout) > MAX_METADATA:
        raise InvalidImage(f"The image is invalid: its {METADATA} is larger than {MAX_METADATA} bytes")
    return result.stdout


class RootfsCheck:
    """The check of a root file system whose sandbox is set up while the archive is still being received.

    Always `stop` it.
    """

    def __init__(self, archive: Path, form: str, limits: UnpackLimits = DEFAULT_LIMITS) -> None:
        """The file exists, and has the format `form`."""
        self._form = form
        self._limits = limits
        self._stopper = Stopper()
        argv, env = sandbox.command(archive, None, limits, *_job(form, "rootfs", limits))
        waiting, self._gate = os.pipe2(os.O_CLOEXEC)
        self._task = asyncio.create_task(self._run(argv, env, waiting))

    async def _run(self, argv: list[str], env: dict[str, str], waiting: int) -> Completed:
        try:
            return await run(argv, stdin_fd=waiting, timeout=None, env=env, stopper=self._stopper)
        finally:
            os.close(waiting)

    async def finish(self) -> None:
        """Check the archive, all of which has been written. Raises as `check_image`."""
        with contextlib.suppress(BrokenPipeError):  # it has failed already, and says why
            os.write(self._gate, sandbox.GO)
        try:
            async with asyncio.timeout(self._limits.seconds):
                result = await asyncio.shield(self._task)
        except TimeoutError as error:
            reason = f"did not end within {self._limits.seconds} seconds"
            raise ProcessFailed(["unsquashfs"], None, reason) from error
        _verdict(self._form, result)

    def interrupt(self) -> None:
        """Have `finish` fail."""
        self._stopper.stop()

    async def stop(self) -> None:
        """End it, if it still runs. Safe to repeat."""
        if self._gate >= 0:
            os.close(self._gate)
            self._gate = -1
        self.interrupt()
        with contextlib.suppress(UtsuwaError):
            await self._task

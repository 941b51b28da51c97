"""Checking of untrusted image archives without unpacking them, in the `sandbox`.

A tar archive is decompressed for this; only the tables of a squashfs are read.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Sequence
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


class SplitCheck:
    """The check of a split image whose root file system is still being received; its metadata is complete.

    One sandbox checks the metadata at once, and then waits for the rest. Always `stop` it.
    """

    def __init__(
        self, metadata: Path, rootfs: Path, form: str, limits: UnpackLimits = DEFAULT_LIMITS
    ) -> None:
        """The root file system has the format `form`; the file exists."""
        self._metadata, self._rootfs, self._form = metadata, rootfs, form
        self._limits = limits
        self._stopper = Stopper()
        self._complete = asyncio.Event()
        waiting, self._gate = os.pipe2(os.O_CLOEXEC)
        self._task = asyncio.create_task(self._run(waiting))
        self.ended = False

    async def result(self) -> bytes:
        """Return metadata.yaml, after the check of files that are complete now. Raises as `check_image`."""
        self._complete.set()
        with contextlib.suppress(BrokenPipeError):  # it has failed already, and says why
            os.write(self._gate, sandbox.GO)
        try:
            async with asyncio.timeout(self._limits.seconds):
                return await asyncio.shield(self._task)
        except TimeoutError as error:
            reason = f"did not end within {self._limits.seconds} seconds"
            raise ProcessFailed(["unsquashfs"], None, reason) from error

    def interrupt(self) -> None:
        """Have `result` fail."""
        self._stopper.stop()

    async def stop(self) -> None:
        """End it, if it still runs. Safe to repeat."""
        self.interrupt()
        self._complete.set()
        with contextlib.suppress(UtsuwaError):
            await self._task
        if self._gate >= 0:
            os.close(self._gate)
            self._gate = -1
        self.ended = True

    async def _run(self, waiting: int) -> bytes:
        try:
            form = await asyncio.to_thread(archive_format, self._metadata)
            if form != _SQUASHFS:
                return await self._by_one_sandbox(DECOMPRESSORS[form], waiting)
            await self._complete.wait()
            return await asyncio.to_thread(
                check_image, self._metadata, self._rootfs, limits=self._limits, stopper=self._stopper
            )
        finally:
            os.close(waiting)

    async def _by_one_sandbox(self, of_metadata: Sequence[str], waiting: int) -> bytes:
        of_rootfs = () if self._form == _SQUASHFS else DECOMPRESSORS[self._form]
        sizes = str(self._limits.entries), str(self._limits.size)
        words = (*sizes, str(len(of_metadata)), *of_metadata, *of_rootfs)
        argv = sandbox.command(self._metadata, None, self._limits, "split", *words, base=self._rootfs)
        ended = await run(argv, stdin_fd=waiting, timeout=None, stopper=self._stopper)
        first, rest = sandbox.parts(ended)
        judge(first, "decompression", "scan")
        if rest is None:
            raise ProcessFailed(argv, ended.code, "the check has ended too early")
        return _verdict(self._form, rest)

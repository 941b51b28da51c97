"""Temporary file systems of their own, for tests that fill them up and for benchmarks."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class DiskError(Exception):
    """A file system cannot be created, mounted or unmounted."""


@contextmanager
def loop_ext4(
    directory: Path, size: int, *options: str, mount_options: str = "loop", busy_seconds: float = 0
) -> Iterator[Path]:
    """Mount a new ext4 of `size` bytes, in a sparse file next to `directory`, for the block.

    `options` are those of mkfs.ext4. If it is busy at the end, unmounting is retried for `busy_seconds`.
    """
    file = directory.with_name(f"{directory.name}.ext4")
    directory.mkdir()
    with file.open("xb") as disk:
        disk.truncate(size)
    _run("mkfs.ext4", "-q", *options, str(file))
    _run("mount", "-o", mount_options, str(file), str(directory))
    try:
        yield directory
    finally:
        _unmount(directory, busy_seconds)
        file.unlink()
        directory.rmdir()


def _unmount(directory: Path, busy_seconds: float) -> None:
    deadline = time.monotonic() + busy_seconds
    while True:
        try:
            _run("umount", "--recursive", str(directory))
        except DiskError:
            if time.monotonic() >= deadline:
                raise
            time.sleep(0.2)
        else:
            return


def _run(*argv: str) -> None:
    ended = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120)
    if ended.returncode:
        raise DiskError(f"{argv[0]} failed with exit code {ended.returncode}: {ended.stderr.strip()}")

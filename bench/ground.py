"""The file system that the daemons' state lies on."""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SIZE = 32 << 30
"""Bytes, of which only those take space that are written to."""
UNMOUNT_SECONDS = 20


class GroundError(Exception):
    """It cannot be made, or not be taken away."""


@contextmanager
def ground() -> Iterator[Path]:
    """A folder for state folders: `$UTSUWA_BENCH_DIR`, or a new ext4 in a file below /var/tmp, which goes.

    The machine's own would not do: what other programs and earlier rounds left there is part of every
    measure. Above all, an ext4 that has no journal, as virtual machines often have it, looks at every
    inode that was deleted in the last minute or five before it gives away one, so that what one daemon
    deletes slows down the next one.
    """
    if own := os.environ.get("UTSUWA_BENCH_DIR"):
        yield Path(own)
        return
    with tempfile.TemporaryDirectory(prefix="ub-", dir="/var/tmp") as folder:
        # Containers' ids pass through to their root file systems.
        Path(folder).chmod(0o711)
        mounted = Path(folder, "m")
        mounted.mkdir()
        _mount_new(Path(folder, "image"), mounted)
        try:
            mounted.chmod(0o711)
            yield mounted
        finally:
            _unmount(mounted)


def _mount_new(image: Path, target: Path) -> None:
    with image.open("xb") as file:
        file.truncate(SIZE)
    _run("mkfs.ext4", "-q", "-F", str(image))
    # Its inode tables lie in a hole, which reads as zeros: no thread need write them while we measure.
    _run("mount", "-o", "loop,noinit_itable", str(image), str(target))


def _unmount(target: Path) -> None:
    """Namespaces of containers that have just ended may hold it for a moment."""
    deadline = time.monotonic() + UNMOUNT_SECONDS
    while True:
        try:
            _run("umount", str(target))
        except GroundError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)
        else:
            return


def _run(*argv: str) -> None:
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120)
    if done.returncode:
        raise GroundError(f"{argv[0]} ended with {done.returncode}: {done.stderr.strip()}")

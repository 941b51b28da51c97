"""The file system for the daemons' state directories."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.disks import loop_ext4

SIZE = 32 << 30
"""Size in bytes; the file is sparse."""
BUSY_SECONDS = 20
"""Namespaces of containers that have just stopped can keep the file system busy for a moment."""


@contextmanager
def ground() -> Iterator[Path]:
    """Yield `$UTSUWA_BENCH_DIR`, or the directory of a new, temporary ext4 in a file below /var/tmp.

    The machine's own file system is not used, because what other programs and earlier rounds left there
    affects the results. In particular, an ext4 without a journal, as is common in virtual machines, checks
    every inode deleted in the last minutes before it allocates one, so that the deletions of one daemon slow
    down the next one. Raises DiskError.
    """
    if own := os.environ.get("UTSUWA_BENCH_DIR"):
        yield Path(own)
        return
    with tempfile.TemporaryDirectory(prefix="ub-", dir="/var/tmp") as directory:
        # Containers' ids need to reach their root file systems.
        Path(directory).chmod(0o711)
        # noinit_itable: the inode tables are in a hole, which reads as zeros, so that no thread writes them
        # during the measurements.
        with loop_ext4(
            Path(directory, "m"), SIZE, mount_options="loop,noinit_itable", busy_seconds=BUSY_SECONDS
        ) as mounted:
            mounted.chmod(0o711)
            yield mounted

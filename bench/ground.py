"""The file system for the daemons' state directories."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.disks import DiskError, loop_ext4

from bench.daemons import Missing
from bench.wire import WireError

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


def run_on_ground(program: str, run: Callable[[Path], int], *expected: type[Exception]) -> int:
    """Run a program's measurement on a `ground`; return its exit status.

    Interruptions, what a host lacks, and `expected` errors are said on standard error.
    """
    if os.geteuid() != 0:
        print(f"{program}: containers need root; run it as root", file=sys.stderr)
        return 1
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    errors: tuple[type[Exception], ...] = (DiskError, Missing, WireError, *expected)
    try:
        with ground() as folder:
            return run(folder)
    except KeyboardInterrupt:
        print(f"{program}: interrupted", file=sys.stderr)
        return 130
    except errors as error:
        print(f"{program}: {error}", file=sys.stderr)
        return 1

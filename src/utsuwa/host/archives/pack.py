"""Packing a container's files as an image: what `unpack` reads.

The archive of an image contains `metadata.yaml`, `rootfs/` and, if there are any, `templates/`. Names,
owners, modes, hard links, holes, times (in seconds), device nodes, POSIX ACLs and the extended attributes
`user.*` and `security.capability` are kept; sockets are left out, and other file systems are not entered.
Equal trees result in equal archives, except for files with holes. A squashfs has no POSIX ACLs, as the format
does not know them.

All functions block and must run in worker threads.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from utsuwa.core.compression import Compression
from utsuwa.host.archives import compress
from utsuwa.host.archives.scan import METADATA
from utsuwa.host.processes.pipeline import run_pipeline
from utsuwa.host.processes.stopper import Stopper

_ENDS_WITH_DAEMON = ("setpriv", "--pdeathsig", "KILL")
_TAR = (
    "tar", "--create", "--file=-", "--format=posix", "--sort=name", "--numeric-owner",
    "--one-file-system", "--xattrs", "--xattrs-include=user.*", "--xattrs-include=security.capability",
    # Without these, every file would have a second header, with times in nanoseconds, and the id of tar.
    "--pax-option=delete=atime,delete=ctime,delete=mtime,exthdr.name=%d/PaxHeaders/%f",
    "--warning=no-file-ignored",
)  # fmt: skip
_ACLS = "--xattrs-include=system.posix_acl_*"
"""ACLs as they are on disk: `--acls` would write this host's names of users."""
_SPARSE = "--sparse"
"""Not for mksquashfs, which finds holes itself; 4.5 fails on sparse files that end with a hole."""


def pack_tar(
    folder: Path,
    metadata: bytes,
    moment: int,
    beside: Path,
    compression: Compression,
    take: Callable[[bytes], object],
    stopper: Stopper,
) -> None:
    """Pack `folder`, with `rootfs/` and perhaps `templates/`, as a tar archive that is passed to `take`.

    `metadata` is the content of metadata.yaml, `moment` its time in seconds since 1970; what is needed
    meanwhile has a name in `beside` that begins with `.upload-`. Raises ProcessFailed, also if it is stopped,
    and what `take` raises.
    """
    with _archived(folder, metadata, moment, beside) as archive:
        compressor = compress.compressor(compression)
        commands = [[*archive, _ACLS, _SPARSE], *([compressor] if compressor else [])]
        _run(commands, take, stopper)


def pack_squashfs(
    folder: Path, metadata: bytes, moment: int, beside: Path, target: Path, stopper: Stopper
) -> None:
    """As `pack_tar`, but pack a squashfs as the file `target`, which must not exist."""
    with _archived(folder, metadata, moment, beside) as archive:
        _run([archive, compress.squashfs(target, moment)], _ignore, stopper)


def _run(commands: list[list[str]], take: Callable[[bytes], object], stopper: Stopper) -> None:
    """Run a pipeline that begins with tar, and ends with the daemon."""
    with stopper.reading("tar"):
        run_pipeline([[*_ENDS_WITH_DAEMON, *command] for command in commands], take, stopper=stopper)


def _ignore(_: bytes) -> None:
    """Take what a program says that writes to a file."""


@contextmanager
def _archived(folder: Path, metadata: bytes, moment: int, beside: Path) -> Iterator[list[str]]:
    """Yield the command that writes the archive, with metadata.yaml in a directory of its own."""
    with tempfile.TemporaryDirectory(prefix=".upload-", dir=beside) as own:
        file = Path(own) / METADATA
        file.write_bytes(metadata)
        file.chmod(0o644)
        os.utime(file, (moment, moment))
        names = [name for name in ("rootfs", "templates") if (folder / name).is_dir()]
        yield [*_TAR, f"--directory={own}", METADATA, f"--directory={folder}", *names]

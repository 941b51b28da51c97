"""The programs that compress archives."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from utsuwa.core.compression import Compression
from utsuwa.core.errors import InvalidRequest
from utsuwa.host.archives import gzip_members
from utsuwa.host.processes.run import PATH, package_of

_GZIP_LEVEL = 6


def processors() -> int:
    """Return the number of processors that the daemon may use."""
    return len(os.sched_getaffinity(0))


def compressor(compression: Compression) -> list[str]:
    """Return the command that compresses its stdin to its stdout; empty for `none`.

    Raises ValueError for squashfs, which is not made of a stream.
    """
    cores = str(processors())
    level = [] if compression.level is None else [f"-{compression.level}"]
    rsyncable = ["--rsyncable"] if compression.rsyncable else []
    match compression.name:
        case "none":
            return []
        case "gzip" if not compression.rsyncable:
            number = _GZIP_LEVEL if compression.level is None else compression.level
            return [sys.executable, "-I", "-S", gzip_members.__file__, str(number), cores]
        case "gzip":  # without the time of the compression, so that equal archives stay equal
            return ["gzip", "-c", "-n", *level, *rsyncable]
        case "pigz":
            return ["pigz", "-c", "-n", "-p", cores, *level, *rsyncable]
        case "bzip2":
            return ["bzip2", "-c", *level]
        case "lz4":
            return ["lz4", "-c", "-q", *level]
        case "lzma":
            return ["xz", "-c", "--format=lzma", *level]
        case "xz":
            return ["xz", "-c", f"-T{cores}", *level]
        case "zstd":
            return ["zstd", "-c", "-q", f"-T{cores}", *level, *rsyncable]
        case other:
            raise ValueError(f"{other} does not compress streams")


def check_installed(compression: Compression) -> None:
    """Raise InvalidRequest if the compressor is not installed on this host."""
    program = "mksquashfs" if compression.name == "squashfs" else next(iter(compressor(compression)), "")
    if program and "/" not in program and shutil.which(program, path=PATH) is None:
        raise InvalidRequest(
            f"The compressor {compression.name!r} is not installed: install Debian's package "
            f"{package_of(program)!r}, or choose another one"
        )


def squashfs(target: Path, moment: int) -> list[str]:
    """Return the command that makes a squashfs of the tar archive on its stdin.

    `moment` is the time in it, in seconds since 1970.
    """
    return [
        "mksquashfs", "-", str(target), "-tar", "-noappend", "-comp", "xz", "-processors", str(processors()),
        "-root-mode", "0755", "-mkfs-time", str(moment), "-no-progress", "-quiet",
    ]  # fmt: skip

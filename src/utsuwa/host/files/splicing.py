"""Moving data from a socket into a file inside the kernel, past this process."""

from __future__ import annotations

import errno
import os
import select
import time

from utsuwa.host.files.uploads import write_all
from utsuwa.host.processes import pipes

_BURST = 0.25
"""Seconds after which a call returns, so that it can be cancelled."""
_PATIENCE_MS = 50


def from_socket(sock: int, file: int, offset: int, size: int) -> int:
    """Move up to `size` bytes that arrive now from a non-blocking stream socket to an offset of a file.

    Returns their number, 0 if nothing has arrived for a moment. Raises ConnectionResetError if the sender
    has closed, OSError of the file. Blocking, for a fraction of a second.
    """
    reading, writing = pipes.pipe()
    poller = select.poll()
    poller.register(sock, select.POLLIN)
    moved, end = 0, time.monotonic() + _BURST
    try:
        while moved < size and time.monotonic() < end:
            try:
                count = os.splice(
                    sock, writing, min(size - moved, pipes.PIPE_SIZE), flags=os.SPLICE_F_NONBLOCK
                )
            except BlockingIOError:
                if not poller.poll(_PATIENCE_MS):
                    break
                continue
            if not count:
                raise ConnectionResetError("the request body was cut off")
            _drain(reading, file, offset + moved, count)
            moved += count
    finally:
        os.close(reading)
        os.close(writing)
    return moved


def _drain(pipe: int, file: int, offset: int, size: int) -> None:
    while size:
        try:
            count = os.splice(pipe, file, size, offset_dst=offset)
        except OSError as error:
            if error.errno != errno.EINVAL:  # the file system has no splice
                raise
            data = os.read(pipe, size)
            write_all(file, memoryview(data), offset)
            count = len(data)
        offset, size = offset + count, size - count

"""Compresses stdin to stdout in the gzip format, on several processors; runs as a separate program.

    gzip_members.py LEVEL THREADS

The input is cut into pieces, each of which becomes a gzip member of its own: a file of several members is as
valid as one of one, and every reader continues at the next. libdeflate, where it is installed, needs a third
of zlib's time for smaller files; the level means the same for both. How many threads work does not change
the output.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
import zlib
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

PIECE = 1024 * 1024
"""Bytes of input in a member: enough that the start of each costs less than half a percent."""
_GZIP = 16 + zlib.MAX_WBITS
_LIBRARY = "libdeflate.so.0"

Compress = Callable[[bytearray], bytes]


def by_zlib(level: int) -> Compress:
    """Return a function that compresses one piece with the standard library."""

    def compress(piece: bytearray) -> bytes:
        stream = zlib.compressobj(level, zlib.DEFLATED, _GZIP)
        return stream.compress(piece) + stream.flush()

    return compress


def by_libdeflate(level: int) -> Compress | None:
    """Return a function that compresses one piece with libdeflate, which releases the interpreter meanwhile.

    None if it is not installed.
    """
    try:
        library = ctypes.CDLL(_LIBRARY)
    except OSError:
        return None
    allocate, bound, deflate = (
        getattr(library, f"libdeflate_{name}")
        for name in ("alloc_compressor", "gzip_compress_bound", "gzip_compress")
    )
    allocate.argtypes, allocate.restype = [ctypes.c_int], ctypes.c_void_p
    bound.argtypes, bound.restype = [ctypes.c_void_p, ctypes.c_size_t], ctypes.c_size_t
    pointer = ctypes.c_void_p
    deflate.argtypes = [pointer, pointer, ctypes.c_size_t, pointer, ctypes.c_size_t]
    deflate.restype = ctypes.c_size_t
    own = threading.local()

    def compress(piece: bytearray) -> bytes:
        if not hasattr(own, "compressor"):
            own.compressor = allocate(level)
            own.room = ctypes.create_string_buffer(bound(own.compressor, PIECE))
        data = (ctypes.c_char * len(piece)).from_buffer(piece)
        size = deflate(own.compressor, data, len(piece), own.room, len(own.room))
        return bytes(memoryview(own.room)[:size])

    return compress


def compress_stream(
    read: Callable[[], bytearray], write: Callable[[bytes], object], level: int, threads: int
) -> None:
    """Write what `read` returns until it is empty; at least one member, as an empty file is not gzip."""
    compress = by_libdeflate(level) or by_zlib(level)
    pending: deque[Future[bytes]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        piece = read()
        while True:
            pending.append(pool.submit(compress, piece))
            while len(pending) > 2 * threads or (pending and pending[0].done()):
                write(pending.popleft().result())
            piece = read()
            if not piece:
                break
        for rest in pending:
            write(rest.result())


def read_piece(descriptor: int) -> bytearray:
    """Return the next piece of a pipe, shorter only at its end."""
    piece = bytearray(PIECE)
    size = 0
    with memoryview(piece) as room:
        while size < PIECE and (count := os.readv(descriptor, [room[size:]])):
            size += count
    del piece[size:]
    return piece


def write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def main(arguments: list[str]) -> int:
    level, threads = map(int, arguments)
    try:
        compress_stream(lambda: read_piece(0), lambda data: write_all(1, data), level, threads)
    except BrokenPipeError:
        return 1  # who reads has ended, and says why
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

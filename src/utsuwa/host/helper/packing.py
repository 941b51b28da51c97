"""A directory as a tar archive, made in parts: what `Unpacking` of `calls` does, in reverse."""

from __future__ import annotations

import errno
import os
import stat

from utsuwa.core import tar
from utsuwa.host.files.confined import NotRegular

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from utsuwa.host.files.confined import ConfinedTree, Entry

_CHUNK = 256 * 1024


class Packing:
    """The archive of all that is in a directory, without its own name. Symlinks are not followed.

    Only the first name of a hard-linked file has its content. Special files are left out, with a comment;
    what was removed meanwhile is left out without one. If something cannot be read, a comment says so, and
    the end of the archive is missing.
    """

    def __init__(self, tree: ConfinedTree, folder: str) -> None:
        self._tree = tree
        self._folder = folder.rstrip("/")
        self._linked: dict[tuple[int, int], str] = {}
        """By device and inode, the first names of files that have others."""
        self._in_content = False
        self._pieces: Generator[bytes, None, None] = self._all()
        self._piece = memoryview(b"")

    def fill(self, buffer: memoryview) -> tuple[int, bool]:
        """Write the next part; return its size, and whether more follows.

        Raises OSError if the content of a file that has begun cannot be read to its end.
        """
        size = 0
        while size < len(buffer):
            if not self._piece:
                piece = next(self._pieces, None)
                if piece is None:
                    return size, False
                self._piece = memoryview(piece)
            part = self._piece[: len(buffer) - size]
            buffer[size : size + len(part)] = part
            size += len(part)
            self._piece = self._piece[len(part) :]
        return size, True

    def close(self) -> None:
        """Close what is open."""
        self._pieces.close()

    def _all(self) -> Generator[bytes, None, None]:
        waiting: list[tuple[str, Entry | None]] = [("", None)]
        while waiting:
            inner, entry = waiting.pop()
            path = f"{self._folder}/{inner}"
            try:
                found = self._tree.stat(path) if entry is None else entry
                if stat.S_ISDIR(found[0]):
                    below = self._tree.entries(path)
                    yield _header(inner or ".", tar.DIRECTORY, found)
                    waiting += [(f"{inner}/{name}" if inner else name, one) for name, one in reversed(below)]
                elif stat.S_ISLNK(found[0]):
                    yield _header(inner, tar.SYMLINK, found, target=self._tree.target(path))
                else:
                    yield from self._file(path, inner)
            except FileNotFoundError:
                continue
            except NotRegular as error:
                yield tar.comment(f"{tar.SKIPPED}{path}: {error.strerror}")
            except OSError as error:
                if self._in_content:
                    raise
                yield tar.comment(f"{tar.FAILED}{path}: {error.strerror}")
                return
        yield tar.END

    def _file(self, path: str, inner: str) -> Iterator[bytes]:
        fd = self._tree.open(path, os.O_RDONLY)
        try:
            found = os.fstat(fd)
            entry = (found.st_mode, found.st_uid, found.st_gid)
            inode = (found.st_dev, found.st_ino)
            if (first := self._linked.get(inode)) is not None:
                yield _header(inner, tar.LINK, entry, target=first)
                return
            data = os.pread(fd, _CHUNK, 0)
            # Files of the kernel do not tell their size.
            size = found.st_size if len(data) == _CHUNK else len(data)
            yield _header(inner, tar.FILE, entry, size=size)
            self._in_content = True
            yield data[:size]
            for offset in range(len(data), size, _CHUNK):
                data = os.pread(fd, min(_CHUNK, size - offset), offset)
                if len(data) < min(_CHUNK, size - offset):
                    raise OSError(errno.EIO, "has become shorter while it was read", path)
                yield data
            yield tar.padding(size)
            self._in_content = False
            if found.st_nlink > 1:
                self._linked[inode] = inner
        finally:
            os.close(fd)


def _header(
    inner: str, kind: bytes, entry: Entry | tuple[int, int, int], *, size: int = 0, target: str = ""
) -> bytes:
    return tar.header(inner, kind, stat.S_IMODE(entry[0]), (entry[1], entry[2]), size=size, target=target)

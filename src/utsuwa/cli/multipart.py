"""Streaming parser of multipart bodies."""

from __future__ import annotations

from utsuwa.client.errors import BadAnswer

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    Part = tuple[str, Iterator[bytes]]

_HEAD_LIMIT = 64 * 1024


def single(chunks: Iterator[bytes], disposition: str) -> Iterator[Part]:
    """Yield a body that is a single file."""
    yield _filename(disposition), chunks


def split(chunks: Iterator[bytes], boundary: str) -> Iterator[Part]:
    """Yield each part's file name and its data, which must be consumed before the next part.

    Raises BadAnswer if the body is invalid or truncated.
    """
    reader = _Reader(chunks, f"\r\n--{boundary}".encode())
    reader.skip_preamble()
    while not reader.at_end():
        yield _filename(reader.head()), reader.data()


class _Reader:
    def __init__(self, chunks: Iterator[bytes], mark: bytes) -> None:
        self._chunks = chunks
        self._mark = mark
        # The first boundary may be at the very beginning, without the preceding line break.
        self._buffer = bytearray(b"\r\n")

    def skip_preamble(self) -> None:
        for _ in self.data():
            pass

    def at_end(self) -> bool:
        """Return, after a boundary, whether it was the last one."""
        self._need(2)
        return self._buffer[:2] == b"--"

    def head(self) -> str:
        while (end := self._buffer.find(b"\r\n\r\n")) < 0:
            if len(self._buffer) > _HEAD_LIMIT:
                raise BadAnswer("The server sent a part whose head is too long")
            self._more()
        text = self._buffer[:end].decode("utf-8", "replace")
        del self._buffer[: end + 4]
        return text

    def data(self) -> Iterator[bytes]:
        """Yield the data up to the next boundary, which is consumed."""
        while (end := self._buffer.find(self._mark)) < 0:
            sure = len(self._buffer) - len(self._mark)
            if sure > 0:
                yield bytes(self._buffer[:sure])
                del self._buffer[:sure]
            self._more()
        if end:
            yield bytes(self._buffer[:end])
        del self._buffer[: end + len(self._mark)]

    def _need(self, count: int) -> None:
        while len(self._buffer) < count:
            self._more()

    def _more(self) -> None:
        chunk = next(self._chunks, None)
        if chunk is None:
            raise BadAnswer("The server's response ended in the middle of a file")
        self._buffer += chunk


def _filename(head: str) -> str:
    return head.partition("filename=")[2].split("\r\n")[0].split(";")[0].strip().strip('"')

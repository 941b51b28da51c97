"""Reading of multipart forms from the pieces of a body, which are passed on as they come.

aiohttp's own reader copies each byte several times, which took most of the time of an upload.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from email.message import Message

from utsuwa.core.errors import InvalidRequest

_LINE = b"\r\n"
_LONGEST_BOUNDARY = 70
_MAX_HEAD = 16 * 1024
"""Bytes of the headers of a part."""
_MAX_AROUND = 64 * 1024
"""Bytes before the first part."""


class MultipartForm:
    """The parts of a form: `next_part`, then all of its `content`, and so on.

    All methods raise InvalidRequest if it is malformed or ends too early, and whatever `pieces` raises.
    """

    def __init__(self, content_type: str, pieces: AsyncIterator[bytes]) -> None:
        boundary = parameter("Content-Type", content_type, "boundary")
        if not 0 < len(boundary) <= _LONGEST_BOUNDARY or not boundary.isascii():
            raise incomplete()
        self._delimiter = b"\r\n--" + boundary.encode()
        self._pieces = pieces
        self._rest = _LINE  # the first delimiter may be at the very beginning
        self._begun = False

    async def next_part(self) -> dict[str, str] | None:
        """Return the headers of the next part, with names in lower case; None after the last one."""
        if not self._begun:
            self._begun = True
            await self._skip_preamble()
        head = await self._until(_LINE, _MAX_HEAD)
        if head.startswith(b"--"):
            return None
        self._rest = _LINE + self._rest  # a part without headers begins with an empty line
        return _headers(await self._until(_LINE + _LINE, _MAX_HEAD))

    async def content(self) -> AsyncGenerator[bytes, None]:
        """Yield the content of the part."""
        held, self._rest = self._rest, b""
        while (at := held.find(self._delimiter)) < 0:
            sure = len(held) - self._overlap(held)
            if sure:
                yield held[:sure]
            held = held[sure:] + await self._more()
        self._rest = held[at + len(self._delimiter) :]
        if at:
            yield held[:at]

    async def _skip_preamble(self) -> None:
        skipped = 0
        async for piece in self.content():
            skipped += len(piece)
            if skipped > _MAX_AROUND:
                raise incomplete()

    def _overlap(self, held: bytes) -> int:
        """Return how many bytes at the end may be the beginning of a delimiter."""
        at = held.find(b"\r", max(0, len(held) - len(self._delimiter) + 1))
        while at >= 0 and not self._delimiter.startswith(held[at:]):
            at = held.find(b"\r", at + 1)
        return len(held) - at if at >= 0 else 0

    async def _until(self, end: bytes, limit: int) -> bytes:
        """Return what comes before `end`, which is skipped."""
        held = self._rest
        while (at := held.find(end)) < 0:
            if len(held) > limit:
                raise incomplete()
            held += await self._more()
        self._rest = held[at + len(end) :]
        return held[:at]

    async def _more(self) -> bytes:
        try:
            return await anext(self._pieces)
        except StopAsyncIteration:
            raise incomplete() from None


def incomplete() -> InvalidRequest:
    return InvalidRequest("The upload is not a complete multipart form")


def parameter(header: str, value: str, name: str) -> str:
    """Return a parameter of a header's value, parsed leniently by the standard library; '' without it."""
    message = Message()
    message[header] = value
    found = message.get_param(name, "", header)
    return found if isinstance(found, str) else ""


def _headers(head: bytes) -> dict[str, str]:
    found: dict[str, str] = {}
    for line in head.split(_LINE):
        name, colon, value = line.partition(b":")
        if colon:
            text = value.strip().decode(errors="surrogateescape")
            found[name.strip().decode(errors="replace").lower()] = text
        elif line:
            raise incomplete()
    return found

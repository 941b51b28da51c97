"""A tar archive that arrives in parts: what its headers say, and the content that follows each.

The standard library's `tarfile` reads from a file and takes longer to import than the helper takes to start.
Supported are the formats of POSIX and GNU tar, with regular files, directories and symlinks.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol

    class Sink(Protocol):
        """Takes the members of an archive in order."""

        def member(self, member: Member) -> None: ...

        def content(self, data: memoryview) -> None:
            """Take the next bytes of the last member, a file."""

        def end(self) -> None:
            """The last member is complete."""

        def comment(self, text: str) -> None:
            """Take a comment between members; never called without `extended`."""


BLOCK = 512
_MAX_HEADER = 64 * 1024
"""Maximum size of an extended header in bytes."""
FILE, LINK, SYMLINK, DIRECTORY = "0", "1", "2", "5"
_SUPPORTED = (FILE, SYMLINK, DIRECTORY)
_PAX, _PAX_GLOBAL, _LONG_NAME, _LONG_TARGET = "x", "g", "L", "K"
_EXTENDED = (_PAX, _PAX_GLOBAL, _LONG_NAME, _LONG_TARGET)


class BadArchive(ValueError):
    """Not a tar archive, cut off, or with something else than files, directories and symlinks."""


class Member:
    """A header. `path` has no empty parts, `.` or `..`; it is empty for the directory itself."""

    def __init__(
        self, path: str, type: str, mode: int, owner: tuple[int, int], size: int, target: str
    ) -> None:
        self.path = path
        self.type = type
        self.mode = mode
        self.owner = owner
        self.size = size
        self.target = target
        """Of a symlink; of a hard link, the path of another member."""


class TarStream:
    """Parses an archive as it arrives. `feed` and `close` raise BadArchive, and what the sink raises."""

    def __init__(self, sink: Sink, *, extended: bool = False) -> None:
        """With `extended`, hard links are supported, and comments are passed on."""
        self._sink = sink
        self._comments = extended
        self._supported = (*_SUPPORTED, LINK) if extended else _SUPPORTED
        self._block = bytearray()
        self._left = 0
        """Bytes of content that are still to come."""
        self._padding = 0
        self._extended: tuple[str, bytearray] | None = None
        """The extended header whose content is being read, with its type."""
        self._fields: dict[str, str] = {}
        """What extended headers say about the next member."""
        self._zeros = 0
        """Number of blocks of zeros: the archive ends with two."""

    def feed(self, data: memoryview) -> None:
        while data and self._zeros < 2:
            if self._left:
                part = data[: self._left]
                self._left -= len(part)
                self._content(part)
                if not self._left:
                    self._end()
            elif self._padding:
                part = data[: self._padding]
                self._padding -= len(part)
            else:
                part = data[: BLOCK - len(self._block)]
                self._block += part
                if len(self._block) == BLOCK:
                    block, self._block = bytes(self._block), bytearray()
                    self._header(block)
            data = data[len(part) :]

    @property
    def ended(self) -> bool:
        """Whether the archive has its end."""
        return self._zeros >= 2

    def close(self) -> None:
        """Check that the archive was complete."""
        if self._zeros < 2 and (self._left or self._padding or self._block or self._fields):
            raise BadArchive("the archive is cut off")

    def _header(self, block: bytes) -> None:
        if not any(block):
            self._zeros += 1
            return
        self._zeros = 0
        if _number(block[148:156]) != sum(block) - sum(block[148:156]) + 8 * 0x20:
            raise BadArchive("not a tar archive, or damaged")
        kind = chr(block[156]) if block[156] else FILE
        if kind == "7":  # a contiguous file
            kind = FILE
        size = _number(block[124:136])
        if kind in _EXTENDED:
            if size > _MAX_HEADER:
                raise BadArchive(f"an extended header of more than {_MAX_HEADER} bytes")
            self._extended = (kind, bytearray())
        else:
            size = self._begin(block, kind, size)
        self._left, self._padding = size, -size % BLOCK
        if not size:
            self._end()

    def _begin(self, block: bytes, kind: str, size: int) -> int:
        """Pass a member to the sink; return the size of its content."""
        fields, self._fields = self._fields, {}
        path = fields.get("path", "") or _name(block)
        if kind not in self._supported or any(name.startswith("GNU.sparse.") for name in fields):
            raise BadArchive(f"{_shown(path)}: only files, directories and symlinks are supported")
        size = _decimal(fields.get("size", ""), size) if kind == FILE else 0
        owner = (
            _decimal(fields.get("uid", ""), _number(block[108:116])),
            _decimal(fields.get("gid", ""), _number(block[116:124])),
        )
        target = fields.get("linkpath", "") or _text(block[157:257])
        mode = _number(block[100:108]) & 0o7777
        self._sink.member(Member(checked_path(path), kind, mode, owner, size, target))
        return size

    def _content(self, part: memoryview) -> None:
        if self._extended is not None:
            self._extended[1].extend(part)
        else:
            self._sink.content(part)

    def _end(self) -> None:
        if self._extended is None:
            self._sink.end()
            return
        kind, data = self._extended
        self._extended = None
        if kind == _PAX:
            self._fields |= _records(bytes(data))
        elif kind == _PAX_GLOBAL:
            if self._comments and (text := _records(bytes(data)).get("comment")):
                self._sink.comment(text)
        else:
            self._fields["path" if kind == _LONG_NAME else "linkpath"] = _text(bytes(data))


def _number(field: bytes) -> int:
    """Return a number in octal digits, or in GNU's form for large ones."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    text = field.split(b"\0", 1)[0].strip()
    try:
        value = int(text or b"0", 8)
    except ValueError:
        value = -1
    if value < 0:
        raise BadArchive("not a tar archive, or damaged")
    return value


def _decimal(text: str, default: int) -> int:
    if not text:
        return default
    if not text.isdecimal() or len(text) > 20:
        raise BadArchive("an extended header has an invalid number")
    return int(text)


def _text(field: bytes) -> str:
    return field.split(b"\0", 1)[0].decode(errors="surrogateescape")


def _name(block: bytes) -> str:
    name = _text(block[:100])
    prefix = _text(block[345:500]) if block[257:263] == b"ustar\0" else ""
    return f"{prefix}/{name}" if prefix else name


def _records(data: bytes) -> dict[str, str]:
    """Parse the records `LENGTH KEY=VALUE` of an extended header."""
    found = {}
    while data:
        length, _, _ = data.partition(b" ")
        end = int(length) if length.isdigit() and len(length) < 8 else 0
        record = data[len(length) + 1 : end - 1]
        key, equals, value = record.partition(b"=")
        if not equals or end > len(data) or data[end - 1 : end] != b"\n":
            raise BadArchive("an extended header is damaged")
        found[key.decode(errors="surrogateescape")] = value.decode(errors="surrogateescape")
        data = data[end:]
    return found


def checked_path(path: str) -> str:
    """Return a path without empty parts and `.`. Raises BadArchive for one that leads upwards."""
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if ".." in parts or "\0" in path:
        raise BadArchive(f"{_shown(path)}: a path in an archive cannot contain '..'")
    return "/".join(parts)


def _shown(path: str) -> str:
    return path.encode(errors="surrogateescape").decode(errors="replace")

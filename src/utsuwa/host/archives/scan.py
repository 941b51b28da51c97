"""Checks archives while they are listed or unpacked; runs inside the sandbox, in `jail`.

It sits between a decompressor and `tar` (or after a listing of `unsquashfs`), reads each byte once, passes it
on, and returns a status and writes a message to stderr if the archive breaks a rule. The caller then discards
what was unpacked so far. It loads no more of the standard library than needed, as loading `tarfile` takes
longer than checking a listing. What `main` takes:

    check TREE ENTRIES SIZE        a tar, its metadata.yaml is passed on
    tar TREE ENTRIES SIZE          a tar, the same bytes are passed on
    squashfs TREE ENTRIES SIZE     a listing (`unsquashfs -lln`), nothing is passed on

TREE is `unified` for an archive with metadata.yaml, templates/ and rootfs/, `metadata` if rootfs/ is
optional, `rootfs` if the archive is the root file system itself. ENTRIES and SIZE (unpacked bytes) are
upper limits.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    import tarfile
    from collections.abc import Iterable, Sequence
    from typing import Any, BinaryIO, Self

REFUSED = 3
"""Status for an archive that breaks a rule."""
TOO_LARGE = 4
"""Status for an archive whose content exceeds SIZE."""

VERDICT = "verdict: "
"""Prefix of the error line on stderr, to which decompressor and tar write as well."""

METADATA = "metadata.yaml"
MAX_METADATA = 1024 * 1024
MAX_TEMPLATES = 1000

_BUFFER = 1024 * 1024
_TYPES = {b"1": "h", b"2": "l", b"3": "c", b"4": "b", b"5": "d", b"6": "p"}
"""In a tar header: the types of entries that are not files."""
_NO_TAR = "it is damaged or not a tar archive"
_KINDS, _MODE, _ROOT = b"-dlbcps", b"-rwxsStT", b" squashfs-root"
"""In a listing: the types of entries, the characters of a mode, and what precedes a path."""


class Refused(Exception):
    """The archive breaks a rule; the message says which."""


class TooMuch(Exception):
    """The archive's content is larger than allowed."""


def clean_path(name: str) -> str:
    """Return a member's name as a path relative to the archive's root, without `.` and redundant slashes.

    A leading slash is dropped, as tar does when unpacking. Raises Refused if the name contains `..`, is
    empty or too long.
    """
    if name[:1] == "/" and "/." not in name and "//" not in name and name[-1] != "/" and len(name) <= 4096:
        return name[1:]  # as nearly all are
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise Refused(f"the name {_shown(name)} leads out of the archive ('..')")
    if len(name) > 4096:
        raise Refused(f"the name {_shown(name)} is longer than 4096 characters")
    return "/".join(parts)


class Rules:
    """The rules for an archive's content, checked entry by entry in the archive's order."""

    def __init__(self, tree: str, entries: int) -> None:
        self._tree = tree
        self._image = tree != "rootfs"
        self._left = entries
        self._limit = entries
        self._symlinks: set[str] = set()
        self._folders: set[str] = set()
        self._seen_metadata = self._seen_rootfs = False
        self._templates = 0

    def check(self, kind: str, path: str, target: str = "") -> None:
        """Check one entry. `kind`: f(ile), d(irectory), l (symlink), h(ard link), b, c, p(ipe), s(ocket);
        `path` and a hard link's `target` are clean paths. Raises Refused."""
        self._left -= 1
        if self._left < 0:
            raise Refused(f"it contains more than {self._limit} files")
        if not path:
            if kind != "d":
                raise Refused("its root is not a directory")
            return
        self._check_parents(path)
        if kind == "h":
            self._check_hard_link(path, target)
            if target in self._symlinks:
                kind = "l"  # the same inode under another name
        if path in self._symlinks and kind != "l":
            raise Refused(f"duplicate entry {_shown(path)}, one of them a symbolic link")
        if kind == "l":
            if path in self._folders:
                raise Refused(f"duplicate entry {_shown(path)}, a directory and a symbolic link")
            self._symlinks.add(path)
        if self._image:
            self._check_layout(kind, path)

    def check_end(self) -> None:
        """Check after the last entry that the required entries were present. Raises Refused."""
        if self._image and not self._seen_metadata:
            raise Refused(f"it contains no {METADATA}")
        if self._tree == "unified" and not self._seen_rootfs:
            raise Refused("it contains no rootfs (the root file system of a split image is a second file)")

    def _check_parents(self, path: str) -> None:
        at = path.rpartition("/")[0]
        passed = []
        while at and at not in self._folders:
            if at in self._symlinks:
                raise Refused(f"{_shown(path)} is below the symbolic link {_shown(at)}")
            passed.append(at)
            at = at.rpartition("/")[0]
        self._folders.update(passed)

    def _check_hard_link(self, path: str, target: str) -> None:
        self._check_parents(target)
        if self._image and (not path.startswith("rootfs/") or not target.startswith("rootfs/")):
            raise Refused(f"the hard link {_shown(path)} points outside the root file system")

    def _check_layout(self, kind: str, path: str) -> None:
        top, inner, _ = path.partition("/")
        if top == METADATA:
            if inner or kind != "f":
                raise Refused(f"{METADATA} is not a regular file")
            if self._seen_metadata:
                raise Refused(f"duplicate entry {METADATA}")
            self._seen_metadata = True
        elif kind in "bc" and top != "rootfs":
            raise Refused(f"{_shown(path)} is a device node outside rootfs/")
        elif top == "rootfs":
            if not inner and kind != "d":
                raise Refused("rootfs is not a directory")
            self._seen_rootfs = True
        elif top == "templates":
            self._templates += 1
            if self._templates > MAX_TEMPLATES:
                raise Refused(f"it contains more than {MAX_TEMPLATES} templates")
            if kind != "d" and (not inner or kind != "f"):
                raise Refused(f"{_shown(path)} is not a regular file")


class CountedStream:
    """A stream for `tarfile` to read from: counts the bytes and copies them to `out`."""

    def __init__(self, source: BinaryIO, out: BinaryIO | None, limit: int) -> None:
        self._source = source
        self._out = out
        self._limit = self._left = limit

    def expect(self, end: int) -> None:
        """Raise TooMuch if an entry claims to end at a byte beyond the limit.

        `tarfile` would seek there in steps of its buffer size, even if the stream ends long before.
        """
        if end > self._limit:
            raise TooMuch

    def read(self, size: int) -> bytes:
        data = self._source.read(size)
        self._left -= len(data)
        if self._left < 0:
            raise TooMuch
        if self._out is not None:
            self._out.write(data)
        return data

    def drain(self) -> None:
        """Read the rest, so that the decompressor verifies its checksums; it is not passed on."""
        self._out = None
        while self.read(_BUFFER):
            pass


def scan_tar(stream: CountedStream, rules: Rules, *, keep_metadata: bool = False) -> bytes:
    """Check every entry of a tar stream; return the content of metadata.yaml if `keep_metadata`.

    Raises Refused, TooMuch.
    """
    import tarfile

    kept = b""
    try:
        with _open(stream) as archive:
            for member in archive:
                archive.members.clear()
                stream.expect(archive.offset)
                path = clean_path(member.name)
                target = clean_path(member.linkname) if member.islnk() else ""
                rules.check(_kind(member), path, target)
                if keep_metadata and path == METADATA:
                    kept = _content(archive, member)
    except (tarfile.TarError, EOFError) as error:
        raise Refused(f"{_NO_TAR} ({error})") from error
    rules.check_end()
    stream.drain()
    return kept


def _content(archive: Any, member: tarfile.TarInfo) -> bytes:
    if member.size > MAX_METADATA:
        raise Refused(f"its {METADATA} is larger than {MAX_METADATA} bytes")
    return bytes(archive.extractfile(member).read())


def scan_listing(lines: Iterable[bytes], rules: Rules, limit: int) -> None:
    """Check the listing of a squashfs.

    A name with a line break produces extra lines: those that look like an entry are checked as one, others
    are skipped. So no entry can be hidden, and a forged line can only cause a rejection.
    """
    modes: set[bytes] = set()
    for line in lines:
        described, root, name = line.rstrip(b"\n").partition(_ROOT)
        fields = described.split(None, 3)
        if not root or len(fields) < 3:
            continue
        mode = fields[0]
        if mode not in modes:
            if len(mode) != 10 or mode[0] not in _KINDS or mode[1:].strip(_MODE):
                continue
            modes.add(mode)
        kind = chr(mode[0])
        path = name.decode(errors="surrogateescape")
        if kind == "l":
            path = path.partition(" -> ")[0]
        if fields[2].isdigit():  # a device has two numbers there
            limit -= int(fields[2])
            if limit < 0:
                raise TooMuch
        rules.check("f" if kind == "-" else kind, clean_path(path))
    rules.check_end()


def _open(stream: CountedStream) -> Any:
    # Any, because `tarfile` accepts anything with `read`, and the type stubs lack `members`.
    import tarfile

    class Header(tarfile.TarInfo):
        """It must be valid: `tarfile` treats an invalid one as the end, but tar continues after it."""

        @classmethod
        def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
            try:
                return super().frombuf(buf, encoding, errors)
            except (tarfile.EOFHeaderError, tarfile.EmptyHeaderError):  # type: ignore[attr-defined]
                raise
            except tarfile.HeaderError as error:
                raise Refused(f"{_NO_TAR} ({error})") from error

        @classmethod
        def fromtarfile(cls, archive: tarfile.TarFile) -> Self:
            """Includes extended headers, whose numbers `tarfile` does not validate."""
            try:
                return super().fromtarfile(archive)
            except (ValueError, LookupError, OverflowError) as error:
                raise Refused(f"its headers are damaged ({type(error).__name__})") from error

    untyped: Any = stream
    return tarfile.open(
        fileobj=untyped,
        mode="r|",
        bufsize=_BUFFER,
        tarinfo=Header,
        encoding="utf-8",
        errors="surrogateescape",
    )


def _kind(member: tarfile.TarInfo) -> str:
    if member.isreg():
        return "f"
    try:
        return _TYPES[member.type]
    except KeyError:
        raise Refused(f"{_shown(member.name)} is of an unknown type {member.type!r}") from None


def _shown(name: str) -> str:
    text = name if len(name) <= 100 else name[:100] + "…"
    return repr(text.encode(errors="surrogateescape").decode(errors="replace"))


def _run(arguments: Sequence[str], source: BinaryIO, out: BinaryIO) -> None:
    verb, tree, entries, size = arguments[0], arguments[1], int(arguments[2]), int(arguments[3])
    rules = Rules(tree, entries)
    if verb == "check":
        out.write(scan_tar(CountedStream(source, None, size), rules, keep_metadata=tree != "rootfs"))
    elif verb == "tar":
        scan_tar(CountedStream(source, out, size), rules)
    else:
        scan_listing(source, rules, size)
    out.flush()


def _say(problem: str) -> None:
    sys.stderr.write(f"{VERDICT}{problem}\n")
    sys.stderr.flush()


def main(arguments: Sequence[str], source: BinaryIO, out: BinaryIO) -> int:
    """Check what can be read from `source`; return 0, `REFUSED` or `TOO_LARGE`."""
    try:
        _run(arguments, source, out)
    except BrokenPipeError:
        return 0  # tar has ended and reports why itself
    except TooMuch:
        return TOO_LARGE
    except Refused as error:
        _say(str(error))
        return REFUSED
    except MemoryError:
        _say("its headers are too large")
        return REFUSED
    return 0

"""Judges archives while they are unpacked; runs as a program of its own inside the sandbox.

It stands between a decompressor and `tar` (or behind a listing of `unsquashfs`), reads each byte
once, passes it on, and ends with exit status 3 and one sentence on stderr where the archive breaks a
rule. What was unpacked up to there is thrown away by the caller. Only the standard library is used:
the sandbox holds no more.

    archive_scan.py check TREE ENTRIES SIZE        tar on stdin, its metadata.yaml on stdout
    archive_scan.py tar TREE ENTRIES SIZE          tar on stdin, the same bytes on stdout
    archive_scan.py squashfs TREE ENTRIES SIZE     listing (`unsquashfs -lln`) on stdin, no output

TREE is `unified` for an archive with metadata.yaml, templates/ and rootfs/, `metadata` for one that may
lack rootfs/, `rootfs` for one that is the root file system itself. ENTRIES and SIZE (bytes, unpacked)
are limits.
"""

from __future__ import annotations

import os
import re
import sys
import tarfile
from collections.abc import Iterable
from typing import Any, BinaryIO, Self

REFUSED = 3
"""Exit status for an archive that breaks a rule."""
TOO_LARGE = 4
"""Exit status for an archive whose content exceeds SIZE."""

VERDICT = "verdict: "
"""What a refusal's line on stderr begins with: decompressor and tar write there as well."""

METADATA = "metadata.yaml"
MAX_METADATA = 1024 * 1024
MAX_TEMPLATES = 1000

_BUFFER = 1024 * 1024
_LISTED = re.compile(
    rb"(?P<kind>[-dlbcps])[-rwxsStT]{9} +\d+/\d+ +(?:(?P<size>\d+)|\d+, *\d+) +\S+ +\S+ squashfs-root"
    rb"(?P<path>.*)",
    re.DOTALL,
)


class Refused(Exception):
    """The archive breaks a rule; the text says which."""


class TooMuch(Exception):
    """The archive's content is larger than allowed."""


def clean_path(name: str) -> str:
    """A member's name as a path relative to the archive's root: no `.`, no double or outer slashes.

    A leading slash is dropped, as tar does on unpacking. Raises Refused for `..` and for an empty or
    over-long name.
    """
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise Refused(f"the name {_shown(name)} leads out of the archive ('..')")
    if len(name) > 4096:
        raise Refused(f"the name {_shown(name)} is longer than 4096 characters")
    return "/".join(parts)


class Rules:
    """What may stand in an archive, judged entry by entry in the archive's order."""

    def __init__(self, tree: str, entries: int) -> None:
        self._tree = tree
        self._image = tree != "rootfs"
        self._left = entries
        self._limit = entries
        self._symlinks: set[str] = set()
        self._folders: set[str] = set()
        self._seen_metadata = self._seen_rootfs = False
        self._templates = 0

    def judge(self, kind: str, path: str, target: str = "") -> None:
        """One entry. `kind`: f(ile), d(irectory), l (symlink), h(ard link), b, c, p(ipe), s(ocket);
        `path` and a hard link's `target` are clean paths. Raises Refused."""
        self._left -= 1
        if self._left < 0:
            raise Refused(f"it holds more than {self._limit} files")
        if not path:
            if kind != "d":
                raise Refused("its root is not a folder")
            return
        self._judge_parents(path)
        if kind == "h":
            self._judge_hard_link(path, target)
            if target in self._symlinks:
                kind = "l"  # the same inode under another name
        if path in self._symlinks and kind != "l":
            raise Refused(f"{_shown(path)} is there twice, once as a symbolic link")
        if kind == "l":
            if path in self._folders:
                raise Refused(f"{_shown(path)} is there twice, as a folder and as a symbolic link")
            self._symlinks.add(path)
        if self._image:
            self._judge_layout(kind, path)

    def judge_end(self) -> None:
        """No more entries come: what must be there has been seen, or Refused is raised."""
        if self._image and not self._seen_metadata:
            raise Refused(f"there is no {METADATA} in it")
        if self._tree == "unified" and not self._seen_rootfs:
            raise Refused("there is no rootfs in it (the root file system of a split image is a second file)")

    def _judge_parents(self, path: str) -> None:
        at = path.rpartition("/")[0]
        passed = []
        while at and at not in self._folders:
            if at in self._symlinks:
                raise Refused(f"{_shown(path)} lies behind the symbolic link {_shown(at)}")
            passed.append(at)
            at = at.rpartition("/")[0]
        self._folders.update(passed)

    def _judge_hard_link(self, path: str, target: str) -> None:
        self._judge_parents(target)
        if self._image and (not path.startswith("rootfs/") or not target.startswith("rootfs/")):
            raise Refused(f"the hard link {_shown(path)} leads out of the root file system")

    def _judge_layout(self, kind: str, path: str) -> None:
        top, inner, _ = path.partition("/")
        if top == METADATA:
            if inner or kind != "f":
                raise Refused(f"{METADATA} is not a regular file")
            if self._seen_metadata:
                raise Refused(f"{METADATA} is there twice")
            self._seen_metadata = True
        elif kind in "bc" and top != "rootfs":
            raise Refused(f"{_shown(path)} is a device node outside of rootfs/")
        elif top == "rootfs":
            if not inner and kind != "d":
                raise Refused("rootfs is not a folder")
            self._seen_rootfs = True
        elif top == "templates":
            self._templates += 1
            if self._templates > MAX_TEMPLATES:
                raise Refused(f"it holds more than {MAX_TEMPLATES} templates")
            if kind != "d" and (not inner or kind != "f"):
                raise Refused(f"{_shown(path)} is not a regular file")


class Passage:
    """A stream that `tarfile` reads from: counts what passes, and hands it on to `out`."""

    def __init__(self, source: BinaryIO, out: BinaryIO | None, limit: int) -> None:
        self._source = source
        self._out = out
        self._limit = self._left = limit

    def expect(self, end: int) -> None:
        """TooMuch for an entry that says to end at byte `end` beyond the limit.

        `tarfile` would go there in steps of a buffer, even where the stream has long ended.
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
        """Read the rest, so that the decompressor checks its sums; none of it is passed on."""
        self._out = None
        while self.read(_BUFFER):
            pass


def scan_tar(passage: Passage, rules: Rules, *, keep_metadata: bool = False) -> bytes:
    """Judge every entry of a tar stream; gives the content of metadata.yaml where it is wanted.

    Raises Refused, TooMuch, tarfile.TarError.
    """
    kept = b""
    with _open(passage) as archive:
        for member in archive:
            archive.members.clear()
            passage.expect(archive.offset)
            path = clean_path(member.name)
            target = clean_path(member.linkname) if member.islnk() else ""
            rules.judge(_kind(member), path, target)
            if keep_metadata and path == METADATA:
                kept = _content(archive, member)
    rules.judge_end()
    passage.drain()
    return kept


def _content(archive: Any, member: tarfile.TarInfo) -> bytes:
    if member.size > MAX_METADATA:
        raise Refused(f"its {METADATA} is larger than {MAX_METADATA} bytes")
    return bytes(archive.extractfile(member).read())


def scan_listing(lines: Iterable[bytes], rules: Rules, limit: int) -> None:
    """Judge the listing of a squashfs.

    A name with a line break gives lines that are none of an entry's: those that look like one are
    counted, the others passed over. So nothing can hide, and a forged line can only be refused.
    """
    for line in lines:
        match = _LISTED.match(line.rstrip(b"\n"))
        if match is None:
            continue
        kind = match["kind"].decode()
        path = match["path"].decode(errors="surrogateescape")
        if kind == "l":
            path = path.partition(" -> ")[0]
        limit -= int(match["size"] or 0)
        if limit < 0:
            raise TooMuch
        rules.judge("f" if kind == "-" else kind, clean_path(path))
    rules.judge_end()


class _Header(tarfile.TarInfo):
    """A header that must be whole: `tarfile` takes a bad one for the end, and tar reads on behind it."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        try:
            return super().frombuf(buf, encoding, errors)
        except (tarfile.EOFHeaderError, tarfile.EmptyHeaderError):  # type: ignore[attr-defined]
            raise
        except tarfile.HeaderError as error:
            raise Refused(f"it is damaged or not a tar archive ({error})") from error

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> Self:
        """With its extended headers, in which `tarfile` expects that numbers are numbers."""
        try:
            return super().fromtarfile(archive)
        except (ValueError, LookupError, OverflowError) as error:
            raise Refused(f"its headers are damaged ({type(error).__name__})") from error


def _open(passage: Passage) -> Any:
    # Any, for `tarfile` takes everything that has `read`, and type stubs do not know `members`.
    stream: Any = passage
    return tarfile.open(
        fileobj=stream,
        mode="r|",
        bufsize=_BUFFER,
        tarinfo=_Header,
        encoding="utf-8",
        errors="surrogateescape",
    )


def _kind(member: tarfile.TarInfo) -> str:
    kinds = {
        tarfile.DIRTYPE: "d",
        tarfile.SYMTYPE: "l",
        tarfile.LNKTYPE: "h",
        tarfile.BLKTYPE: "b",
        tarfile.CHRTYPE: "c",
        tarfile.FIFOTYPE: "p",
    }
    if member.isreg():
        return "f"
    try:
        return kinds[member.type]
    except KeyError:
        raise Refused(f"{_shown(member.name)} is of an unknown type {member.type!r}") from None


def _shown(name: str) -> str:
    text = name if len(name) <= 100 else name[:100] + "…"
    return repr(text.encode(errors="surrogateescape").decode(errors="replace"))


def _run(arguments: list[str]) -> None:
    verb, tree, entries, size = arguments[0], arguments[1], int(arguments[2]), int(arguments[3])
    source, out, rules = sys.stdin.buffer, sys.stdout.buffer, Rules(tree, entries)
    if verb == "check":
        out.write(scan_tar(Passage(source, None, size), rules, keep_metadata=tree != "rootfs"))
    elif verb == "tar":
        scan_tar(Passage(source, out, size), rules)
    else:
        scan_listing(source, rules, size)
    out.flush()


def _say(problem: str) -> None:
    sys.stderr.write(f"{VERDICT}{problem}\n")


def main(arguments: list[str]) -> int:
    try:
        _run(arguments)
    except BrokenPipeError:
        return 0  # tar has ended and says why itself
    except TooMuch:
        return TOO_LARGE
    except Refused as error:
        _say(str(error))
        return REFUSED
    except (tarfile.TarError, EOFError) as error:
        _say(f"it is damaged or not a tar archive ({error})")
        return REFUSED
    except MemoryError:
        _say("its headers are too large")
        return REFUSED
    return 0


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stderr.flush()
    os._exit(code)

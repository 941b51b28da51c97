"""Tar archives: what the client writes, and what the helper reads in parts, compared with `tarfile`."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from utsuwa.core import tar
from utsuwa.core.tarstream import DIRECTORY, FILE, LINK, SYMLINK, BadArchive, Member, TarStream

KINDS = {tarfile.REGTYPE: FILE, tarfile.DIRTYPE: DIRECTORY, tarfile.SYMTYPE: SYMLINK}

NAMES = st.text(
    st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=60
).filter(lambda name: name not in (".", ".."))
PATHS = st.lists(NAMES, min_size=1, max_size=5).map("/".join)
IDS = st.one_of(st.integers(0, 70_000), st.integers(0, 2**32 - 2))
ENTRY = st.tuples(
    PATHS, st.sampled_from(sorted(KINDS)), IDS, IDS, st.integers(0, 0o7777), st.binary(max_size=1500)
)
Entry = tuple[str, bytes, int, int, int, bytes]


class Collected:
    """A sink that keeps what it gets."""

    def __init__(self) -> None:
        self.members: list[tuple[Member, bytes]] = []
        self.ended = 0
        self.comments: list[str] = []

    def member(self, member: Member) -> None:
        self.members.append((member, b""))

    def content(self, data: memoryview) -> None:
        member, content = self.members[-1]
        self.members[-1] = (member, content + bytes(data))

    def end(self) -> None:
        self.ended += 1

    def comment(self, text: str) -> None:
        self.comments.append(text)


def read(archive: bytes, step: int = 10**9) -> Collected:
    sink = Collected()
    stream = TarStream(sink)
    for start in range(0, len(archive), step):
        stream.feed(memoryview(archive)[start : start + step])
    stream.close()
    return sink


def by_tarfile(entries: Sequence[Entry], form: int) -> bytes:
    written = io.BytesIO()
    with tarfile.open(fileobj=written, mode="w", format=form) as archive:
        for path, kind, uid, gid, mode, content in entries:
            info = tarfile.TarInfo(path)
            info.type, info.uid, info.gid, info.mode = kind, uid, gid, mode
            info.linkname = content.hex()[:300] or "x" if kind == tarfile.SYMTYPE else ""
            info.size = len(content) if kind == tarfile.REGTYPE else 0
            archive.addfile(info, io.BytesIO(content))
    return written.getvalue()


@settings(max_examples=60, deadline=None)
@given(
    st.lists(ENTRY, max_size=5),
    st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]),
    st.sampled_from([1, 100, 512, 1000, 10**9]),
)
def test_archives_of_tarfile_are_read(entries: list[Entry], form: int, step: int) -> None:
    sink = read(by_tarfile(entries, form), step)
    assert sink.ended == len(sink.members) == len(entries)
    for (path, kind, uid, gid, mode, content), (member, seen) in zip(entries, sink.members, strict=True):
        assert (member.path, member.type, member.owner, member.mode) == (path, KINDS[kind], (uid, gid), mode)
        assert seen == (content if kind == tarfile.REGTYPE else b"")
        assert member.target == (content.hex()[:300] or "x" if kind == tarfile.SYMTYPE else "")


@settings(max_examples=60, deadline=None)
@given(st.lists(ENTRY, max_size=5))
def test_archives_of_the_client_are_read_by_both(entries: list[Entry]) -> None:
    written = b""
    kinds = {tarfile.REGTYPE: tar.FILE, tarfile.DIRTYPE: tar.DIRECTORY, tarfile.SYMTYPE: tar.SYMLINK}
    for path, kind, uid, gid, mode, content in entries:
        data = content if kind == tarfile.REGTYPE else b""
        target = path[::-1] if kind == tarfile.SYMTYPE else ""
        written += tar.header(path, kinds[kind], mode, (uid, gid), size=len(data), target=target)
        written += data + tar.padding(len(data))
    written += tar.END
    sink = read(written)
    with tarfile.open(fileobj=io.BytesIO(written)) as archive:
        members = archive.getmembers()
        for entry, info, (member, seen) in zip(entries, members, sink.members, strict=True):
            path, kind, uid, gid, mode, content = entry
            assert (info.name, info.type, info.uid, info.gid, info.mode) == (path, kind, uid, gid, mode)
            assert (member.path, member.owner, member.mode) == (path, (uid, gid), mode)
            assert member.target == info.linkname == (path[::-1] if kind == tarfile.SYMTYPE else "")
            if kind == tarfile.REGTYPE:
                found = archive.extractfile(info)
                assert found is not None
                assert seen == found.read() == content


def test_sizes_that_octal_digits_cannot_hold() -> None:
    head = tar.header("big", tar.FILE, 0o644, (0, 0), size=2**35)
    sink = Collected()
    TarStream(sink).feed(memoryview(head))
    assert sink.members[0][0].size == 2**35
    info = tarfile.TarInfo("big")
    info.size = 2**40
    sink = Collected()
    TarStream(sink).feed(memoryview(info.tobuf(tarfile.GNU_FORMAT)))
    assert sink.members[0][0].size == 2**40


def test_names_that_are_not_utf_8() -> None:
    path = os.fsdecode(b"\xff\xfe")
    assert read(tar.header(path, tar.DIRECTORY, 0o755, (0, 0)) + tar.END).members[0][0].path == path


@pytest.mark.parametrize("path", ["..", "a/../b", "../a", "/../a"])
def test_paths_that_lead_up_are_refused(path: str) -> None:
    with pytest.raises(BadArchive, match="cannot contain"):
        read(by_tarfile([(path, tarfile.DIRTYPE, 0, 0, 0o755, b"")], tarfile.PAX_FORMAT))


@pytest.mark.parametrize(("path", "seen"), [("./a//b/", "a/b"), ("/etc", "etc"), (".", ""), ("./", "")])
def test_paths_are_normalized(path: str, seen: str) -> None:
    archive = by_tarfile([(path, tarfile.DIRTYPE, 0, 0, 0o755, b"")], tarfile.USTAR_FORMAT)
    assert read(archive).members[0][0].path == seen


@pytest.mark.parametrize("kind", [tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.LNKTYPE, b"S"])
def test_other_types_are_refused(kind: bytes) -> None:
    info = tarfile.TarInfo("special")
    info.type = kind
    with pytest.raises(BadArchive, match="special: only files"):
        read(info.tobuf(tarfile.USTAR_FORMAT))


def extended(records: bytes) -> bytes:
    info = tarfile.TarInfo("x")
    info.type, info.size = tarfile.XHDTYPE, len(records)
    return info.tobuf(tarfile.USTAR_FORMAT) + records + tar.padding(len(records))


@pytest.mark.parametrize(
    "records",
    [b"5 a=b", b"5 ab=\n", b"x a=b\n", b"99 path=a\n", b"7 path\n", b"-1 a=b\n", b"0 a=b\n", b"10 uid=-1\n"],
)
def test_damaged_records_are_refused(records: bytes) -> None:
    with pytest.raises(BadArchive):
        read(extended(records) + tar.header("a", tar.DIRECTORY, 0o755, (0, 0)))


def test_extended_headers_are_limited() -> None:
    info = tarfile.TarInfo("x")
    info.type, info.size = tarfile.XHDTYPE, 2**30
    with pytest.raises(BadArchive, match="extended header of more than"):
        read(info.tobuf(tarfile.PAX_FORMAT))


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 511), st.integers(1, 255))
def test_a_damaged_header_is_refused(position: int, change: int) -> None:
    head = bytearray(tar.header("name", tar.DIRECTORY, 0o755, (0, 0)))
    head[position] ^= change
    sink = Collected()
    stream = TarStream(sink)
    try:
        stream.feed(memoryview(bytes(head)))
    except BadArchive:
        return
    # Only the sum itself can be written in another way: with or without the blank at its end.
    assert 148 <= position < 156


@pytest.mark.parametrize("cut", [1, 511, 513, 1000, 1537])
def test_a_cut_archive_is_noticed(cut: int) -> None:
    whole = tar.header("name", tar.FILE, 0o644, (0, 0), size=700) + bytes(700) + tar.padding(700)
    whole += tar.header("name", tar.DIRECTORY, 0o755, (0, 0))
    with pytest.raises(BadArchive, match="cut off"):
        read(whole[:cut])


def test_what_follows_the_end_is_ignored() -> None:
    whole = tar.header("name", tar.DIRECTORY, 0o755, (0, 0)) + tar.END
    assert len(read(whole + b"anything").members) == 1


def test_hard_links_and_comments() -> None:
    """Only a reader that asks for them gets these; other programs ignore comments."""
    written = tar.header("one", tar.FILE, 0o644, (0, 0)) + tar.comment("skipped é\n\udcff")
    written += tar.header("two", tar.LINK, 0o644, (0, 0), target="one") + tar.END
    sink = Collected()
    stream = TarStream(sink, extended=True)
    stream.feed(memoryview(written)[:-1])
    before = stream.ended
    stream.feed(memoryview(written)[-1:])
    assert (before, stream.ended) == (False, True)
    assert [(member.path, member.type, member.target) for member, _ in sink.members] == [
        ("one", FILE, ""),
        ("two", LINK, "one"),
    ]
    assert sink.comments == ["skipped é\n\udcff"]
    with tarfile.open(fileobj=io.BytesIO(written)) as archive:
        assert archive.getnames() == ["one", "two"]
    with pytest.raises(BadArchive, match="two: only files"):
        read(written)

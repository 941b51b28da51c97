"""The scanner that checks archives while they are unpacked."""

from __future__ import annotations

import contextlib
import io
import tarfile
from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from utsuwa.host.archives.scan import (
    CountedStream,
    Refused,
    Rules,
    TooMuch,
    clean_path,
    scan_listing,
    scan_tar,
)

KINDS = {
    "f": tarfile.REGTYPE,
    "d": tarfile.DIRTYPE,
    "l": tarfile.SYMTYPE,
    "h": tarfile.LNKTYPE,
    "b": tarfile.BLKTYPE,
    "c": tarfile.CHRTYPE,
    "p": tarfile.FIFOTYPE,
}


def tar(*entries: tuple[str, str] | tuple[str, str, str | bytes]) -> bytes:
    """A tar of (kind, name[, link target or content])."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for kind, name, *rest in entries:
            member = tarfile.TarInfo(name)
            member.type = KINDS[kind]
            content = rest[0] if rest and isinstance(rest[0], bytes) else b""
            member.size = len(content)
            member.linkname = rest[0] if rest and isinstance(rest[0], str) else ""
            archive.addfile(member, io.BytesIO(content))
    return out.getvalue()


def scan(data: bytes, tree: str = "metadata", entries: int = 1000, size: int = 10**9) -> bytes:
    """Scan a tar; what was passed on."""
    out = io.BytesIO()
    scan_tar(CountedStream(io.BytesIO(data), out, size), Rules(tree, entries))
    return out.getvalue()


META = ("f", "metadata.yaml", b"a: b\n")


def test_a_sound_image_passes_byte_for_byte() -> None:
    data = tar(
        META,
        ("d", "templates"),
        ("f", "templates/hosts.tpl", b"x"),
        ("d", "./rootfs/"),
        ("f", "/rootfs/etc/inittab", b"\n"),
        ("l", "rootfs/bin/sh", "/bin/busybox"),
        ("l", "rootfs/etc/mtab", "../proc/self/mounts"),
        ("f", "rootfs/bin/a", b"x"),
        ("h", "rootfs/bin/b", "rootfs/bin/a"),
        ("c", "rootfs/dev/null"),
        ("p", "rootfs/run/initctl"),
        ("c", "rootfs/v/null"),
        ("b", "rootfs/lib/udev/devices/loop0"),
        ("h", "rootfs/v/zero", "rootfs/v/null"),
        ("h", "rootfs/bin/ash", "rootfs/bin/sh"),
        ("h", "rootfs/bin/hush", "rootfs/bin/ash"),
    )
    assert scan(data) == data


@pytest.mark.parametrize(
    ("entries", "reason"),
    [
        ([("f", "rootfs/../../etc/passwd", b"x")], "leads out"),
        ([("f", "..", b"x")], "leads out"),
        ([("l", "rootfs/a", "/etc"), ("f", "rootfs/a/passwd", b"x")], "below the symbolic link"),
        ([("l", "rootfs/a", "/etc"), ("f", "rootfs/a/b/c", b"x")], "below the symbolic link"),
        ([("f", "rootfs/a/b", b"x"), ("l", "rootfs/a", "/etc")], "duplicate entry"),
        ([("f", "rootfs/a/b/c", b"x"), ("l", "rootfs/a", "/etc"), ("f", "rootfs/a/b/d", b"x")], "duplicate"),
        ([("l", "rootfs/a", "/etc/x"), ("f", "rootfs/a", b"x")], "duplicate entry"),
        ([("l", "rootfs/a", "/etc"), ("d", "rootfs/a")], "duplicate entry"),
        ([("h", "rootfs/a", "../../etc/passwd")], "leads out"),
        ([("h", "rootfs/a", "metadata.yaml")], "hard link"),
        ([("h", "templates/a", "rootfs/a")], "hard link"),
        (
            [("l", "rootfs/l", "/etc"), ("h", "rootfs/h", "rootfs/l"), ("f", "rootfs/h/passwd", b"x")],
            "below the symbolic link",
        ),
        (
            [("f", "rootfs/h/x", b"x"), ("l", "rootfs/l", "/etc"), ("h", "rootfs/h", "rootfs/l")],
            "duplicate entry",
        ),
        ([("l", "rootfs/l", "/etc"), ("h", "rootfs/h", "rootfs/l/passwd")], "below the symbolic link"),
        ([("c", "null")], "device node"),
        ([("b", "dev/sda")], "device node"),
        ([("c", "templates/null")], "device node"),
        ([("l", "metadata.yaml", "/etc/passwd")], "not a regular file"),
        ([("d", "metadata.yaml")], "not a regular file"),
        ([("h", "metadata.yaml", "rootfs/x")], "hard link"),
        ([("f", "metadata.yaml/x", b"x")], "not a regular file"),
        ([META, META], "duplicate entry"),
        ([("l", "rootfs", "/")], "rootfs is not a directory"),
        ([("f", "rootfs", b"x")], "rootfs is not a directory"),
        ([("l", "templates", "/etc")], "not a regular file"),
        ([("l", "templates/a", "/etc/shadow")], "not a regular file"),
        ([("p", "templates/a")], "not a regular file"),
        ([("f", "templates", b"x")], "not a regular file"),
        ([("f", f"templates/{n}", b"") for n in range(1001)], "templates"),
        ([("l", ".", "/")], "root is not a directory"),
    ],
)
def test_archives_that_break_a_rule_are_rejected(entries: list[tuple[str, str]], reason: str) -> None:
    with pytest.raises(Refused, match=reason):
        scan(tar(*entries), entries=5000)


def test_a_root_file_system_of_its_own_has_no_other_layout() -> None:
    entries = (("c", "null"), ("f", "metadata.yaml/x"), ("l", "templates", "/"), ("b", "sda"))
    scan(tar(*entries), tree="rootfs")


def test_entries_and_bytes_are_limited() -> None:
    data = tar(META, *(("f", f"rootfs/{n}", b"x") for n in range(9)))
    scan(data, entries=10)
    with pytest.raises(Refused, match="more than 9 files"):
        scan(data, entries=9)
    with pytest.raises(TooMuch):
        scan(data, size=len(data) - 1)


def test_junk_behind_the_archive_counts_and_is_not_passed_on() -> None:
    data = tar(META)
    assert scan(data + b"x" * 3_000_000).startswith(data)
    assert len(scan(data + b"x" * 3_000_000)) < 2_000_000
    with pytest.raises(TooMuch):
        scan(data + b"x" * 3_000_000, size=2_000_000)


@pytest.mark.parametrize("data", [b"", b"\0" * 100, b"no tar at all" * 100])
def test_invalid_tar_archives_are_rejected(data: bytes) -> None:
    with pytest.raises((Refused, tarfile.TarError)):
        scan(data)


def test_a_bad_header_in_the_middle_is_no_end() -> None:
    """tarfile treats it as the end; tar would continue after it, with unchecked entries."""
    hidden = tar(("f", "rootfs/a", b"x" * 512))[:1024] + b"\x01" * 512 + tar(("b", "rootfs/sda"))
    with pytest.raises(Refused, match="damaged"):
        scan(hidden)


def test_a_truncated_archive_is_refused() -> None:
    data = tar(("f", "rootfs/a", b"x" * 100_000))
    with pytest.raises((Refused, tarfile.ReadError)):
        scan(data[:50_000])


@pytest.mark.parametrize("kind", [b"V", b"M", b"Z"])
def test_unknown_types_are_refused(kind: bytes) -> None:
    member = tarfile.TarInfo("rootfs/a")
    member.type = kind
    with pytest.raises(Refused, match="unknown type"):
        scan(member.tobuf() + b"\0" * 1024)


def metadata(data: bytes) -> bytes:
    return scan_tar(CountedStream(io.BytesIO(data), None, 10**8), Rules("metadata", 50), keep_metadata=True)


def test_the_metadata_is_kept() -> None:
    assert metadata(tar(("f", "rootfs/x", b"1"), META, ("f", "rootfs/y", b"2"))) == b"a: b\n"
    assert metadata(tar(("f", "./metadata.yaml", b"x"))) == b"x"


def test_missing_metadata_or_rootfs_is_rejected() -> None:
    with pytest.raises(Refused, match=r"it contains no metadata\.yaml"):
        scan(tar(("f", "rootfs/metadata.yaml", b"x")))
    with pytest.raises(Refused, match="it contains no rootfs"):
        scan(tar(META), tree="unified")
    scan(tar(META, ("f", "rootfs/a", b"x")), tree="unified")
    with pytest.raises(Refused, match="it contains no rootfs"):
        scan_listing([ROOT.encode(), FILE.encode() + b"metadata.yaml"], Rules("unified", 5), 1000)


def test_metadata_over_a_mebibyte_is_refused() -> None:
    assert len(metadata(tar(("f", "metadata.yaml", b"x" * 2**20)))) == 2**20
    with pytest.raises(Refused, match="larger than"):
        metadata(tar(("f", "metadata.yaml", b"x" * (2**20 + 1))))


def listing(*lines: str) -> Iterable[bytes]:
    return [line.encode() + b"\n" for line in lines]


FILE = "-rw-r--r-- 0/0                       3 2026-11-24 06:43 squashfs-root/"
ROOT = "drwxr-xr-x 0/0                      37 2026-11-24 06:43 squashfs-root"


def test_a_squashfs_listing_is_checked() -> None:
    lines = listing(
        ROOT,
        "-rw-r--r-- 0/0                       3 2026-11-24 06:43 squashfs-root/bin/a",
        "lrwxrwxrwx 0/0                      10 2026-11-24 06:43 squashfs-root/bin/c -> ../../../x",
        "crw-r--r-- 0/0                   1,  3 2026-11-24 06:43 squashfs-root/dev/null",
    )
    scan_listing(lines, Rules("rootfs", 4), 60)
    with pytest.raises(Refused, match="more than 3"):
        scan_listing(lines, Rules("rootfs", 3), 60)
    with pytest.raises(TooMuch):
        scan_listing(lines, Rules("rootfs", 4), 49)


def test_device_nodes_in_a_squashfs_are_accepted() -> None:
    lines = listing(
        ROOT,
        "brw-r--r-- 0/0                   8,  0 2026-11-24 06:43 squashfs-root/sda",
        "crw-r--r-- 0/0                   8,  0 2026-11-24 06:43 squashfs-root/a\\b -> dev/x",
        "brw-r--r-- 100000/100000      8,1048575 2026-11-24 06:43 squashfs-root/a",
    )
    scan_listing(lines, Rules("rootfs", 10), 100)
    with pytest.raises(Refused, match="device node"):
        scan_listing(lines, Rules("metadata", 10), 100)


@settings(deadline=None)
@given(st.text(alphabet="ab/.\n -", max_size=30))
def test_clean_paths_stay_inside(name: str) -> None:
    try:
        path = clean_path(name)
    except Refused:
        assert ".." in name
        return
    assert not path.startswith("/")
    assert not path.endswith("/")
    assert not {"", ".", ".."} & set(path.split("/")) or path == ""


_names = st.lists(st.sampled_from(["a", "b", "."]), min_size=1, max_size=4).map("/".join)
_entries = st.lists(st.tuples(st.sampled_from("fdlh"), _names, _names), max_size=12)


@settings(deadline=None)
@given(_entries)
def test_accepted_archives_have_no_paths_through_symlinks(entries: list[tuple[str, str, str]]) -> None:
    """A model of what tar would do: no accepted entry has a symbolic link among its parents."""
    rules = Rules("rootfs", 100)
    links: set[str] = set()
    for kind, name, target in entries:
        try:
            path = clean_path(name)
            rules.check(kind, path, clean_path(target) if kind == "h" else "")
        except Refused:
            return
        parts = path.split("/")
        assert not {"/".join(parts[:n]) for n in range(1, len(parts))} & links
        if kind == "l" or (kind == "h" and clean_path(target) in links):
            links.add(path)


@given(st.text(st.sampled_from("/.ab"), max_size=8))
def test_a_clean_path_has_the_parts_of_the_name(name: str) -> None:
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if ".." in parts:
        with pytest.raises(Refused):
            clean_path(name)
    else:
        assert clean_path(name) == "/".join(parts)


@settings(deadline=None)
@given(st.binary(max_size=3000))
def test_any_bytes_end_in_a_verdict(data: bytes) -> None:
    with contextlib.suppress(Refused, TooMuch, tarfile.TarError):
        scan(data)


def entry(kind: bytes, name: str, size: int | None = None, content: bytes = b"") -> bytes:
    """One entry as it may be forged: of any type, with any size in its header."""
    member = tarfile.TarInfo("x")
    header = bytearray(member.tobuf(tarfile.GNU_FORMAT))
    header[:100] = name.encode()[:100].ljust(100, b"\0")
    header[124:136] = tarfile.itn(len(content) if size is None else size, 12, tarfile.GNU_FORMAT)  # type: ignore[attr-defined]
    header[156:157] = kind
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + content + bytes(-len(content) % 512)


def extended(**fields: str) -> bytes:
    """An extended header (pax) for the entry behind it."""
    content = b""
    for name, value in fields.items():
        record = f" {name.replace('__', '.')}={value}\n".encode()
        length = len(record) + 1
        length += len(str(length + 1)) - 1
        content += str(length).encode() + record
    return entry(b"x", "x", content=content)


@pytest.mark.parametrize("size", [2**40, 2**62, 2**80])
def test_a_size_that_cannot_be_is_not_waited_for(size: int) -> None:
    """Reading on behind the end, a buffer at a time, took hours."""
    with pytest.raises(TooMuch):
        scan(entry(b"0", "rootfs/a", size) + bytes(1024))


@pytest.mark.parametrize("numbers", ["..", "a,b", ",", "9" * 5000])
def test_extended_headers_without_sense_are_refused(numbers: str) -> None:
    with pytest.raises(Refused, match="headers are damaged"):
        scan(extended(GNU__sparse__map=numbers) + entry(b"0", "rootfs/a") + bytes(1024))


_FIELDS = (
    *("path", "linkpath", "size", "mtime", "uid", "hdrcharset", "GNU__sparse__major", "GNU__sparse__minor"),
    *("GNU__sparse__map", "GNU__sparse__size", "GNU__sparse__realsize", "GNU__sparse__name"),
)
_odd = st.sampled_from(
    ["rootfs/a", "metadata.yaml", "..", "a\nb", "x/" * 200, "", "0", "-1", "1e9", "BINARY", "0,1"]
)
_forged = st.builds(
    entry,
    st.integers(0, 255).map(lambda byte: bytes([byte]))
    | st.sampled_from([b"0", b"1", b"5", b"L", b"K", b"S"]),
    _odd,
    st.none() | st.none() | st.sampled_from([-1, 1, 511, 513, 2**33, 2**62, 2**80, -(2**80)]),
    st.binary(max_size=600),
)
_extended = st.dictionaries(st.sampled_from(_FIELDS), _odd, max_size=3).map(lambda fields: extended(**fields))


@settings(deadline=None)
@given(st.lists(_forged | _extended, max_size=5).map(b"".join), st.integers(0, 2000))
def test_forged_headers_end_in_a_verdict(data: bytes, cut: int) -> None:
    for whole in (data + bytes(1024), data[:cut]):
        with contextlib.suppress(Refused, TooMuch, tarfile.TarError):
            assert whole.startswith(scan(whole, size=10**7))
        with contextlib.suppress(Refused, TooMuch, tarfile.TarError):
            metadata(whole)

"""Archives that nobody would make, unpacked for real: whole and inside their folder, or not at all.

`UTSUWA_FUZZ_ARCHIVES` says how many, `UTSUWA_FUZZ_SEED` repeats a run; the seed is printed.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import lzma
import os
import secrets
import stat
import subprocess
import tarfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from tests.support import leaks
from tests.support.long import amount
from utsuwa.core.errors import InvalidImage, OutOfSpace
from utsuwa.host.archives.check import check_image
from utsuwa.host.archives.sandbox import UnpackLimits
from utsuwa.host.archives.unpack import unpack_image

pytestmark = [pytest.mark.root, pytest.mark.timeout(3600)]

ARCHIVES = int(os.environ.get("UTSUWA_FUZZ_ARCHIVES", amount(30, long=1000)))
SEED = os.environ.get("UTSUWA_FUZZ_SEED") or secrets.token_hex(4)
LIMITS = UnpackLimits(size=2**24, entries=60, seconds=20)
YAML = b"architecture: x86_64\ncreation_date: 1\n"
BESIDE = b"nobody's business"
CANARY = "utsuwa-fuzz"
"""What links and names lead to; its folder lies beside the one that is unpacked into."""

KINDS = (
    tarfile.REGTYPE, tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE,
    tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, tarfile.CONTTYPE, b"\0", b"V", b"Z",
    tarfile.GNUTYPE_SPARSE,
)  # fmt: skip
PARTS = (
    "a", "b", "rootfs", "templates", "dev", "..", ".", "", "metadata.yaml", "etc", "x" * 120, "\n", "é",
    "\udcff", "-x", "*", "\\",
)  # fmt: skip
TARGETS = (
    "/", "..", "/etc", "../../" + CANARY, "a", "rootfs/a", "metadata.yaml", "/proc/self/root", "", "x" * 200,
)  # fmt: skip
PAX = (
    "path", "linkpath", "size", "uid", "gid", "mtime", "uname", "hdrcharset", "comment", "GNU.sparse.major",
    "GNU.sparse.minor", "GNU.sparse.name", "GNU.sparse.realsize", "GNU.sparse.map", "SCHILY.xattr.user.a",
    "SCHILY.xattr.trusted.overlay.opaque", "SCHILY.xattr.security.capability", "SCHILY.acl.access",
    "SCHILY.dev", "RHT.x",
)  # fmt: skip
VALUES = (
    "", "0", "1", "-1", "9" * 30, "1.5", "a", "../../" + CANARY, "rootfs/a", "/", "BINARY", "0,1,2", "u::rwx",
    "\n", "y",
)  # fmt: skip

place = st.lists(st.sampled_from(PARTS), min_size=1, max_size=4).map("/".join)
inside = place.map(lambda path: f"rootfs/{path}") | place.map(lambda path: f"templates/{path}") | place
number = st.sampled_from([0, 0, 0, 1, 1000, 65534, 2**21, 2**31, 2**32 - 1])


@st.composite
def members(draw: Any) -> bytes:
    """One entry, with what stands before it, in one of tar's formats."""
    info = tarfile.TarInfo(draw(inside))
    info.type = draw(st.sampled_from(KINDS))
    info.linkname = draw(st.sampled_from(TARGETS) | inside)
    info.mode = draw(st.sampled_from([0o644, 0o755, 0, 0o7777, 0o4755, 0o1777]))
    info.uid, info.gid = draw(number), draw(number)
    info.mtime = draw(st.sampled_from([0, 1, -1, 2**33, 2**62, 1.5]))
    info.devmajor, info.devminor = draw(st.sampled_from([(1, 3), (8, 0), (0, 0)]))
    content = draw(st.binary(max_size=1100)) if info.isreg() else b""
    info.size = len(content) if draw(st.integers(0, 9)) else draw(st.sampled_from([1, 511, 513, 2**33]))
    form = draw(
        st.sampled_from([tarfile.PAX_FORMAT, tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
    )
    if form == tarfile.PAX_FORMAT:
        info.pax_headers = draw(st.dictionaries(st.sampled_from(PAX), st.sampled_from(VALUES), max_size=2))
    with contextlib.suppress(ValueError):  # what this format cannot say
        return info.tobuf(form, errors="surrogateescape") + content + bytes(-len(content) % tarfile.BLOCKSIZE)
    return b""


def sound(name: str, kind: bytes, content: bytes = b"") -> bytes:
    info = tarfile.TarInfo(name)
    info.type, info.size, info.mode = kind, len(content), 0o755
    return info.tobuf(tarfile.PAX_FORMAT) + content + bytes(-len(content) % tarfile.BLOCKSIZE)


@st.composite
def archives(draw: Any) -> bytes:
    """An image with odd entries, perhaps cut, damaged or compressed."""
    start = sound("metadata.yaml", tarfile.REGTYPE, YAML) + sound("rootfs", tarfile.DIRTYPE)
    data = start + b"".join(draw(st.lists(members(), max_size=5))) + bytes(1024)
    damage = draw(st.sampled_from(["none"] * 6 + ["cut", "flipped", "doubled"]))
    if damage == "cut":
        data = data[: draw(st.integers(0, len(data)))]
    elif damage == "flipped":
        at = draw(st.integers(0, len(data) - 1))
        data = data[:at] + bytes([data[at] ^ 1 << draw(st.integers(0, 7))]) + data[at + 1 :]
    elif damage == "doubled":
        data += data
    pack = draw(st.sampled_from([bytes, bytes, gzip.compress, lzma.compress]))
    packed: bytes = pack(data)
    return packed if pack is bytes or draw(st.integers(0, 4)) else packed[:-9]


def test_archives(tmp_path: Path) -> None:
    """What is unpacked is what Python's `tarfile` finds in it, and all of it lies in the folder."""
    print(f"UTSUWA_FUZZ_SEED={SEED} UTSUWA_FUZZ_ARCHIVES={ARCHIVES}")
    archive, target, canary = tmp_path / "archive", tmp_path / "target", tmp_path / CANARY
    canary.write_bytes(BESIDE)
    ends: Counter[str] = Counter()

    @seed(SEED)
    @settings(
        max_examples=ARCHIVES,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],
    )
    @given(archives())
    def unpack(data: bytes) -> None:
        archive.write_bytes(data)
        try:
            metadata = check_image(archive, None, limits=LIMITS)
            unpack_image(archive, None, target, limits=LIMITS)
        except (InvalidImage, OutOfSpace) as error:
            ends[type(error).__name__] += 1
        else:
            ends["unpacked"] += 1
            assert metadata == (target / "metadata.yaml").read_bytes()
            judge(target, data)
            subprocess.run(["rm", "-rf", target], check=True)
        assert {entry.name for entry in tmp_path.iterdir()} == {"archive", CANARY}
        assert canary.read_bytes() == BESIDE
        assert canary.stat().st_nlink == 1

    unpack()
    print(f"{sum(ends.values())} archives: {dict(ends)}")
    assert ends["unpacked"] > 0
    assert ends["InvalidImage"] > 0
    assert leaks.mounts_below(tmp_path) == []
    assert leaks.processes_of(tmp_path) == []


def judge(target: Path, data: bytes) -> None:
    """No node of a block device, others below rootfs alone, no foreign attribute, templates that are plain,
    and no file that the archive does not have."""
    named = set(names(data))
    for path in below(target):
        inner = path.relative_to(target)
        status = path.lstat()
        kind = stat.S_IFMT(status.st_mode)
        assert kind != stat.S_IFBLK, path
        assert kind != stat.S_IFCHR or inner.parts[0] == "rootfs", path
        assert kind == stat.S_IFDIR or os.fsencode(inner) in named, (path, named)
        if inner.parts[0] != "rootfs":
            assert kind == stat.S_IFDIR or (kind == stat.S_IFREG and status.st_nlink == 1), path
            assert (status.st_uid, status.st_gid) == (0, 0), path
        found = os.listxattr(path, follow_symlinks=False)
        allowed = ("user.", "security.capability", "system.posix_acl_")
        assert all(name.startswith(allowed) for name in found), (path, found)


def below(folder: Path) -> Iterator[Path]:
    for entry in os.scandir(folder):
        yield Path(entry.path)
        if entry.is_dir(follow_symlinks=False):
            yield from below(Path(entry.path))


def names(data: bytes) -> Iterator[bytes]:
    with tarfile.open(fileobj=io.BytesIO(data), errors="surrogateescape") as found:
        for member in found:
            yield os.fsencode("/".join(part for part in member.name.split("/") if part not in ("", ".")))

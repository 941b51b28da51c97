"""Images unpacked for real, in the sandbox: sound ones whole, bad ones not at all."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import stat
import subprocess
import tarfile
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from utsuwa.core.errors import InvalidImage, OutOfSpace
from utsuwa.host.archives.check import check_image
from utsuwa.host.archives.formats import archive_suffix
from utsuwa.host.archives.sandbox import UnpackLimits
from utsuwa.host.archives.unpack import unpack_image, unpack_metadata

pytestmark = pytest.mark.root

YAML = b"architecture: x86_64\ncreation_date: 1\n"
# security.capability as the kernel stores it: version 2, cap_net_raw permitted and effective.
CAPABILITY = bytes.fromhex("0100000200200000000000000000000000000000")


def member(name: str, kind: bytes = tarfile.REGTYPE, **fields: object) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type = kind
    info.mode = 0o755 if kind == tarfile.DIRTYPE else 0o644
    for key, value in fields.items():
        setattr(info, key, value)
    return info


def tar(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for info, content in members:
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return out.getvalue()


META = (member("metadata.yaml"), YAML)
ROOTFS = (member("rootfs", tarfile.DIRTYPE), b"")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def sound() -> bytes:
    return tar(
        META,
        (member("templates", tarfile.DIRTYPE, mode=0o777, uid=7), b""),
        (member("templates/a.tpl", mode=0o4777, uid=7, gid=7), b"hello"),
        (member("rootfs", tarfile.DIRTYPE, mode=0o751), b""),
        (member("rootfs/bin/su", mode=0o4755, uid=1000, gid=1001), b"su"),
        (member("rootfs/bin/su2", tarfile.LNKTYPE, linkname="rootfs/bin/su"), b""),
        (member("rootfs/bin/sh", tarfile.SYMTYPE, linkname="/bin/busybox"), b""),
        (
            member(
                "rootfs/bin/ping",
                mode=0o755,
                pax_headers={
                    "SCHILY.xattr.security.capability": CAPABILITY.decode("latin-1"),
                    "SCHILY.xattr.user.note": "kept",
                    "SCHILY.xattr.trusted.overlay.opaque": "y",
                },
            ),
            b"ping",
        ),
        (member("rootfs/dev", tarfile.DIRTYPE), b""),
        (member("rootfs/dev/null", tarfile.CHRTYPE, devmajor=1, devminor=3), b""),
        (member("rootfs/run/fifo", tarfile.FIFOTYPE), b""),
        (member("other/file"), b"dropped"),
    )


def check_sound(target: Path) -> None:
    root = target / "rootfs"
    assert names(target) == ["metadata.yaml", "rootfs", "templates"]
    assert (target / "metadata.yaml").read_bytes() == YAML
    template = (target / "templates/a.tpl").stat()
    assert (template.st_uid, template.st_gid, stat.S_IMODE(template.st_mode)) == (0, 0, 0o644)
    assert stat.S_IMODE(root.stat().st_mode) == 0o751
    su = (root / "bin/su").stat()
    assert (su.st_uid, su.st_gid, stat.S_IMODE(su.st_mode), su.st_nlink) == (1000, 1001, 0o4755, 2)
    assert (root / "bin/sh").readlink() == Path("/bin/busybox")
    assert names(root / "dev") == []
    assert stat.S_ISFIFO((root / "run/fifo").stat().st_mode)


def zstd(data: bytes) -> bytes:
    return subprocess.run(["zstd", "-qc"], input=data, capture_output=True, check=True).stdout


@pytest.mark.parametrize(
    ("compress", "suffix"),
    [
        (bytes, ".tar"),
        (gzip.compress, ".tar.gz"),
        (bz2.compress, ".tar.bz2"),
        (lzma.compress, ".tar.xz"),
        (lambda data: lzma.compress(data, lzma.FORMAT_ALONE), ".tar.lzma"),
        (zstd, ".tar.zst"),
    ],
)
def test_a_unified_image_of_any_compression(
    tmp_path: Path, compress: Callable[[bytes], bytes], suffix: str
) -> None:
    archive = tmp_path / "image"
    archive.write_bytes(compress(sound()))
    assert archive_suffix(archive) == suffix
    assert check_image(archive, None) == YAML
    unpack_image(archive, None, tmp_path / "out")
    check_sound(tmp_path / "out")


def test_extended_attributes_are_kept_by_name(tmp_path: Path) -> None:
    # tarfile writes pax values as UTF-8; GNU tar makes the archive that has raw bytes.
    source = tmp_path / "rootfs"
    source.mkdir()
    ping = source / "ping"
    ping.write_bytes(b"x")
    os.setxattr(ping, "security.capability", CAPABILITY)
    os.setxattr(ping, "user.note", b"kept")
    os.setxattr(ping, "trusted.overlay.opaque", b"y")
    (tmp_path / "metadata.yaml").write_bytes(YAML)
    archive = tmp_path / "image.tar"
    subprocess.run(
        ["tar", "--xattrs", "--xattrs-include=*", "-cf", str(archive), "metadata.yaml", "rootfs"],
        cwd=tmp_path,
        check=True,
    )
    unpack_image(archive, None, tmp_path / "out")
    out = tmp_path / "out/rootfs/ping"
    assert os.getxattr(out, "security.capability") == CAPABILITY
    assert os.getxattr(out, "user.note") == b"kept"
    assert "trusted.overlay.opaque" not in os.listxattr(out)


def squashfs(tmp_path: Path, *members: tuple[tarfile.TarInfo, bytes], name: str = "rootfs.squashfs") -> Path:
    path = tmp_path / name
    command = ["mksquashfs", "-", str(path), "-tar", "-noappend", "-quiet", "-no-progress"]
    subprocess.run(command, input=tar(*members), capture_output=True, check=True)
    return path


def test_a_split_image_with_a_squashfs(tmp_path: Path) -> None:
    metadata = tmp_path / "meta"
    metadata.write_bytes(gzip.compress(tar(META, (member("rootfs/etc/inittab"), b"from the metadata"))))
    rootfs = squashfs(
        tmp_path,
        (member("bin", tarfile.DIRTYPE), b""),
        (member("bin/su", mode=0o4755, uid=1000), b"su"),
        (member("bin/su2", tarfile.LNKTYPE, linkname="bin/su"), b""),
        (member("dev", tarfile.DIRTYPE), b""),
        (member("dev/null", tarfile.CHRTYPE, devmajor=1, devminor=3), b""),
    )
    unpack_image(metadata, rootfs, tmp_path / "out")
    root = tmp_path / "out/rootfs"
    su = (root / "bin/su").stat()
    assert (su.st_uid, stat.S_IMODE(su.st_mode), su.st_nlink) == (1000, 0o4755, 2)
    assert (root / "etc/inittab").read_bytes() == b"from the metadata"
    assert names(root / "dev") == []


def test_a_split_image_with_a_tar(tmp_path: Path) -> None:
    metadata, rootfs = tmp_path / "meta", tmp_path / "rootfs"
    metadata.write_bytes(lzma.compress(tar(META)))
    rootfs.write_bytes(
        lzma.compress(tar((member("etc/x"), b"1"), (member("dev/kmsg", tarfile.CHRTYPE), b"")))
    )
    unpack_image(metadata, rootfs, tmp_path / "out")
    assert (tmp_path / "out/rootfs/etc/x").read_bytes() == b"1"
    assert names(tmp_path / "out/rootfs") == ["etc"]


def test_a_unified_squashfs(tmp_path: Path) -> None:
    image = squashfs(tmp_path, META, ROOTFS, (member("rootfs/a"), b"1"))
    assert check_image(image, None) == YAML
    unpack_image(image, None, tmp_path / "out")
    assert (tmp_path / "out/rootfs/a").read_bytes() == b"1"


def test_metadata_alone(tmp_path: Path) -> None:
    archive = tmp_path / "image"
    archive.write_bytes(lzma.compress(sound()))
    unpack_metadata(archive, tmp_path / "out")
    assert names(tmp_path / "out") == ["metadata.yaml", "templates"]


BAD: dict[str, tuple[bytes, str]] = {
    "dots": (tar(META, (member("rootfs/../../evil"), b"x")), "leads out"),
    "behind a symlink": (
        tar(META, (member("rootfs/a", tarfile.SYMTYPE, linkname="/"), b""), (member("rootfs/a/evil"), b"x")),
        "below the symbolic link",
    ),
    "hard link": (tar(META, (member("rootfs/a", tarfile.LNKTYPE, linkname="../../x"), b"")), "leads out"),
    "absolute hard link": (
        tar(META, ROOTFS, (member("rootfs/a", tarfile.LNKTYPE, linkname="/etc/passwd"), b"")),
        "points outside the root file system",
    ),
    "device": (tar(META, ROOTFS, (member("sda", tarfile.BLKTYPE, devmajor=8), b"")), "device node"),
    "no metadata": (tar(ROOTFS), "no metadata.yaml"),
    "no rootfs": (tar(META), "no rootfs"),
    "link as metadata": (
        tar((member("metadata.yaml", tarfile.SYMTYPE, linkname="/etc/shadow"), b""), ROOTFS),
        "not a regular file",
    ),
    "truncated": (lzma.compress(sound() + os.urandom(100_000))[:50_000], "damaged"),
    "truncated tar": (tar(META, ROOTFS, (member("rootfs/a"), b"x" * 100_000))[:50_000], "damaged"),
    "magic only": (b"\xfd7zXZ\0" + b"x" * 1000, "damaged"),
    "wrong content": (gzip.compress(b"no tar" * 1000), "not a tar"),
    "unknown": (b"PK\x03\x04" * 100, "unknown format"),
    "empty": (b"", "unknown format"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_archive_leaves_nothing(tmp_path: Path, case: str) -> None:
    data, reason = BAD[case]
    archive = tmp_path / "image"
    archive.write_bytes(data)
    with pytest.raises(InvalidImage, match=reason):
        unpack_image(archive, None, tmp_path / "out")
    assert names(tmp_path) == ["image"]
    with pytest.raises(InvalidImage, match=reason):
        check_image(archive, None)


def test_flipped_bits_are_noticed(tmp_path: Path) -> None:
    data = bytearray(lzma.compress(sound() + b"\0" * 4096 + os.urandom(4096)))
    data[-2000] ^= 0xFF
    archive = tmp_path / "image"
    archive.write_bytes(data)
    with pytest.raises(InvalidImage, match="damaged"):
        unpack_image(archive, None, tmp_path / "out")
    assert names(tmp_path) == ["image"]


ODD = (
    (member("v", tarfile.DIRTYPE), b""),
    (member("v/null", tarfile.CHRTYPE, mode=0o666, devmajor=1, devminor=3), b""),
    (member("v/second", tarfile.LNKTYPE, linkname="v/null"), b""),
    (member("v/loop0", tarfile.BLKTYPE, devmajor=7), b""),
    (member("v/fifo", tarfile.FIFOTYPE), b""),
    (member("v/link", tarfile.SYMTYPE, linkname="../nowhere"), b""),
    (member("v/link2", tarfile.LNKTYPE, linkname="v/link"), b""),
    (member("v/a b\\\n\udcff*"), b"odd name"),
    (member("v/su", mode=0o6755), b"su"),
)
"""What root file systems hold beside plain files, in `/dev` or not."""


@pytest.mark.parametrize("form", ["tar", "squashfs"])
def test_unusual_files_are_unpacked_except_block_devices(tmp_path: Path, form: str) -> None:
    """Device nodes outside of /dev and symlinks with several names are no reason to refuse (lxd#10449)."""
    metadata, rootfs = tmp_path / "meta", tmp_path / "rootfs.tar"
    metadata.write_bytes(tar(META))
    rootfs.write_bytes(tar(*ODD))
    if form == "squashfs":
        rootfs = squashfs(tmp_path, *ODD)
    check_image(metadata, rootfs)
    unpack_image(metadata, rootfs, tmp_path / "out")
    folder = tmp_path / "out/rootfs/v"
    node = (folder / "null").lstat()
    assert stat.S_ISCHR(node.st_mode)
    assert (node.st_rdev, node.st_nlink) == (os.makedev(1, 3), 2)
    assert not os.path.lexists(folder / "loop0")
    assert stat.S_ISFIFO((folder / "fifo").lstat().st_mode)
    assert (folder / "link2").readlink() == Path("../nowhere")
    assert (folder / "link2").lstat().st_ino == (folder / "link").lstat().st_ino
    assert (folder / "a b\\\n\udcff*").read_bytes() == b"odd name"
    assert stat.S_IMODE((folder / "su").lstat().st_mode) == 0o6755


def test_a_truncated_squashfs_leaves_nothing(tmp_path: Path) -> None:
    metadata = tmp_path / "meta"
    metadata.write_bytes(tar(META))
    rootfs = squashfs(tmp_path, (member("a"), os.urandom(500_000)))
    os.truncate(rootfs, 100_000)
    with pytest.raises(InvalidImage):
        unpack_image(metadata, rootfs, tmp_path / "out")
    with pytest.raises(InvalidImage):
        check_image(metadata, rootfs)
    assert not (tmp_path / "out").exists()


def test_limits(tmp_path: Path) -> None:
    archive = tmp_path / "image"
    archive.write_bytes(
        lzma.compress(tar(META, ROOTFS, (member("rootfs/zero"), bytes(50_000_000))), preset=0)
    )
    with pytest.raises(OutOfSpace, match="too large"):
        unpack_image(archive, None, tmp_path / "out", limits=UnpackLimits(size=10_000_000))
    with pytest.raises(InvalidImage, match="more than 2 files"):
        unpack_image(archive, None, tmp_path / "out", limits=UnpackLimits(entries=2))
    assert names(tmp_path) == ["image"]


def test_a_large_squashfs_is_refused_by_its_listing(tmp_path: Path) -> None:
    metadata = tmp_path / "meta"
    metadata.write_bytes(tar(META))
    rootfs = squashfs(tmp_path, (member("zero"), bytes(20_000_000)))
    with pytest.raises(OutOfSpace, match="too large"):
        unpack_image(metadata, rootfs, tmp_path / "out", limits=UnpackLimits(size=10_000_000))
    assert not (tmp_path / "out").exists()


def test_a_full_disk(tmp_path: Path) -> None:
    """The space goes while the archive is unpacked: what it announced did fit."""
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m,nr_inodes=20", "test", disk], check=True)
    try:
        archive = tmp_path / "image"
        archive.write_bytes(tar(META, *((member(f"rootfs/{n}"), b"x") for n in range(40))))
        with pytest.raises(OutOfSpace, match="free some space"):
            unpack_image(archive, None, disk / "out")
        assert names(disk) == []
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_target_that_holds_something_is_left_alone(tmp_path: Path) -> None:
    archive = tmp_path / "image"
    archive.write_bytes(sound())
    out = tmp_path / "out"
    out.mkdir()
    (out / "precious").touch()
    with pytest.raises(FileExistsError):
        unpack_image(archive, None, out)
    assert names(out) == ["precious"]


def test_no_mount_and_no_process_is_left(tmp_path: Path) -> None:
    before, threads = Path("/proc/self/mountinfo").read_text(), set(threading.enumerate())
    archive = tmp_path / "image"
    archive.write_bytes(lzma.compress(sound()))
    unpack_image(archive, None, tmp_path / "out")
    assert Path("/proc/self/mountinfo").read_text() == before
    assert set(threading.enumerate()) <= threads  # other tests of the process may have left some


def test_metadata_over_a_mebibyte_is_refused(tmp_path: Path) -> None:
    large = member("metadata.yaml"), b"x" * (2**20 + 1)
    archive = tmp_path / "image"
    archive.write_bytes(tar(large, ROOTFS))
    for image in (archive, squashfs(tmp_path, large, ROOTFS)):
        with pytest.raises(InvalidImage, match="larger than"):
            check_image(image, None)
        with pytest.raises(InvalidImage, match="larger than"):
            unpack_image(image, None, tmp_path / "out")

"""What trees are like that are sent as archives, and what a malicious sender of one can do."""

from __future__ import annotations

import io
import os
import subprocess
import tarfile
from pathlib import Path

import pytest

from tests.support.transfers import send_tree
from tests.support.whole_trees import differences, tree
from utsuwa.host.archives import streams

pytestmark = pytest.mark.root


@pytest.fixture
def target(tmp_path: Path) -> Path:
    folder = tmp_path / "target"
    folder.mkdir()
    return folder


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    folder = tmp_path / "outside"
    folder.mkdir()
    return folder


def receive(target: Path, *members: tarfile.TarInfo, cut: int | None = None) -> int:
    """Have a receiver read an archive of these members, files with the content `x`; its exit status."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for member in members:
            member.size = 1 if member.isreg() else 0
            archive.addfile(member, io.BytesIO(b"x"))
    argv, _ = streams.receiving(target)
    return subprocess.run(argv, input=data.getvalue()[:cut], capture_output=True, timeout=30).returncode


def member(name: str, type: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    found = tarfile.TarInfo(name)
    found.type, found.linkname, found.mode = type, link, 0o644
    return found


def test_a_tree_arrives_as_it_is(tmp_path: Path, target: Path) -> None:
    source = tmp_path / "source"
    names = [
        "new\nline",
        os.fsdecode(b"\xff\xfe"),
        "--checkpoint-action=exec=false",
        "*",
        "l" * 255,
        "%41;\t",
    ]
    for name in names:
        (source / name / name).mkdir(parents=True)
        file = source / name / "file"
        file.write_text(name, errors="surrogateescape")
        os.setxattr(file, "user.a=b%", b"\0\n\xff")
        os.utime(file, ns=(1, 1_000_000_001))
    os.truncate(source / "*" / "file", 3 * 2**20)
    (source / "second").hardlink_to(source / "*" / "file")
    (source / "link").symlink_to("x" * 200)
    os.mkfifo(source / "fifo", 0o600)
    os.mknod(source / "whiteout", 0o20000, 0)
    subprocess.run(["setcap", "cap_net_raw=ep", str(source / "second")], check=True)
    subprocess.run(["setfacl", "-m", "u:7:r,d:u:8:rwx", str(source / "*")], check=True)
    os.chown(source / "*" / "file", 1000, 2**31)
    (source / "*" / "file").chmod(0o4711)
    assert send_tree(source, target) == (0, 0)
    assert differences(tree(source), tree(target)) == []


def test_links_lead_nowhere(target: Path, outside: Path) -> None:
    receive(target, member("link", tarfile.SYMTYPE, str(outside)), member("link/file"))
    receive(target, member("up", tarfile.SYMTYPE, "../outside"), member("up/file"))
    receive(target, member("hard", tarfile.LNKTYPE, "../outside/../secret"))
    assert list(outside.iterdir()) == []
    assert not (target / "hard").exists()


@pytest.mark.parametrize("name", ["../outside/file", "/outside/file", "a/../../outside/file"])
def test_names_stay_in_the_tree(target: Path, outside: Path, name: str) -> None:
    receive(target, member(name))
    assert list(outside.iterdir()) == []


def test_the_tree_itself_cannot_be_replaced(target: Path) -> None:
    assert receive(target, member(".", tarfile.SYMTYPE, "/etc")) != 0
    assert target.is_dir()
    assert not target.is_symlink()


def test_attributes_of_the_host_are_not_received(target: Path) -> None:
    file = member("file")
    names = ("trusted.overlay.opaque", "security.other", "user.kept")
    file.pax_headers = {f"SCHILY.xattr.{name}": "y" for name in names}
    receive(target, file)
    assert os.listxattr(target / "file") == ["user.kept"]


def test_the_last_of_two_files_with_one_name_is_kept(target: Path) -> None:
    first, second = member("file"), member("file")
    first.mode = 0o600
    assert receive(target, first, second) == 0
    assert (target / "file").stat().st_mode & 0o777 == 0o644


def test_a_truncated_archive_is_an_error(target: Path) -> None:
    large = member("file")
    assert receive(target, large, cut=512) != 0
    assert receive(target, member("file", tarfile.SYMTYPE, "x"), cut=100) != 0

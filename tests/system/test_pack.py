"""Archives of images that are packed here: whatever a root file system contains comes back."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.whole_trees import differences, tree
from utsuwa.core.compression import COMPRESSORS, Compression, parse_compression
from utsuwa.core.errors import ProcessFailed
from utsuwa.host.archives.check import check_image
from utsuwa.host.archives.formats import archive_format
from utsuwa.host.archives.pack import pack_squashfs, pack_tar
from utsuwa.host.archives.unpack import unpack_image
from utsuwa.host.processes.pipeline import run_pipeline
from utsuwa.host.processes.stopper import Stopper

pytestmark = pytest.mark.root

METADATA = b"architecture: x86_64\ncreation_date: 1700000000\n"
MOMENT = 1_700_000_000


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a rootfs that has all that a file system can have, and with templates."""
    folder = tmp_path_factory.mktemp("content")
    rootfs = folder / "rootfs"
    (rootfs / "etc").mkdir(parents=True)
    (rootfs / "etc/passwd").write_text("root\n")
    os.link(rootfs / "etc/passwd", rootfs / "etc/other-name")
    (rootfs / "etc/link").symlink_to("/nowhere/*")
    os.link(rootfs / "etc/link", rootfs / "etc/link-too", follow_symlinks=False)
    os.mkfifo(rootfs / "pipe", 0o640)
    os.mknod(rootfs / "char", 0o020666, os.makedev(1, 3))
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(str(rootfs / "socket"))
    (rootfs / "socket").unlink()  # left out
    with (rootfs / "sparse").open("wb") as file:
        file.seek(8 << 20)
        file.write(b"end")
        file.truncate(16 << 20)
    tool = rootfs / "tool"
    tool.write_bytes(os.urandom(100_000))
    os.chown(tool, 1000, 2_000_000)
    tool.chmod(0o6755)
    os.setxattr(tool, "user.note", b"\0\xff")
    subprocess.run(["setcap", "cap_net_raw+ep", str(tool)], check=True)
    subprocess.run(["setfacl", "-m", "u:7:rw,d:u:8:r", str(rootfs / "etc")], check=True)
    for name in (b"not \xff utf-8", b"new\nline", b" blank ", b"-C", b"@list", b"*", b"long" * 60):
        (rootfs / os.fsdecode(name)).write_bytes(name)
    deep = rootfs
    for _ in range(12):
        deep = deep / ("deep" * 20)
    deep.mkdir(parents=True)
    (folder / "templates").mkdir()
    (folder / "templates/hostname.tpl").write_text("{{ container.name }}\n")
    for path in sorted(folder.rglob("*"), reverse=True):
        os.utime(path, (MOMENT, MOMENT), follow_symlinks=False)
    return folder


def packed(folder: Path, beside: Path, text: str, stopper: Stopper | None = None) -> Path:
    compression = parse_compression(text)
    target = beside / "image"
    if compression.name == "squashfs":
        pack_squashfs(folder, METADATA, MOMENT, beside, target, stopper or Stopper())
        return target
    with target.open("wb") as file:
        pack_tar(folder, METADATA, MOMENT, beside, compression, file.write, stopper or Stopper())
    return target


def installed(name: str) -> str:
    needed = {"pigz": "pigz", "lz4": "lz4"}.get(name, "true")
    if subprocess.run(["which", needed], capture_output=True, check=False).returncode:
        pytest.skip(f"{needed} is not installed")
    return name


@pytest.mark.parametrize(
    "name", [*sorted(COMPRESSORS), "gzip -1 --rsyncable", "zstd -3 --rsyncable", "xz -0"]
)
def test_a_packed_tree_is_unpacked_as_it_was(folder: Path, tmp_path: Path, name: str) -> None:
    archive = packed(folder, tmp_path, installed(name))
    assert [path.name for path in tmp_path.iterdir()] == ["image"]
    assert check_image(archive, None) == METADATA
    unpack_image(archive, None, tmp_path / "tree")
    before, after = tree(folder / "rootfs"), tree(tmp_path / "tree/rootfs")
    if name == "squashfs":  # which has no POSIX ACLs
        before["etc"] = replace(before["etc"], attributes=())
    assert differences(before, after) == []
    assert (tmp_path / "tree/templates/hostname.tpl").read_text() == "{{ container.name }}\n"


def test_equal_trees_are_equal_archives(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "content").mkdir()
    subprocess.run(["cp", "-a", f"{folder}/.", str(tmp_path / "content")], check=True)
    (tmp_path / "content/rootfs/sparse").unlink()
    os.utime(tmp_path / "content/rootfs", (MOMENT, MOMENT))
    archives = []
    for place in ("one", "two"):
        (tmp_path / place).mkdir()
        archives.append(packed(tmp_path / "content", tmp_path / place, "gzip").read_bytes())
    assert archives[0] == archives[1]


def test_the_formats_are_recognized(folder: Path, tmp_path: Path) -> None:
    forms = {"none": "tar", "pigz": "gzip"}
    for name in sorted(COMPRESSORS):
        if subprocess.run(["which", name], capture_output=True, check=False).returncode == 0:
            (tmp_path / name).mkdir()
            assert archive_format(packed(folder, tmp_path / name, name)) == forms.get(name, name)


def test_packing_can_be_stopped(folder: Path, tmp_path: Path) -> None:
    stopper = Stopper()

    def stop(_: bytes) -> None:
        stopper.stop()

    with pytest.raises(ProcessFailed, match="was stopped"):
        pack_tar(folder, METADATA, MOMENT, tmp_path, Compression("none"), stop, stopper)
    assert list(tmp_path.iterdir()) == []


def test_an_error_of_who_takes_the_archive_ends_the_programs(folder: Path, tmp_path: Path) -> None:
    def full(_: bytes) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        pack_tar(folder, METADATA, MOMENT, tmp_path, Compression("xz"), full, Stopper())
    assert list(tmp_path.iterdir()) == []


def test_the_program_that_failed_first_is_named() -> None:
    failing = ["sh", "-c", "echo reason >&2; exit 7"]
    endless = ["sh", "-c", "while :; do echo y; done"]
    taken: list[bytes] = []
    for commands in ([failing, ["cat"]], [endless, failing]):
        with pytest.raises(ProcessFailed, match="reason") as raised:
            run_pipeline(commands, taken.append, stopper=Stopper())
        assert raised.value.code == 7
    with pytest.raises(ProcessFailed, match="not found"):
        run_pipeline([endless, ["no-such-program"]], taken.append, stopper=Stopper())


def test_what_is_packed_ends_with_the_thread_that_packs() -> None:
    """A pipeline that was stopped leaves no process, not even one that ignores signals."""
    stopper, pids = Stopper(), list[int]()

    def note(data: bytes) -> None:
        pids.append(int(data.split()[0]))
        stopper.stop()

    command = ["sh", "-c", "trap '' TERM; echo $$; sleep 1000"]
    with pytest.raises(ProcessFailed):
        run_pipeline([command], note, stopper=stopper)
    with pytest.raises(ProcessLookupError):
        os.kill(pids[0], signal.SIG_DFL)

"""What a malicious sender or receiver can do to the rsync of a migration."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from utsuwa.core.idmap import IdMap
from utsuwa.host import rsync
from utsuwa.host.rsync import Options

pytestmark = pytest.mark.root

OPTIONS = Options(xattrs=True, delete=True)
SHELL = 'bash -c "exec 5<&0; cat <&5 >&4 & exec cat <&3"'
Command = tuple[Sequence[str], Mapping[str, str]]


def evil(tree: Path) -> Command:
    """A sender that sends a directory as it is."""
    script = 'exec 3<&0 4>&1 </dev/null >&2; exec rsync "$@"'
    words = ["--archive", "--devices", "--numeric-ids", "--sparse", *OPTIONS.words(), "-e", SHELL]
    return ["bash", "-c", script, "evil", *words, f"{tree}/", "localhost:/target"], {}


def transfer(sender: Command, receiver: Command) -> tuple[int, int]:
    """Connect two commands; return their exit statuses."""
    to_receiver, to_sender = os.pipe(), os.pipe()

    def start(command: Command, stdin: int, stdout: int) -> subprocess.Popen[bytes]:
        argv, env = command
        return subprocess.Popen(
            list(argv), env={**os.environ, **env}, stdin=stdin, stdout=stdout, stderr=subprocess.DEVNULL
        )

    first = start(sender, to_sender[0], to_receiver[1])
    second = start(receiver, to_receiver[0], to_sender[1])
    for descriptor in (*to_receiver, *to_sender):
        os.close(descriptor)
    return first.wait(30), second.wait(30)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    (tmp_path / "rootfs").mkdir()
    (tmp_path / "out").mkdir()
    return tmp_path / "rootfs"


@pytest.fixture
def sent(tmp_path: Path) -> Path:
    """A directory that is sent, with an empty `rootfs`."""
    folder = tmp_path / "sent"
    (folder / "rootfs").mkdir(parents=True)
    return folder


def receiving(tree: Path) -> Command:
    return rsync.receiving(tree, tree.parent / "out", IdMap(), OPTIONS)


def test_attributes_of_the_host_are_not_received(tree: Path, sent: Path) -> None:
    file = sent / "rootfs" / "file"
    file.write_text("x")
    os.setxattr(file, "user.kept", b"1")
    os.setxattr(file, "trusted.overlay.opaque", b"y")
    os.setxattr(file, "security.other", b"1")
    assert transfer(evil(sent), receiving(tree)) == (0, 0)
    assert os.listxattr(tree / "file") == ["user.kept"]


def test_links_lead_nowhere(tree: Path, sent: Path) -> None:
    outside = tree.parent / "outside"
    outside.mkdir()
    (sent / "rootfs" / "link").symlink_to(outside)
    assert transfer(evil(sent), receiving(tree)) == (0, 0)
    (sent / "rootfs" / "link").unlink()
    (sent / "rootfs" / "link").mkdir()
    (sent / "rootfs" / "link" / "file").write_text("x")
    assert transfer(evil(sent), receiving(tree)) == (0, 0)
    assert (tree / "link" / "file").read_text() == "x"
    assert list(outside.iterdir()) == []


def test_the_tree_itself_cannot_be_replaced(tree: Path, sent: Path) -> None:
    (sent / "rootfs").rmdir()
    (sent / "rootfs").symlink_to("/etc")
    transfer(evil(sent), receiving(tree))
    assert tree.is_dir()
    assert not tree.is_symlink()
    assert list(tree.iterdir()) == []


def test_only_metadata_and_templates_are_taken_from_beside(tree: Path, sent: Path) -> None:
    (sent / "metadata.yaml").symlink_to("/etc/passwd")
    (sent / "backup.yaml").write_text("x")
    (sent / "templates").mkdir()
    (sent / "templates" / "one").write_text("x")
    assert transfer(evil(sent), receiving(tree)) == (0, 0)
    assert [path.name for path in (tree.parent / "out").iterdir()] == ["templates"]


def test_there_is_no_room_for_much_beside_the_tree(tree: Path, sent: Path) -> None:
    with (sent / "large").open("wb") as file:
        for _ in range(70):
            file.write(os.urandom(2**20))
    assert transfer(evil(sent), receiving(tree))[1] != 0
    assert list((tree.parent / "out").iterdir()) == []


def test_a_sender_only_reads(tree: Path, tmp_path: Path) -> None:
    (tree / "file").write_text("x")
    argv, env = rsync.sending(tree, None, OPTIONS)
    words = list(argv)
    words[words.index("/target/")] = "--remove-source-files"
    ended = subprocess.run(
        [*words, "/target/"],
        env={**os.environ, **env},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=30,
        check=False,
    )
    assert ended.returncode != 0
    assert (tree / "file").read_text() == "x"

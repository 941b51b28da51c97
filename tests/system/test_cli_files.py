"""`utsuwa file`: push, pull, edit, create, delete and mount."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.client import command, environment
from tests.support.daemon import Daemon
from tests.support.netbox import until
from tests.support.terminal import run_in_terminal

pytestmark = pytest.mark.root


@pytest.fixture
def c1(shared_daemon: Daemon, busybox: str) -> Daemon:
    shared_daemon.lxc("launch", busybox, "c1")
    return shared_daemon


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def file(daemon: Daemon, *arguments: str, stdin: bytes = b"", status: int = 0) -> tuple[bytes, str]:
    """Run `utsuwa file`; return what it writes, and what it says on standard error."""
    ended = subprocess.run(
        command("file", *arguments), env=environment(daemon), input=stdin, capture_output=True, timeout=60
    )
    said = ended.stderr.decode(errors="replace")
    assert ended.returncode == status, said
    return ended.stdout, said


def inside(daemon: Daemon, script: str) -> str:
    return daemon.lxc("exec", "c1", "--", "sh", "-c", script).stdout


def test_push_and_pull(c1: Daemon, here: Path) -> None:
    (here / "f").write_text("hello")
    (here / "f").chmod(0o640)
    os.chown(here / "f", 7, 8)
    (here / "large").write_bytes(os.urandom(3_000_000))
    file(c1, "push", "f", "c1/tmp/")
    assert inside(c1, "stat -c '%a %u %g' /tmp/f; cat /tmp/f").split() == ["640", "7", "8", "hello"]
    file(c1, "push", "--uid=1", "--gid", "2", "--mode=604", "f", "c1/tmp/g")
    assert inside(c1, "stat -c '%a %u %g' /tmp/g").split() == ["604", "1", "2"]
    for name in ("f", "large"):
        for mode in ("4755", "1777", "2710"):
            file(c1, "push", f"--mode={mode}", name, "c1/tmp/special")
            assert inside(c1, "stat -c %a /tmp/special; rm /tmp/special").split() == [mode]
    file(c1, "push", "-", "c1/tmp/in", stdin=b"typed")
    assert inside(c1, "cat /tmp/in; stat -c ' %a' /tmp/in") == "typed 600\n"
    file(c1, "pull", "c1/tmp/g", "back")
    assert (here / "back").read_text() == "hello"
    assert stat.S_IMODE((here / "back").stat().st_mode) == 0o604
    assert file(c1, "pull", "c1/tmp/in", "-")[0] == b"typed"
    file(c1, "pull", "c1/tmp/f", "c1/tmp/in", "both")
    assert sorted(path.name for path in (here / "both").iterdir()) == ["f", "in"]
    file(c1, "push", "large", "local:c1/tmp/")
    file(c1, "pull", "c1/tmp/large", "large2")
    assert (here / "large2").read_bytes() == (here / "large").read_bytes()


def test_missing_directories(c1: Daemon, here: Path) -> None:
    (here / "f").write_text("x")
    file(c1, "push", "f", "c1/tmp/a/b/", status=1)
    file(c1, "push", "-p", "--mode=400", "--uid=5", "f", "c1/tmp/a/b/f")
    assert inside(c1, "stat -c '%a %u' /tmp/a /tmp/a/b /tmp/a/b/f").split() == ["750", "5"] * 2 + ["400", "5"]
    file(c1, "push", "-p", "f", "c1/.")
    assert inside(c1, "cat /f") == "x"
    said = file(c1, "pull", "c1/f", "no/such/", status=1)[1]
    assert "Cannot create no/such/: No such file or directory: use --create-dirs" in said
    file(c1, "pull", "-p", "c1/f", "no/such/")
    assert (here / "no/such/f").read_text() == "x"


def tree(folder: Path) -> dict[bytes, tuple[str, int, bytes]]:
    """What is below a directory: type, mode, and content or target."""
    found = {}
    for path in folder.rglob("*"):
        mode = path.lstat().st_mode
        content = b""
        if stat.S_ISLNK(mode):
            content = os.fsencode(path.readlink())
        elif stat.S_ISREG(mode):
            content = path.read_bytes()
        kind = stat.filemode(mode)[0]
        found[os.fsencode(path.relative_to(folder))] = (
            kind,
            0 if kind == "l" else stat.S_IMODE(mode),
            content,
        )
    return found


def test_directories_are_transferred_recursively(c1: Daemon, here: Path) -> None:
    """With owners, modes, links as links, and names of any bytes (lxd#2759, lxd#2970, lxd#6874)."""
    source = here / "source"
    (source / "sub dir/deep").mkdir(parents=True)
    (source / "locked").mkdir(mode=0o500)
    for name in ("plain", "sub dir/a+b", "sub dir/%41;&?", "sub dir/deep/ü", "new\nline"):
        (source / name).write_text(name)
    Path(os.fsdecode(os.fsencode(source) + b"/\xff\xfe")).write_text("bytes")
    (source / "plain").chmod(0o751)
    (source / "link").symlink_to("plain")
    (source / "dangling").symlink_to("/no/such")
    (source / "up").symlink_to("../..")
    (source / "sub dir").chmod(0o2711)
    os.chown(source / "sub dir", 1000, 1001)
    expected = tree(source)
    expected[b"sub dir"] = ("d", 0o711, b"")
    os.mkfifo(source / "fifo")

    said = file(c1, "push", "-r", "-p", "source", "c1/tmp/x/")[1]
    assert said == "Skipped source/fifo: a FIFO\n"
    assert inside(c1, "stat -c '%u %g' '/tmp/x/source/sub dir'").split() == ["1000", "1001"]
    file(c1, "push", "-r", "source", "c1/tmp/x")  # again, over what is there
    inside(c1, "mkfifo /tmp/x/source/fifo")
    said = file(c1, "pull", "-r", "c1/tmp/x/source", "back")[1]
    assert said == "Skipped /tmp/x/source/fifo: a FIFO, not a regular file\n"
    assert tree(here / "back/source") == expected
    file(c1, "pull", "-r", "c1/tmp/x/source", "back", status=0)  # again, with the same result
    assert tree(here / "back/source") == expected
    assert [path.name for path in (here / "back").iterdir()] == ["source"]
    c1.lxc("file", "pull", "-r", "c1/tmp/x/source/sub dir", str(here / "theirs"))
    file(c1, "pull", "-r", "c1/tmp/x/source/sub dir", "ours")
    assert sorted(tree(here / "ours")) == sorted(tree(here / "theirs"))


def test_a_pulled_tree_is_one_request(c1: Daemon, here: Path) -> None:
    """With hard links, names of any bytes, and large files; special files are named."""
    inside(
        c1,
        "mkdir -p /tmp/t/deep/er /tmp/t/empty; cd /tmp/t; echo one >first; ln first deep/second; "
        "head -c 3000000 /dev/urandom >deep/large; cp deep/large /tmp/large; ln -s ../first deep/link; "
        "mkfifo deep/fifo; chmod 2750 deep; chmod 604 first; "
        "for i in $(seq 300); do echo $i >deep/er/$i; done; "
        r"""printf x >"$(printf 'n\377\nl')"; ln -s /etc/passwd passwd""",
    )
    said = file(c1, "--debug", "pull", "-r", "c1/tmp/t", "back")[1]
    assert "Skipped /tmp/t/deep/fifo: a FIFO, not a regular file\n" in said
    assert said.count("> GET /1.0/instances/c1/files") == 1
    back = here / "back/t"
    assert (back / "first").stat().st_ino == (back / "deep/second").stat().st_ino
    assert stat.S_IMODE((back / "first").stat().st_mode) == 0o604
    assert stat.S_IMODE((back / "deep").stat().st_mode) == 0o2750
    assert [(back / f"deep/er/{i}").read_text() for i in range(1, 301)] == [f"{i}\n" for i in range(1, 301)]
    assert str((back / "deep/link").readlink()) == "../first"
    assert str((back / "passwd").readlink()) == "/etc/passwd"
    assert list((back / "empty").iterdir()) == []
    assert Path(os.fsdecode(os.fsencode(back) + b"/n\xff\nl")).read_text() == "x"
    file(c1, "pull", "c1/tmp/large", "large")
    assert (back / "deep/large").read_bytes() == (here / "large").read_bytes()
    back.rename(here / "t")
    back = here / "t"
    inside(c1, "cd /tmp/t; rm first; echo 2 >first")
    file(c1, "pull", "-r", "c1/tmp/t", ".")  # over what is there
    assert ((back / "first").read_text(), (back / "deep/second").read_text()) == ("2\n", "one\n")


def test_a_file_that_cannot_be_read_ends_a_pull(c1: Daemon, here: Path) -> None:
    inside(c1, "mkdir /tmp/t; echo 1 >/tmp/t/a; ln -s /proc/sys/net/ipv4/route /tmp/t/l")
    said = file(c1, "pull", "-r", "c1/proc/sys/net/ipv4/route", "back", status=1)[1]
    assert "/proc/sys/net/ipv4/route/flush: " in said
    file(c1, "pull", "-r", "c1/tmp/t", "back2")
    assert (here / "back2/t/a").read_text() == "1\n"


def test_a_tree_without_its_own_name(c1: Daemon, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "source").mkdir()
    (here / "source/f").write_text("x")
    monkeypatch.chdir(here / "source")
    file(c1, "push", "-r", "./", "c1/tmp/")
    file(c1, "push", "-r", "../source", "c1/tmp/")
    assert inside(c1, "cat /tmp/f /tmp/source/f") == "xx"


def test_symlinks_are_pulled_as_they_are(c1: Daemon, here: Path) -> None:
    inside(c1, "mkdir /tmp/d; ln -s ../f /tmp/d/l; echo hello >/tmp/f")
    file(c1, "pull", "c1/tmp/d/l", ".")
    assert str((here / "l").readlink()) == "../f"
    assert file(c1, "pull", "c1/tmp/d/l", "-")[0] == b"hello\n"


def test_a_link_here_is_not_written_through(c1: Daemon, here: Path, tmp_path: Path) -> None:
    """A recursive pull replaces links that are where its files go."""
    (tmp_path / "outside").mkdir()
    (here / "d").mkdir()
    (here / "d/sub").symlink_to(tmp_path / "outside")
    (here / "d/f").symlink_to(tmp_path / "outside/f")
    inside(c1, "mkdir -p /tmp/d/sub; echo x >/tmp/d/sub/g; echo x >/tmp/d/f")
    file(c1, "pull", "-r", "c1/tmp/d", ".")
    assert list((tmp_path / "outside").iterdir()) == []
    assert (here / "d/sub/g").read_text() == (here / "d/f").read_text() == "x\n"


def test_create_edit_and_delete(c1: Daemon, here: Path) -> None:
    file(c1, "create", "-p", "--mode=600", "c1/tmp/new/empty")
    file(c1, "create", "--type=directory", "c1/tmp/dir")
    file(c1, "create", "--type=symlink", "c1/tmp/link", "dir")
    assert inside(c1, "stat -c '%F' /tmp/new/empty /tmp/dir /tmp/link").splitlines() == [
        "regular empty file",
        "directory",
        "symbolic link",
    ]
    file(c1, "edit", "c1/tmp/new/empty", stdin=b"text")
    assert inside(c1, "cat /tmp/new/empty") == "text"
    environ = environment(c1) | {"EDITOR": "sed -i s/text/changed/"}
    status, _ = run_in_terminal(command("file", "edit", "c1/tmp/new/empty"), env=environ, typed=[])
    assert (status, inside(c1, "cat /tmp/new/empty")) == (0, "changed")
    file(c1, "delete", "c1/tmp/new/empty", "c1/tmp/link", "c1/tmp/dir")
    assert inside(c1, "ls /tmp /tmp/new").split() == ["/tmp:", "new", "/tmp/new:"]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("push", "f", "c1"), "Invalid target c1: write <instance>/<path>"),
        (("push", "f", "/tmp"), "Invalid target /tmp"),
        (("push", "f", "f", "c1/tmp/q"), "Missing target directory"),
        (("push", "nope", "c1/tmp/"), "Cannot read nope: No such file or directory"),
        (("push", "d", "c1/tmp/"), "d is a directory: use --recursive"),
        (("push", "-", "c1/tmp/"), "Name the file"),
        (("push", "--mode=rw", "f", "c1/tmp/"), "Invalid --mode 'rw'"),
        (("push", "-r", "--mode=600", "d", "c1/tmp/"), "Can't supply uid/gid/mode in recursive mode"),
        (("push", "f", "c1/tmp"), "/tmp: a directory, not a regular file"),
        (("pull", "c1/etc", "."), "Can't pull a directory without --recursive"),
        (("pull", "c1/etc", "-"), "/etc is a directory"),
        (("pull", "c1/nope", "."), "/nope does not exist"),
        (("pull", "c1/etc/passwd"), "Invalid number of arguments"),
        (("delete", "c1/nope"), "/nope does not exist"),
        (("create", "--type=fifo", "c1/tmp/x"), "Unknown type 'fifo'"),
        (("create", "--type=symlink", "c1/tmp/x"), "Name the symlink and its target"),
        (("mount", "c1/tmp", "nope"), "The target nope is not a directory"),
    ],
)
def test_mistakes(
    shared_daemon: Daemon, busybox: str, here: Path, arguments: tuple[str, ...], reason: str
) -> None:
    (here / "f").touch()
    (here / "d").mkdir()
    shared_daemon.lxc("init", busybox, "c1")
    assert reason in file(shared_daemon, *arguments, status=1)[1]


def test_mount(c1: Daemon, here: Path) -> None:
    (here / "m").mkdir()
    mounting = subprocess.Popen(command("file", "mount", "c1/tmp", "m"), env=environment(c1))
    try:
        until((here / "m").is_mount)
        (here / "m/f").write_text("x" * 100_000)
        assert inside(c1, "wc -c </tmp/f") == "100000\n"
    finally:
        subprocess.run(["umount", "-l", "m"], check=False)
        mounting.send_signal(signal.SIGINT)
        mounting.wait()


def test_large_files(c1: Daemon, here: Path) -> None:
    content = os.urandom(20_000_000)
    (here / "large").write_bytes(content)
    (here / "small").write_bytes(b"small")
    file(c1, "push", "large", "small", "c1/tmp/")
    file(c1, "pull", "c1/tmp/large", "back")
    assert (here / "back").read_bytes() == content
    assert file(c1, "pull", "c1/tmp/small", "-")[0] == b"small"
    (here / "tree").mkdir()
    (here / "tree/large").write_bytes(content)
    file(c1, "push", "-r", "tree", "c1/tmp/")
    file(c1, "pull", "c1/tmp/tree/large", "again")
    assert (here / "again").read_bytes() == content


WITHOUT_ARCHIVES = """
import sys
from utsuwa.cli.main import main
from utsuwa.cli.remote_files import RemoteFiles

RemoteFiles.takes_archives = lambda self: False
sys.exit(main())
"""


def test_whole_trees_for_a_server_that_takes_no_archives(c1: Daemon, here: Path) -> None:
    """As LXD and Incus: each file is a request."""
    (here / "tree/below").mkdir(parents=True)
    (here / "tree/below/file").write_bytes(b"content")
    (here / "tree/link").symlink_to("below/file")
    (here / "tree/large").write_bytes(os.urandom(3_000_000))
    pushing = [sys.executable, "-c", WITHOUT_ARCHIVES, "file", "push", "-r", "tree", "c1/tmp/"]
    for _ in range(2):  # the second time, all of it exists
        pushed = subprocess.run(pushing, env=environment(c1), capture_output=True, timeout=60)
        assert pushed.returncode == 0, pushed.stderr
    assert inside(c1, "cat /tmp/tree/link") == "content"
    pulling = [sys.executable, "-c", WITHOUT_ARCHIVES, "file", "pull", "-r", "c1/tmp/tree", "back"]
    subprocess.run(pulling, env=environment(c1), capture_output=True, timeout=60, check=True)
    assert tree(here / "back/tree") == tree(here / "tree")


def test_a_full_disk(c1: Daemon, here: Path) -> None:
    (here / "tree").mkdir()
    (here / "tree/large").write_bytes(os.urandom(20_000_000))
    inside(c1, "mkdir /full; mount -t tmpfs -o size=5m none /full")
    for arguments in (["tree/large", "c1/full/large"], ["-r", "tree", "c1/full/"]):
        _, said = file(c1, "push", *arguments, status=1)
        assert "No space left while writing /full/" in said
    assert inside(c1, "find /full -type f") == ""


def test_many_small_files(c1: Daemon, here: Path) -> None:
    """They are sent ahead of the replies, of which each counts."""
    (here / "many").mkdir()
    for number in range(100):
        (here / f"many/{number}").write_text(str(number))
    file(c1, "push", "-r", "many", "c1/tmp/")
    assert inside(c1, "cat /tmp/many/*").encode() == b"".join(
        str(number).encode() for number in sorted(range(100), key=str)
    )
    inside(c1, "rm -r /tmp/many; mkdir -p /tmp/many/50")
    said = file(c1, "push", "-r", "many", "c1/tmp/", status=1)[1]
    assert said == "Error: /tmp/many/50: a directory, not a regular file: name a file in it\n"

"""Files of instances over the API: running and stopped instances, confined, and nothing is left behind."""

from __future__ import annotations

import json
import os
import threading
import time
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote_from_bytes

import pytest

from tests.support import leaks
from tests.support.api import Reply, UnixConnection
from tests.support.api import request as send
from tests.support.daemon import Daemon
from tests.support.monitor import heard
from tests.support.netbox import until
from tests.system.test_lxc_instances import background
from utsuwa.host.helper.calls import BUFFER

pytestmark = pytest.mark.root


class Files:
    """The files of one instance."""

    def __init__(self, daemon: Daemon, name: str) -> None:
        self.daemon = daemon
        self.name = name

    def url(self, path: str | bytes) -> str:
        return f"/1.0/instances/{self.name}/files?path={quote_from_bytes(os.fsencode(path))}"

    def ask(self, method: str, path: str | bytes, body: bytes | None = None, **headers: str) -> Reply:
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        return send(self.daemon.socket, method, self.url(path), body, headers=given)

    def get(self, path: str | bytes) -> Reply:
        return self.ask("GET", path)

    def push(self, path: str | bytes, body: bytes = b"", **headers: str) -> Reply:
        return self.ask("POST", path, body, **headers)


@pytest.fixture(params=["running", "stopped"])
def files(shared_daemon: Daemon, busybox: str, request: pytest.FixtureRequest) -> Files:
    shared_daemon.lxc("launch" if request.param == "running" else "init", busybox, "c1")
    return Files(shared_daemon, "c1")


@pytest.fixture
def running(shared_daemon: Daemon, busybox: str) -> Files:
    shared_daemon.lxc("launch", busybox, "c1")
    return Files(shared_daemon, "c1")


@pytest.fixture
def stopped(shared_daemon: Daemon, busybox: str) -> Files:
    shared_daemon.lxc("init", busybox, "c1")
    return Files(shared_daemon, "c1")


def is_mounted(daemon: Daemon) -> bool:
    return any("/containers/c1/rootfs" in line for line in leaks.mounts_below(daemon.dir))


def test_pushed_file_is_pulled_unchanged(files: Files) -> None:
    assert files.push("/tmp/f", b"hello", X_LXD_uid="5", X_LXD_gid="6", X_LXD_mode="0604").status == 200
    reply = files.get("/tmp/f")
    assert (reply.status, reply.body) == (200, b"hello")
    for prefix in ("x-lxd-", "x-incus-"):
        seen = [reply.headers[prefix + name] for name in ("uid", "gid", "mode", "type")]
        assert seen == ["5", "6", "0604", "file"]
    assert reply.headers["content-type"] == "application/octet-stream"
    assert reply.headers["content-disposition"] == "inline;filename=f"
    head = files.ask("HEAD", "/tmp/f")
    assert (head.status, head.body, head.headers["x-lxd-mode"]) == (200, b"", "0604")


def test_an_existing_file_keeps_owner_and_mode(files: Files) -> None:
    files.push("/tmp/f", b"a longer text", X_LXD_uid="5", X_LXD_mode="0600")
    files.push("/tmp/f", b"short", X_LXD_uid="7", X_LXD_mode="0777")
    reply = files.get("/tmp/f")
    assert (reply.body, reply.headers["x-lxd-uid"], reply.headers["x-lxd-mode"]) == (b"short", "5", "0600")
    files.push("/tmp/f", b" and more", X_LXD_write="append")
    assert files.get("/tmp/f").body == b"short and more"


def test_directories_and_symlinks(files: Files) -> None:
    assert files.push("/tmp/d", X_LXD_type="directory").status == 200
    assert files.push("/tmp/d", X_LXD_type="directory", X_LXD_mode="0700").status == 200
    assert files.ask("HEAD", "/tmp/d").headers["x-lxd-mode"] == "0750"
    assert files.push("/tmp/d/link", b"/etc/passwd", X_LXD_type="symlink").status == 200
    reply = files.get("/tmp/d/link")
    assert (reply.body, reply.headers["x-lxd-type"], reply.headers["x-lxd-mode"]) == (
        b"/etc/passwd",
        "symlink",
        "0777",
    )
    files.push("/tmp/d/a", b"")
    reply = files.get("/tmp/d")
    assert (reply.metadata, reply.headers["x-lxd-type"]) == (["a", "link"], "directory")
    assert files.push("/tmp/d/link", b"/etc/passwd", X_LXD_type="symlink").status == 200
    assert files.push("/tmp/d/link", b"x", X_LXD_type="symlink").status == 409
    assert files.push("/tmp/d/a", X_LXD_type="directory").status == 409
    reply = files.ask("DELETE", "/tmp/d")
    assert (reply.status, reply.error) == (400, "/tmp/d: Directory not empty")
    for path in ("/tmp/d/link", "/tmp/d/a", "/tmp/d"):
        assert files.ask("DELETE", path).status == 200
    assert files.ask("DELETE", "/tmp/d").status == 404
    assert files.get("/etc/passwd").status == 200


def test_large_files_are_streamed(files: Files, tmp_path: Path) -> None:
    content = os.urandom(3 * BUFFER + 17)
    assert files.push("/tmp/large", content).status == 200
    reply = files.get("/tmp/large")
    assert reply.body == content
    assert reply.headers["content-length"] == str(len(content))
    files.push("/tmp/large", content[:BUFFER], X_LXD_write="append")
    assert files.ask("HEAD", "/tmp/large").status == 200
    assert len(files.get("/tmp/large").body) == 4 * BUFFER + 17


@pytest.mark.parametrize(
    "path", ["../../etc/passwd", "/etc/../../etc/passwd", "etc/passwd", "/out/etc/passwd"]
)
def test_paths_stay_inside(files: Files, path: str) -> None:
    files.push("/out", b"/../../..", X_LXD_type="symlink")
    assert b"/home/user" in files.get(path).body
    assert files.push(path, b"changed").status == 200
    assert files.get("/etc/passwd").body == b"changed"
    assert Path("/etc/passwd").read_text() != "changed"


def test_names_of_any_bytes(files: Files) -> None:
    for name in (b"a b", b"%41+;&", b"new\nline", b"\xff\xfe", "ü".encode()):
        assert files.push(b"/tmp/" + name, name).status == 200
        assert files.get(b"/tmp/" + name).body == name
    names = json.loads(files.get("/tmp").body)["metadata"]
    assert {os.fsencode(name) for name in names} == {
        b"a b",
        b"%41+;&",
        b"new\nline",
        b"\xff\xfe",
        b"\xc3\xbc",
    }


@pytest.mark.parametrize(
    ("headers", "reason"),
    [
        ({"X_LXD_type": "fifo"}, "Bad file type: fifo"),
        ({"X_LXD_write": "twice"}, "Bad file write mode: twice"),
        ({"X_LXD_mode": "rwx"}, "Invalid mode 'rwx'"),
        ({"X_LXD_mode": "4755"}, "Invalid mode '4755': use a number from 0 to 0o7777"),
        ({"X_LXD_uid": "-1"}, "Invalid uid '-1'"),
        ({"X_LXD_gid": "4294967295"}, "Invalid gid '4294967295'"),
        ({"X_LXD_uid": "4294967294"}, "Invalid argument"),
        ({"X_LXD_type": "symlink"}, "No target given"),
    ],
)
def test_bad_headers_change_nothing(stopped: Files, headers: dict[str, str], reason: str) -> None:
    reply = stopped.push("/tmp/f", b"", **headers)
    assert reply.status == 400
    assert reason in reply.error
    assert stopped.get("/tmp/f").status == 404


def test_bad_paths(running: Files) -> None:
    assert running.get("").error == "Missing path argument"
    assert running.get("/nope").error == "/nope does not exist"
    assert running.get("/etc/passwd/x").status == 404
    assert running.get("/tmp/a\0b").status == 400
    assert running.get("/" + 300 * "x").status == 400
    assert running.push("/no/such/f", b"x").status == 404
    assert running.push("/etc", b"x").error == "/etc: a directory, not a regular file: name a file in it"
    for path in ("/", "..", "/tmp/.."):
        assert running.ask("DELETE", path).status == 400
    running.push("/tmp/loop", b"loop", X_LXD_type="symlink")
    assert running.push("/tmp/loop", b"x").status == 400
    assert Files(running.daemon, "none").get("/etc").status == 404


def test_special_files_are_refused_by_their_type(running: Files) -> None:
    script = "mkfifo /tmp/fifo; ln -s fifo /tmp/link; nc -l -U /tmp/socket & sleep 0.2"
    running.daemon.lxc("exec", "c1", "--", "sh", "-c", script)
    for path, kind in (("/dev/null", "device"), ("/tmp/fifo", "FIFO")):
        assert running.get(path).error == f"{path}: a {kind}, not a regular file"
        assert running.ask("HEAD", path).status == 400
        assert running.push(path, b"x").error == f"{path}: a {kind}, not a regular file"
    assert running.push("/tmp/link", b"x").error == "/tmp/link: a FIFO, not a regular file"
    assert running.ask("DELETE", "/tmp/fifo").status == 200


def test_a_sparse_file_is_described_at_once(running: Files) -> None:
    running.daemon.lxc("exec", "c1", "--", "truncate", "-s", "5G", "/tmp/sparse")
    head = running.ask("HEAD", "/tmp/sparse")
    assert (head.status, head.body, head.headers["x-lxd-type"]) == (200, b"", "file")


def test_requests_for_headers_have_no_body(files: Files) -> None:
    """Whatever the path is, and also if nothing is there (lxd#11383)."""
    files.push("/tmp/file", b"content")
    for path, status in (("/tmp/file", 200), ("/tmp", 200), ("/bin/sh", 200), ("/tmp/none", 404)):
        reply = files.ask("HEAD", path)
        assert (reply.status, reply.body) == (status, b""), path
        assert ("x-lxd-mode" in reply.headers) == (status == 200), path


def test_files_of_the_kernel_are_accessed_with_the_rights_of_the_container(running: Files) -> None:
    assert running.get("/proc/version").body.startswith(b"Linux")
    assert running.get("/proc/self/root/etc").status == 404
    core_pattern = Path("/proc/sys/kernel/core_pattern").read_text()
    assert running.push("/proc/sys/kernel/core_pattern", b"x").status == 403
    assert Path("/proc/sys/kernel/core_pattern").read_text() == core_pattern


def test_a_stopped_instance_is_unmounted_again(stopped: Files) -> None:
    stopped.push("/tmp/f", b"x")
    until(lambda: not is_mounted(stopped.daemon))
    stopped.daemon.lxc("start", "c1")
    assert stopped.get("/tmp/f").body == b"x"
    stopped.daemon.lxc("stop", "-f", "c1")
    assert stopped.get("/tmp/f").body == b"x"
    stopped.daemon.lxc("delete", "c1")
    assert not is_mounted(stopped.daemon)


class SlowPush:
    """A push whose content does not come to its end."""

    def __init__(
        self,
        files: Files,
        path: str = "/tmp/slow",
        *,
        write: str = "overwrite",
        kind: str = "file",
        beginning: bytes = b"",
        size: int = 3 * BUFFER,
    ) -> None:
        self._rest = size - 2 * BUFFER
        self.connection = UnixConnection(files.daemon.socket, 30)
        self.connection.putrequest("POST", files.url(path))
        self.connection.putheader("Content-Length", str(len(beginning) + size))
        self.connection.putheader("X-LXD-type", kind)
        self.connection.putheader("X-LXD-write", write)
        self.connection.endheaders()
        self.connection.send(beginning + bytes(2 * BUFFER))

    def finish(self) -> tuple[int, str]:
        """Send the rest; return the status of the reply and its error."""
        with suppress(BrokenPipeError, ConnectionResetError):  # the reply may come before the end
            self.connection.send(bytes(self._rest))
        reply = self.connection.getresponse()
        said = json.loads(reply.read())
        self.connection.close()
        return reply.status, said["error"]

    @staticmethod
    def is_under_way(files: Files) -> bool:
        """Whether the daemon has received a part, and so holds a file that has no name yet."""
        found = []
        for entry in Path(f"/proc/{files.daemon.pid}/fd").iterdir():
            with suppress(FileNotFoundError):
                found.append(str(entry.readlink()))
        return any("/#" in target for target in found)


SIZES = pytest.mark.parametrize("size", [3 * BUFFER, 20 * BUFFER], ids=["read", "spliced"])
"""Large uploads are read from the socket by the kernel."""


@SIZES
def test_content_that_is_cut_off_changes_nothing(files: Files, size: int) -> None:
    push = SlowPush(files, size=size)
    until(lambda: push.is_under_way(files))
    assert files.get("/tmp/slow").status == 404
    push.connection.close()
    until(lambda: not push.is_under_way(files))
    assert files.get("/tmp").metadata == []
    files.push("/tmp/slow", b"old")
    for write in ("overwrite", "append"):
        push = SlowPush(files, write=write, size=size)
        until(lambda: push.is_under_way(files))  # noqa: B023
        push.connection.close()
        until(lambda: not push.is_under_way(files))  # noqa: B023
        assert files.get("/tmp/slow").body == b"old"
    assert files.get("/tmp").metadata == ["slow"]


@pytest.mark.parametrize("size", [100, 3 * BUFFER], ids=["small", "large"])
def test_an_existing_file_keeps_its_inode_and_its_other_names(files: Files, size: int) -> None:
    """As in LXD: programs that have it open, and files mounted onto it, go on with the same file."""
    files.push("/tmp/one", os.urandom(size + 10), X_LXD_mode="0600")
    inside = files.daemon.get("/1.0/instances/c1")["status"] == "Running"
    if inside:
        files.daemon.lxc("exec", "c1", "--", "ln", "/tmp/one", "/tmp/two")
    content = os.urandom(size)
    assert files.push("/tmp/one", content, X_LXD_mode="0777").status == 200
    assert files.get("/tmp/one").body == content
    assert files.get("/tmp/one").headers["x-lxd-mode"] == "0600"
    if inside:
        assert files.get("/tmp/two").body == content
    assert files.push("/tmp/one", content, X_LXD_write="append").status == 200
    assert files.get("/tmp/one").body == content * 2
    assert files.get("/tmp").metadata == (["one", "two"] if inside else ["one"])


@pytest.mark.parametrize("size", [8 * BUFFER, 12 * BUFFER + 1])
def test_a_large_upload_ends_its_connection(running: Files, size: int) -> None:
    content = os.urandom(size)
    for write, expected in (("overwrite", content), ("append", content * 2)):
        reply = running.push("/tmp/large", content, X_LXD_write=write)
        assert (reply.status, reply.headers.get("connection")) == (200, "close")
        assert running.get("/tmp/large").body == expected


def test_a_file_that_appears_meanwhile_is_overwritten(running: Files) -> None:
    push = SlowPush(running)
    until(lambda: push.is_under_way(running))
    running.push("/tmp/slow", b"other", X_LXD_mode="0600")
    assert push.finish() == (200, "")
    reply = running.get("/tmp/slow")
    assert (reply.body, reply.headers["x-lxd-mode"]) == (bytes(3 * BUFFER), "0600")


def test_a_link_that_appears_meanwhile_leads_nowhere_else(running: Files) -> None:
    push = SlowPush(running)
    until(lambda: push.is_under_way(running))
    running.push("/tmp/slow", b"/../../../../../etc/made", X_LXD_type="symlink")
    assert push.finish() == (200, "")
    assert running.get("/tmp/slow").headers["x-lxd-type"] == "symlink"
    assert len(running.get("/etc/made").body) == 3 * BUFFER
    assert not Path("/etc/made").exists()


def test_a_special_file_that_appears_meanwhile_is_refused(running: Files) -> None:
    push = SlowPush(running)
    until(lambda: push.is_under_way(running))
    running.daemon.lxc("exec", "c1", "--", "mkfifo", "/tmp/slow")
    assert push.finish() == (400, "/tmp/slow: a FIFO, not a regular file")
    assert running.get("/tmp").metadata == ["slow"]


def test_a_directory_that_is_removed_meanwhile(running: Files) -> None:
    running.push("/tmp/dir", X_LXD_type="directory")
    push = SlowPush(running, "/tmp/dir/slow")
    until(lambda: push.is_under_way(running))
    assert running.ask("DELETE", "/tmp/dir").status == 200
    status, error = push.finish()
    assert status == 404
    assert error.startswith("/tmp/dir/slow cannot be created: its directory does not exist")
    assert running.get("/tmp").metadata == []


def test_a_killed_daemon_leaves_no_part_of_a_file(files: Files) -> None:
    files.push("/tmp/old", b"old")
    pushes = [SlowPush(files, path) for path in ("/tmp/slow", "/tmp/old")]
    until(lambda: pushes[0].is_under_way(files))
    files.daemon.kill()
    files.daemon.start()
    assert files.get("/tmp").metadata == ["old"]
    assert files.get("/tmp/old").body == b"old"
    for push in pushes:
        push.connection.close()


@SIZES
def test_a_transfer_is_cut_short_by_a_stop(running: Files, size: int) -> None:
    push = SlowPush(running, size=size)
    until(lambda: push.is_under_way(running))
    running.daemon.lxc("stop", "-f", "c1")
    status, error = push.finish()
    assert status == 409
    assert "try again" in error
    running.daemon.lxc("start", "c1")
    assert running.get("/tmp").metadata == []


@SIZES
def test_a_start_waits_for_a_transfer(stopped: Files, size: int) -> None:
    push = SlowPush(stopped, size=size)
    until(lambda: push.is_under_way(stopped))
    start = threading.Thread(target=stopped.daemon.lxc, args=("start", "c1"))
    start.start()
    time.sleep(0.1)
    assert push.finish() == (200, "")
    start.join()
    assert stopped.get("/tmp/slow").body == bytes(size)
    assert stopped.daemon.get("/1.0/instances/c1")["status"] == "Running"


def test_many_requests_at_once(files: Files) -> None:
    errors: list[str] = []

    def work(number: int) -> None:
        for part in range(5):
            path, data = f"/tmp/{number}-{part}", os.urandom(1000)
            if files.push(path, data).status != 200 or files.get(path).body != data:
                errors.append(path)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


def test_lifecycle_events(running: Files) -> None:
    with background(running.daemon, "monitor", "--type=lifecycle", "--format=json") as monitor:
        lines = heard(running.daemon, monitor)
        running.push("/tmp/f", b"x")
        running.get("/tmp/f")
        running.ask("DELETE", "/tmp/f")
        events = [json.loads(next(lines))["metadata"] for _ in range(3)]
    assert {event["action"] for event in events} == {  # in any order: the client prints them in parallel
        "instance-file-pushed",
        "instance-file-retrieved",
        "instance-file-deleted",
    }
    assert all(event["source"] == "/1.0/instances/c1" for event in events)
    assert all(event["context"] == {"path": "/tmp/f"} for event in events)


def test_a_full_disk_leaves_no_part_of_a_new_file(running: Files) -> None:
    script = "mkdir /small; mount -t tmpfs -o size=2m none /small"
    running.daemon.lxc("exec", "c1", "--", "sh", "-c", script)
    reply = running.push("/small/file", bytes(3 * BUFFER))
    assert (reply.status, reply.error) == (507, "No space left while writing /small/file")
    assert running.get("/small").metadata == []
    running.push("/small/file", b"old")
    assert running.push("/small/file", bytes(3 * BUFFER)).status == 507
    assert running.push("/small/file", bytes(3 * BUFFER), X_LXD_write="append").status == 507
    assert running.get("/small").metadata == ["file"]
    assert running.get("/small/file").body == b"old"


def test_a_disk_that_a_small_file_fills_keeps_the_old_content(running: Files) -> None:
    script = "mkdir /small; mount -t tmpfs -o size=64k none /small"
    running.daemon.lxc("exec", "c1", "--", "sh", "-c", script)
    running.push("/small/file", b"old")
    for write in ("overwrite", "append"):
        assert running.push("/small/file", os.urandom(100_000), X_LXD_write=write).status == 507
        assert running.get("/small/file").body == b"old"
    assert running.push("/small/new", os.urandom(100_000)).status == 507
    assert running.get("/small").metadata == ["file"]
    assert running.push("/small/file", os.urandom(30_000)).status == 200


def test_a_read_only_directory_with_a_file_that_can_be_written(running: Files) -> None:
    """As a file that is mounted: there is no place beside it for the new content."""
    script = (
        "mkdir /ro /rw; echo one > /rw/file; mount --bind /ro /ro; touch /ro/file;"
        "mount --bind /rw/file /ro/file; mount -o remount,bind,ro /ro"
    )
    running.daemon.lxc("exec", "c1", "--", "sh", "-c", script)
    content = os.urandom(3 * BUFFER)
    assert running.push("/ro/file", content).status == 200
    assert running.get("/rw/file").body == content
    assert running.push("/ro/new", content).status == 403


def test_a_privileged_container(shared_daemon: Daemon, busybox: str) -> None:
    shared_daemon.lxc("launch", busybox, "c1", "-c", "security.privileged=true")
    files = Files(shared_daemon, "c1")
    assert files.push("/tmp/f", b"x", X_LXD_uid="5").status == 200
    assert files.get("/tmp/f").headers["x-lxd-uid"] == "5"
    reply = files.get("/proc/version")
    assert (reply.status, reply.error) == (
        403,
        "/proc/version cannot be accessed: a file system of the kernel",
    )


def test_the_daemon_s_end_unmounts(stopped: Files) -> None:
    daemon = stopped.daemon
    stopped.get("/etc/passwd")
    daemon.stop()
    assert not is_mounted(daemon)
    daemon.start()
    stopped.get("/etc/passwd")
    daemon.kill()
    assert is_mounted(daemon)
    daemon.start()
    assert not is_mounted(daemon)
    assert stopped.get("/etc/passwd").status == 200

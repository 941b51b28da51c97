"""Archives that are pushed to instances: what is unpacked or refused, and what stays if they break off."""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.daemon import Daemon
from tests.support.monitor import heard
from tests.support.netbox import until
from tests.system.test_instance_files import Files, SlowPush
from tests.system.test_lxc_instances import background
from utsuwa.host.helper.calls import BUFFER

pytestmark = pytest.mark.root

NO_DIRECTORY = (
    "{} cannot be created: its directory does not exist: create that first, or use `utsuwa file push -p`"
)
FORMATS = {"pax": tarfile.PAX_FORMAT, "gnu": tarfile.GNU_FORMAT, "ustar": tarfile.USTAR_FORMAT}


@pytest.fixture
def running(shared_daemon: Daemon, busybox: str) -> Files:
    shared_daemon.lxc("launch", busybox, "c1")
    return Files(shared_daemon, "c1")


def archive(
    *members: tarfile.TarInfo | tuple[tarfile.TarInfo, bytes], form: int = tarfile.PAX_FORMAT
) -> bytes:
    written = io.BytesIO()
    with tarfile.open(fileobj=written, mode="w", format=form) as tar:
        for member in members:
            info, content = member if isinstance(member, tuple) else (member, b"")
            tar.addfile(info, io.BytesIO(content))
    return written.getvalue()


def file(path: str, content: bytes, **fields: int) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(path)
    info.size = len(content)
    for name, value in fields.items():
        setattr(info, name, value)
    return info, content


def other(path: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(path)
    info.type, info.linkname, info.mode = kind, target, 0o755
    return info


def unpack(files: Files, path: str, content: bytes) -> tuple[int, str]:
    reply = files.push(path, content, X_LXD_type="archive")
    return reply.status, reply.json.get("error", "")


@pytest.mark.parametrize("form", FORMATS.values(), ids=FORMATS)
def test_files_directories_and_symlinks(running: Files, form: int) -> None:
    large = os.urandom(2 * BUFFER + 777)
    long = f"{'d' * 90}/{'f' * 90}"
    content = archive(
        other("./", tarfile.DIRTYPE),
        other("dir", tarfile.DIRTYPE),
        file("dir/one", b"1", uid=5, gid=6, mode=0o640),
        file("dir/large", large),
        file("empty", b""),
        other("d" * 90, tarfile.DIRTYPE),
        file(long, b"long"),
        other("link", tarfile.SYMTYPE, "dir/one"),
        form=form,
    )
    for _ in range(2):  # the second time, all of it exists
        assert unpack(running, "/tmp", content) == (200, "")
        one = running.get("/tmp/dir/one")
        seen = [one.headers[f"x-lxd-{name}"] for name in ("uid", "gid", "mode")]
        assert (one.body, seen) == (b"1", ["5", "6", "0640"])
        assert running.get("/tmp/dir/large").body == large
        assert running.get("/tmp/empty").body == b""
        assert running.get(f"/tmp/{long}").body == b"long"
        assert running.get("/tmp/link").body == b"dir/one"
        assert sorted(running.get("/tmp").metadata) == ["d" * 90, "dir", "empty", "link"]


def test_existing_files_are_overwritten_and_symlinks_replaced(running: Files) -> None:
    running.push("/tmp/one", b"a longer one", X_LXD_mode="0600")
    running.push("/tmp/link", b"old", X_LXD_type="symlink")
    content = archive(file("one", b"new"), other("link", tarfile.SYMTYPE, "new"))
    assert unpack(running, "/tmp", content) == (200, "")
    assert running.get("/tmp/one").body == b"new"
    assert running.get("/tmp/one").headers["x-lxd-mode"] == "0600"
    assert running.get("/tmp/link").body == b"new"
    refused = archive(other("one", tarfile.SYMTYPE, "x"))
    assert unpack(running, "/tmp", refused) == (409, "/tmp/one already exists")
    refused = archive(other("one", tarfile.DIRTYPE))
    assert unpack(running, "/tmp", refused) == (409, "/tmp/one already exists")
    refused = archive(file("one/two", b"x"))
    assert unpack(running, "/tmp", refused) == (404, NO_DIRECTORY.format("/tmp/one/two"))


@pytest.mark.parametrize(
    ("member", "reason"),
    [
        (file("../up", b"x"), "a path in an archive cannot contain '..'"),
        (file("a/../../up", b"x"), "a path in an archive cannot contain '..'"),
        (other("fifo", tarfile.FIFOTYPE), "only files, directories and symlinks are supported"),
        (other("node", tarfile.CHRTYPE), "only files, directories and symlinks are supported"),
        (other("hard", tarfile.LNKTYPE, "first"), "only files, directories and symlinks are supported"),
    ],
    ids=["up", "up-inside", "fifo", "device", "hard-link"],
)
def test_what_is_refused_comes_after_what_is_unpacked(
    running: Files,
    member: tarfile.TarInfo | tuple[tarfile.TarInfo, bytes],
    reason: str,
) -> None:
    content = archive(file("first", b"1"), member, file("last", b"2"))
    status, error = unpack(running, "/tmp", content)
    assert (status, reason in error) == (400, True), error
    assert running.get("/tmp").metadata == ["first"]


def test_a_symlink_of_an_archive_leads_to_the_container_s_own_files(running: Files) -> None:
    content = archive(other("out", tarfile.SYMTYPE, "/../../../etc"), file("out/made-by-archive", b"x"))
    assert unpack(running, "/tmp", content) == (200, "")
    assert running.get("/etc/made-by-archive").body == b"x"
    assert not Path("/etc/made-by-archive").exists()


def test_special_files_in_the_way(running: Files) -> None:
    running.daemon.lxc("exec", "c1", "--", "mkfifo", "/tmp/fifo")
    assert unpack(running, "/tmp", archive(file("fifo", b"x"))) == (
        400,
        "/tmp/fifo: a FIFO, not a regular file",
    )


CUTS: dict[str, Callable[[bytes], bytes]] = {
    "in a header": lambda whole: whole[:1300],
    "in a file": lambda whole: whole[:2000],
    "no archive": lambda _: b"x" * 600,
    "a damaged header": lambda whole: whole[:1030] + b"?" + whole[1031:],
}


@pytest.mark.parametrize("cut", CUTS.values(), ids=CUTS)
def test_archives_that_are_not_whole(running: Files, cut: Callable[[bytes], bytes]) -> None:
    whole = archive(file("first", b"1"), file("second", bytes(1000)), form=tarfile.USTAR_FORMAT)[:3584]
    status, error = unpack(running, "/tmp", cut(whole))
    assert status == 400
    assert error.startswith("/tmp: ")
    assert "second" not in running.get("/tmp").metadata


def test_a_connection_that_breaks_leaves_whole_files_only(running: Files) -> None:
    running.push("/tmp/old", b"old")
    info, _ = file("old", b"")
    info.size = 3 * BUFFER
    head = archive(file("first", b"1"))[:1024] + info.tobuf(tarfile.USTAR_FORMAT)
    push = SlowPush(running, "/tmp", kind="archive", beginning=head)
    try:
        until(lambda: "first" in running.get("/tmp").metadata)
    finally:
        push.connection.close()
    assert running.get("/tmp/old").body == b"old"
    assert running.get("/tmp").metadata == ["first", "old"]


def test_a_full_disk_names_the_file(running: Files) -> None:
    script = "mkdir /small; mount -t tmpfs -o size=64k none /small"
    running.daemon.lxc("exec", "c1", "--", "sh", "-c", script)
    content = archive(file("first", b"1"), file("big", bytes(3 * BUFFER)), file("last", b"2"))
    assert unpack(running, "/small", content) == (507, "No space left while writing /small/big")
    assert running.get("/small").metadata == ["first"]


def test_an_event_for_each_file(running: Files) -> None:
    with background(running.daemon, "monitor", "--type=lifecycle", "--format=json") as monitor:
        lines = heard(running.daemon, monitor)
        unpack(running, "/tmp", archive(other("dir", tarfile.DIRTYPE), file("dir/one", b"1")))
        seen = [json.loads(next(lines))["metadata"] for _ in range(2)]
    assert [event["action"] for event in seen] == ["instance-file-pushed"] * 2
    assert {event["context"]["path"] for event in seen} == {"/tmp/dir", "/tmp/dir/one"}


def test_a_stopped_instance(shared_daemon: Daemon, busybox: str) -> None:
    shared_daemon.lxc("init", busybox, "c1")
    files = Files(shared_daemon, "c1")
    assert unpack(files, "/tmp", archive(file("one", b"1"))) == (200, "")
    assert files.get("/tmp/one").body == b"1"


def test_a_missing_instance(shared_daemon: Daemon) -> None:
    assert unpack(Files(shared_daemon, "nope"), "/tmp", archive(file("one", b"1")))[0] == 404

"""What programs see and may do in the sandbox in which archives are read."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from utsuwa.host.archives import sandbox
from utsuwa.host.archives.check import check_image
from utsuwa.host.archives.sandbox import UnpackLimits, run_job

pytestmark = pytest.mark.root

LIMITS = UnpackLimits(size=2**20, entries=100, seconds=30)
WRITER = {"chown", "dac_override", "dac_read_search", "fowner", "fsetid", "mknod", "setfcap"}
NUMBERS = {
    0: "chown",
    1: "dac_override",
    2: "dac_read_search",
    3: "fowner",
    4: "fsetid",
    27: "mknod",
    31: "setfcap",
}
LOOK = """
import ctypes, json, os, resource, socket, struct, sys
libc = ctypes.CDLL(None, use_errno=True)

def attempt(action, *arguments):
    try:
        action(*arguments)
    except OSError as error:
        return error.strerror
    return ""

def mask():
    data = ctypes.create_string_buffer(24)
    libc.capget(struct.pack("=II", 0x20080522, 0), data)
    low, _, inherited, high, _, _ = struct.unpack("=6I", data.raw)
    return [low | high << 32, inherited]

def port(number):
    with socket.create_connection(("127.0.0.1", number), timeout=30):
        pass

def mount():
    if libc.mount(b"none", b"/target", b"tmpfs", 0, None):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

print(json.dumps({
    "root": sorted(os.listdir("/")),
    "links": {name: os.readlink("/" + name) for name in os.listdir("/") if os.path.islink("/" + name)},
    "archive": open("/archive", "rb").read().decode(),
    "target": sorted(os.listdir("/target")),
    "here": os.getcwd(),
    "pid": os.getpid(),
    "host": socket.gethostname(),
    "interfaces": [name for _, name in socket.if_nameindex()],
    "environment": dict(os.environ),
    "descriptors": [fd for fd in range(64) if not attempt(os.fstat, fd)],
    "capabilities": mask()[0],
    "inheritable": mask()[1],
    "bounding": sum(1 << n for n in range(64) if libc.prctl(23, n, 0, 0, 0) == 1),
    "no_new_privs": libc.prctl(39, 0, 0, 0, 0),
    "limits": [resource.getrlimit(kind)[0] for kind in
               (resource.RLIMIT_CORE, resource.RLIMIT_FSIZE, resource.RLIMIT_AS)],
    "writes": {path: attempt(open, path, "w") for path in ("/x", "/usr/x", "/archive", "/target/x", "/base")},
    "mount": attempt(mount),
    "chroot": attempt(os.chroot, "/usr"),
    "connect": attempt(port, int(sys.argv[1])),
    "signal": attempt(os.kill, int(sys.argv[2]), 0),
}), file=sys.stderr)
"""


def words(port: int) -> tuple[str, ...]:
    """What is run in the place of a decompressor."""
    return "python3", "-I", "-S", "-c", LOOK, str(port), str(os.getpid())


def seen(stderr: bytes) -> Any:
    return json.loads(stderr.splitlines()[0])


def names(mask: int) -> set[str]:
    return {NUMBERS.get(number, str(number)) for number in range(64) if mask >> number & 1}


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    path = tmp_path / "private" / "archive"
    path.parent.mkdir(mode=0o700)
    path.write_text("content")
    path.chmod(0o600)
    return path


@pytest.fixture
def port() -> Any:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


def test_a_check_sees_the_archive_and_the_systems_programs_only(archive: Path, port: int) -> None:
    ended = run_job(archive, None, LIMITS, "check", "rootfs", "100", "1000", *words(port))
    found = seen(ended.stderr)
    programs = {
        name for name in ("usr", "bin", "sbin", "lib", "lib32", "lib64", "libx32") if Path("/", name).is_dir()
    }
    assert set(found["root"]) == {"archive", "target"} | programs
    assert found["links"] == {n: str(Path("/", n).readlink()) for n in programs if Path("/", n).is_symlink()}
    assert (found["archive"], found["target"], found["here"]) == ("content", [], "/target")
    assert found["pid"] < 10
    assert found["interfaces"] == ["lo"]
    assert set(found["environment"]) - {"LC_CTYPE"} == {"PATH", "LANG", "HOME", "TMPDIR", "TZ"}
    assert found["descriptors"] == [0, 1, 2]
    assert found["connect"]
    assert found["signal"] == "No such process"


def test_a_check_has_no_rights_and_writes_nothing(archive: Path, port: int) -> None:
    ended = run_job(archive, None, LIMITS, "check", "rootfs", "100", "1000", *words(port))
    found = seen(ended.stderr)
    assert (found["capabilities"], found["inheritable"], found["bounding"]) == (0, 0, 0)
    assert found["no_new_privs"] == 1
    assert found["limits"] == [0, LIMITS.size + 1024, 4 * 2**30]
    assert all(found["writes"].values()), found["writes"]
    assert found["mount"] == found["chroot"] == "Operation not permitted"
    assert archive.read_text() == "content"


def test_unpacking_writes_its_target_only(archive: Path, port: int, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir(mode=0o700)
    program = words(port)
    sizes = "rootfs", "100", "1000"
    ended = run_job(archive, target, LIMITS, "tar", "/target/", *sizes, str(len(program)), *program)
    found = seen(ended.stderr)
    for kind in ("capabilities", "bounding"):
        assert names(found[kind]) == WRITER
    assert (found["inheritable"], found["no_new_privs"]) == (0, 1)
    assert {path for path, refused in found["writes"].items() if not refused} == {"/target/x"}
    assert found["mount"] == found["chroot"] == "Operation not permitted"
    assert [path.name for path in target.iterdir()] == ["x"]


def test_devices_in_the_target_cannot_be_opened(archive: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir()
    make = "import os; os.mknod('null', 0o20666, os.makedev(1, 3)); open('null')"
    program = ("python3", "-I", "-S", "-c", make)
    sizes = "rootfs", "100", "1000"
    ended = run_job(archive, target, LIMITS, "tar", "/target/", *sizes, str(len(program)), *program)
    assert b"Permission denied: 'null'" in ended.stderr


@pytest.mark.parametrize("who", ["the process", "its parent"])
def test_everything_in_the_sandbox_ends_with(archive: Path, who: str) -> None:
    waiting = ("sh", "-c", "echo begun >&2; exec sleep 1000")
    reading, writing = os.pipe()
    argv = sandbox.command(archive, None, LIMITS, "check", "rootfs", "100", "1000", *waiting)
    parent = "import os, subprocess, sys; a = sys.argv[1:]; a[5] = str(os.getpid()); subprocess.run(a)"
    if who == "its parent":
        argv = [sys.executable, "-c", parent, *argv]
    started = subprocess.Popen(argv, stderr=writing, stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL)
    os.close(writing)
    with os.fdopen(reading, "rb") as said:
        assert said.readline() == b"begun\n"
        started.kill()
        started.wait()
        assert said.read() == b"", "the last process that could write has ended"


def test_nothing_starts_for_a_parent_that_has_ended(archive: Path) -> None:
    argv = sandbox.command(archive, None, LIMITS, "check", "rootfs", "100", "1000", "echo")
    argv[5] = "1"
    ended = subprocess.run(argv, capture_output=True, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (1, b"", b"")


def test_a_program_that_is_missing_is_named(archive: Path) -> None:
    ended = run_job(archive, None, LIMITS, "check", "rootfs", "100", "1000", "no-such-program")
    assert b"no-such-program: command not found" in ended.stderr


def test_an_archive_that_is_gone_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        check_image(tmp_path / "gone", None)

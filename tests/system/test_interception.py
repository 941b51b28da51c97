"""System calls that are intercepted: done for the container within limits, by its own rights otherwise."""

from __future__ import annotations

import errno
import json
import os
import re
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.daemon import Daemon
from tests.support.netbox import until

pytestmark = pytest.mark.root

PREFIX = "security.syscalls.intercept."
KEYS = ("mknod", "setxattr", "sysinfo", "sched_setscheduler")
CALLS = """
import ctypes, errno, json, os, stat, sys, threading
libc = ctypes.CDLL(None, use_errno=True)
def number(result):
    return ctypes.get_errno() if result < 0 else 0
def mknod(path, mode, major, minor, at=-100):
    device = major << 8 | minor & 0xff | (minor & 0xfff00) << 12
    return number(libc.mknodat(at, path, mode, ctypes.c_uint64(device)))
def setxattr(path, name=b"trusted.overlay.opaque", value=b"y", call="setxattr"):
    return number(getattr(libc, call)(path, name, value, ctypes.c_size_t(len(value)), 0))
"""


FUSE = """
import struct
def fuse(path, kind, deaf):
    # Mount a file system that consists of its root; return the pid of its server, which reads all requests,
    # and does not answer those of the kinds in `deaf`.
    device = os.open("/dev/fuse", os.O_RDWR)
    options = b"fd=%d,rootmode=%o,user_id=0,group_id=0,allow_other" % (device, kind | 0o644)
    assert libc.mount(b"none", path, b"fuse", ctypes.c_ulong(0), options) == 0, ctypes.get_errno()
    pid = os.fork()
    if pid:
        os.close(device)
        return pid
    answers = {26: struct.pack("=IIIIHHI", 7, 31, 0, 0, 0, 0, 4096) + bytes(40), 14: bytes(16)}  # INIT, OPEN
    while True:
        _, request, number = struct.unpack_from("=IIQ", os.read(device, 1 << 17))
        if request not in {2, 36, 42, *deaf}:  # no answer is due to FORGET, INTERRUPT and BATCH_FORGET
            answer = answers.get(request)
            failure = 0 if answer else -errno.ENOSYS
            size = 16 + len(answer or b"")
            os.write(device, struct.pack("=IiQ", size, failure, number) + (answer or b""))
"""


_MAKE_NODE = """
import os, sys
from utsuwa.host import syscalls
syscalls.setfsgid(int(sys.argv[2]))
syscalls.setfsuid(int(sys.argv[2]))
syscalls.raise_capabilities()
os.mknod(sys.argv[1], 0o60666, os.stat("/").st_dev)
"""


class Guest:
    """A running busybox container with the host's Python in it."""

    def __init__(self, daemon: Daemon, image: str, name: str, *config: str) -> None:
        self.daemon = daemon
        self.name = name
        daemon.lxc("init", image, name, *(word for entry in config for word in ("-c", entry)))
        daemon.lxc(
            "config", "device", "add", name, "usr", "disk", "source=/usr", "path=/usr", "readonly=true"
        )
        for link in ("lib", "lib64"):
            daemon.lxc("config", "device", "add", name, link, "disk", f"source=/{link}", f"path=/{link}")
        daemon.lxc("start", name)

    def python(self, code: str, user: int = 0, timeout: float = 60) -> object:
        """Run Python inside and return the JSON that it prints; `CALLS` are there."""
        argv = ["/usr/bin/python3", "-S", "-c", CALLS + code]
        done = self.daemon.lxc("exec", self.name, "--user", str(user), "--", *argv, timeout=timeout)
        return json.loads(done.stdout)

    def run(self, *argv: str) -> str:
        return self.daemon.lxc("exec", self.name, "--", *argv).stdout

    @property
    def pid(self) -> int:
        return int(self.daemon.get(f"/1.0/instances/{self.name}/state")["pid"])


@pytest.fixture(scope="module")
def guest(module_daemon: Daemon, busybox: str) -> Iterator[Guest]:
    config = [*(f"{PREFIX}{key}=true" for key in KEYS), "limits.memory=100MiB"]
    yield Guest(module_daemon, busybox, "c1", *config)
    module_daemon.delete_instances()


# ---- mknod


def test_a_harmless_device_node_is_created_and_works(guest: Guest) -> None:
    found = guest.python("""
os.chdir("/tmp")
os.umask(0o027)
results = [mknod(b"null", 0o20666, 1, 3)]
at = os.open("/root", os.O_RDONLY)
results.append(mknod(b"zero", 0o20666, 1, 5, at))
os.write(os.open("null", os.O_WRONLY), b"gone")
zeros = os.read(os.open("/root/zero", os.O_RDONLY), 4)
made = os.stat("null")
print(json.dumps([results, zeros.hex(), oct(made.st_mode), made.st_rdev, made.st_uid, made.st_gid]))
""")
    assert found == [[0, 0], "00000000", "0o20640", os.makedev(1, 3), 0, 0]


def test_other_nodes_are_refused(guest: Guest) -> None:
    found = guest.python("""
os.chdir("/tmp")
print(json.dumps({
    "disk": mknod(b"disk", 0o60600, 8, 0),
    "memory": mknod(b"mem", 0o20600, 1, 1),
    "wide": mknod(b"wide", 0o20600, 1, 0x103),
    "root disk": mknod(b"root", 0o60600, 254, 0),
    "allowed": mknod(b"allowed", 0o20666, 1, 3),
    "again": mknod(b"allowed", 0o20666, 1, 3),
    "no folder": mknod(b"none/null", 0o20666, 1, 3),
    "dots": mknod(b"/tmp/..", 0o20666, 1, 3),
    "slash": mknod(b"/tmp/new/", 0o20666, 1, 3),
    "empty": mknod(b"", 0o20666, 1, 3),
    "long": mknod(b"x" * 5000, 0o20666, 1, 3),
    "no memory": mknod(1, 0o20666, 1, 3),
    "bad descriptor": mknod(b"x", 0o20666, 1, 3, 99),
    "on a file": mknod(b"x", 0o20666, 1, 3, os.open("/bin/busybox", os.O_RDONLY)),
    "read-only": mknod(b"/usr/null", 0o20666, 1, 3),
    "left": sorted(os.listdir("/tmp")),
}))
""")
    assert isinstance(found, dict)
    assert "disk" not in found.pop("left")
    assert {name: errno.errorcode.get(code, code) for name, code in found.items()} == {
        "disk": "EPERM",
        "memory": "EPERM",
        "wide": "EPERM",
        "root disk": "EPERM",
        "allowed": 0,
        "again": "EEXIST",
        "no folder": "ENOENT",
        "dots": "EEXIST",
        "slash": "ENOENT",
        "empty": "ENOENT",
        "long": "ENAMETOOLONG",
        "no memory": "EFAULT",
        "bad descriptor": "EBADF",
        "on a file": "ENOTDIR",
        "read-only": "EROFS",
    }


def test_an_image_s_nodes_of_other_devices_stay_closed(guest: Guest) -> None:
    """The mount of the root has no `nodev` with the key: the device cgroup takes its place."""
    root = guest.daemon.dir / "containers" / guest.name / "rootfs"
    subprocess.run([sys.executable, "-c", _MAKE_NODE, root / "tmp/disk", str(root.stat().st_uid)], check=True)
    said = guest.python("""
try:
    os.open("/tmp/disk", os.O_RDONLY)
except OSError as error:
    print(json.dumps(error.errno))
""")
    assert said in (errno.EPERM, errno.EACCES)


def test_users_without_the_capability_and_rights_get_nothing(guest: Guest) -> None:
    guest.run("mkdir", "-p", "/tmp/private", "/tmp/host")
    guest.run("chmod", "700", "/tmp/private")
    assert guest.python('print(json.dumps(mknod(b"/tmp/private/a", 0o20666, 1, 3)))') == 0
    mine = 'print(json.dumps([mknod(b"/tmp/mine", 0o20666, 1, 3), mknod(b"/tmp/private/b", 0o20666, 1, 3)]))'
    assert guest.python(mine, user=1000) == [errno.EPERM, errno.EACCES]
    # In a user namespace of its own a user has the capability, but still its own rights.
    nested = f"libc.unshare(0x10000000)\n{mine}"
    assert guest.python(nested, user=1000) == [0, errno.EACCES]


def test_root_s_rights_end_at_its_ids(guest: Guest, tmp_path: Path) -> None:
    """A directory of the host's root that the container sees is not the container's."""
    shared = guest.daemon.home / "shared"
    shared.mkdir(mode=0o755)
    d = guest.daemon
    d.lxc("config", "device", "add", guest.name, "shared", "disk", f"source={shared}", "path=/shared")
    try:
        found = guest.python("""
print(json.dumps([mknod(b"/shared/null", 0o20666, 1, 3), setxattr(b"/shared")]))
""")
        assert found == [errno.EACCES, errno.EPERM]
        assert list(shared.iterdir()) == []
        assert os.listxattr(shared) == []
    finally:
        d.lxc("config", "device", "remove", guest.name, "shared")


def test_symlinks_are_followed_inside_only(guest: Guest) -> None:
    guest.run("ln", "-sfn", "/../../../../etc", "/tmp/etc")
    guest.run("mkdir", "-p", "/etc")
    assert guest.python('print(json.dumps(mknod(b"/tmp/etc/utsuwa-null", 0o20666, 1, 3)))') == 0
    assert not Path("/etc/utsuwa-null").exists()
    assert "utsuwa-null" in guest.run("ls", "/etc")


def test_a_caller_that_changes_its_memory_gains_nothing(guest: Guest) -> None:
    """The path is read once; what it names then was judged by the caller's own rights."""
    found = guest.python(
        """
os.makedirs("/tmp/race/a", exist_ok=True)
path = ctypes.create_string_buffer(b"/tmp/race/a/0000", 64)
stop = False
def change():
    while not stop:
        path[10:11] = b"a"
        path[10:11] = b"b"
thread = threading.Thread(target=change)
thread.start()
results = set()
for index in range(60):
    path[12:16] = b"%04d" % index
    results.add(mknod(path, 0o20666, 1, 3))
stop = True
thread.join()
print(json.dumps([sorted(results), sorted(os.listdir("/tmp/race"))]))
"""
    )
    assert isinstance(found, list)
    assert set(found[0]) <= {0, errno.ENOENT}
    assert found[1] == ["a"]


# ---- setxattr


def test_directories_can_be_made_opaque(guest: Guest) -> None:
    found = guest.python("""
os.makedirs("/tmp/layer", exist_ok=True)
os.makedirs("/tmp/other", exist_ok=True)
open("/tmp/file", "w").close()
fd = os.open("/tmp/other", os.O_RDONLY)
path_only = os.open("/tmp/other", os.O_PATH)
print(json.dumps({
    "opaque": setxattr(b"/tmp/layer"),
    "not following": setxattr(b"/tmp/layer", call="lsetxattr"),
    "by descriptor": setxattr(fd, call="fsetxattr"),
    "path only": setxattr(path_only, call="fsetxattr"),
    "a file": setxattr(b"/tmp/file"),
    "other value": setxattr(b"/tmp/layer", value=b"n"),
    "other name": setxattr(b"/tmp/layer", name=b"trusted.other"),
    "user": setxattr(b"/tmp/layer", name=b"user.one"),
    "missing": setxattr(b"/tmp/none"),
}))
""")
    assert isinstance(found, dict)
    assert {name: errno.errorcode.get(code, code) for name, code in found.items()} == {
        "opaque": 0,
        "not following": 0,
        "by descriptor": 0,
        "path only": "EBADF",
        "a file": "EPERM",
        "other value": "EPERM",
        "other name": "EPERM",
        "user": 0,
        "missing": "ENOENT",
    }
    root = guest.daemon.dir / "containers" / guest.name / "rootfs"
    assert os.getxattr(root / "tmp/layer", "trusted.overlay.opaque") == b"y"
    assert os.getxattr(root / "tmp/other", "trusted.overlay.opaque") == b"y"


# ---- sysinfo


def test_sysinfo_shows_the_container_s_figures(guest: Guest) -> None:
    found = guest.python("""
buffer = (ctypes.c_uint64 * 14)()
assert libc.sysinfo(buffer) == 0
processes = buffer[10] & 0xffff
print(json.dumps([buffer[0], buffer[4], buffer[5], processes, number(libc.sysinfo(1))]))
""")
    assert isinstance(found, list)
    uptime, total, free, processes, failed = found
    assert uptime < float(Path("/proc/uptime").read_text().split()[0])
    assert total == 100 << 20
    assert 0 < free < total
    assert 0 < processes < 50
    assert failed == errno.EFAULT


# ---- sched_setscheduler


def allow_real_time(guest: Guest) -> None:
    """Give the container's cgroup time for real-time processes, which cgroup v1 keeps from it."""
    lines = Path(f"/proc/{guest.pid}/cgroup").read_text().splitlines()
    inside = next((line.split(":")[2] for line in lines if "cpu" in line.split(":")[1].split(",")), "")
    cgroup = Path("/sys/fs/cgroup/cpu") / inside.lstrip("/")
    for folder, time in ((cgroup.parent, 20_000), (cgroup, 10_000)):
        if inside and (folder / "cpu.rt_runtime_us").exists():
            (folder / "cpu.rt_runtime_us").write_text(str(time))


def test_priorities_are_raised_by_the_container_s_root_only(guest: Guest) -> None:
    allow_real_time(guest)
    code = """
class Parameters(ctypes.Structure):
    _fields_ = (("priority", ctypes.c_int),)
def raised(pid, priority):
    return number(libc.sched_setscheduler(pid, os.SCHED_FIFO, ctypes.byref(Parameters(priority))))
"""
    results = "raised(0, 5), raised(os.getpid(), 200), raised(1 << 20, 5), os.sched_getscheduler(0)"
    told = f"print(json.dumps([{results}]))"
    assert guest.python(code + told) == [0, errno.EINVAL, errno.ESRCH, os.SCHED_FIFO]
    assert (
        guest.python(f"libc.unshare(0x10000000)\n{code}print(json.dumps(raised(0, 5)))", user=1000)
        == errno.EPERM
    )


# ---- limits and failures


def test_a_file_system_that_does_not_respond_delays_one_call(guest: Guest) -> None:
    """Its server has read a request, so not even SIGKILL ends who waits for the answer."""
    found = guest.python(
        FUSE
        + """
os.makedirs("/tmp/deaf", exist_ok=True)
server = fuse(b"/tmp/deaf", stat.S_IFDIR, deaf={1})  # FUSE_LOOKUP
try:
    results = [mknod(b"/tmp/deaf/a/null", 0o20666, 1, 3), mknod(b"/tmp/beside", 0o20666, 1, 3)]
finally:
    os.kill(server, 9)
    os.waitpid(server, 0)
libc.umount2(b"/tmp/deaf", 2)
print(json.dumps([*results, mknod(b"/tmp/afterwards", 0o20666, 1, 3)]))
"""
    )
    assert found == [errno.ETIMEDOUT, 0, 0]

    def reaped() -> bool:
        guest.python('print(json.dumps(mknod(b"/tmp/none/x", 0o20666, 1, 3)))')
        return not any(Path(f"/proc/{pid}/task/{pid}/children").read_text() for pid in workers(guest))

    until(reaped)


def test_calls_of_processes_that_are_killed_disturb_nobody(guest: Guest) -> None:
    """Callers die between the call and the answer, and their pids are used again."""
    guest.python(
        """
for index in range(40):
    pid = os.fork()
    if pid == 0:
        for name in range(1000):
            mknod(b"/tmp/killed-%d-%d" % (index, name), 0o20666, 1, 3)
        os._exit(0)
    os.kill(pid, 9)
    os.waitpid(pid, 0)
print("null")
"""
    )
    assert guest.python('print(json.dumps(mknod(b"/tmp/after", 0o20666, 1, 3)))') == 0


def test_a_guest_with_endless_calls_delays_itself_only(guest: Guest, busybox: str) -> None:
    other = Guest(guest.daemon, busybox, "other", f"{PREFIX}mknod=true")
    argv = ["lxc", "exec", guest.name, "--", "/usr/bin/python3", "-S", "-c"]
    ready, endless = "os.write(1, b'.')", "while True: mknod(b'/tmp/none/x', 0o20666, 1, 3)"
    code = f"{CALLS}\nfor _ in range(3): os.fork()\n{ready}\n{endless}"
    env = guest.daemon.lxc_environment()
    nothing, pipe = subprocess.DEVNULL, subprocess.PIPE
    with subprocess.Popen([*argv, code], env=env, stdin=nothing, stdout=pipe) as busy:
        try:
            assert busy.stdout is not None
            assert busy.stdout.read(8) == 8 * b"."  # all of them run
            assert other.python('print(json.dumps(mknod(b"/tmp/null", 0o20666, 1, 3)))') == 0
            assert guest.daemon.get("/1.0/instances/other/state")["status"] == "Running"
        finally:
            guest.run("killall", "-9", "python3")
            busy.wait(60)
    guest.daemon.lxc("delete", "-f", "other")


_LOOP = """
cd /tmp
while :; do
    rm -f loop
    mknod loop c 1 3 && echo made
    sleep 0.1
done
"""


def test_calls_are_answered_while_the_daemon_is_away(guest: Guest) -> None:
    """Without a worker, too, they fail; they do not hang, and the next daemon answers again."""
    log = guest.daemon.dir / "containers" / guest.name / "rootfs/tmp/log"
    guest.run("sh", "-c", f"setsid sh -c '{_LOOP}' < /dev/null > /tmp/log 2>&1 &")

    def says(text: str) -> None:
        before = log.read_text().count(text) if log.exists() else 0
        until(lambda: log.exists() and log.read_text().count(text) > before + 1, seconds=60)

    says("made")
    guest.daemon.kill()
    try:
        says("made")
        kill_workers(guest)
        says("Function not implemented")
    finally:
        guest.daemon.start()
    says("made")
    assert guest.python('print(json.dumps(mknod(b"/tmp/back", 0o20666, 1, 3)))') == 0
    guest.run("killall", "-9", "sh")


_QUIET_LOOP = """
cd /tmp
while :; do
    if [ -e first ] || [ ! -e second ]; then
        rm -f loop
        mknod loop c 1 3 && echo made
    else
        echo silence
    fi
    sleep 0.1
done
"""


@pytest.mark.long
def test_exec_fails_while_the_monitor_has_no_connection(guest: Guest) -> None:
    """liblxc refuses processes then; the next call of one that runs makes it connect again."""
    folder = guest.daemon.dir / "containers" / guest.name / "rootfs/tmp"
    log = folder / "quiet-log"
    guest.run("touch", "/tmp/first", "/tmp/second")
    guest.run("sh", "-c", f"setsid sh -c '{_QUIET_LOOP}' < /dev/null > /tmp/quiet-log 2>&1 &")
    until(lambda: log.exists() and "made" in log.read_text(), seconds=60)
    guest.daemon.kill()
    try:
        kill_workers(guest)
        # The first one may only lose its answer; the next finds nobody to connect to.
        until(lambda: log.read_text().count("Function not implemented") > 1, seconds=60)
        (folder / "first").unlink()
        until(lambda: "silence" in log.read_text(), seconds=60)
    finally:
        guest.daemon.start()
    refused = guest.daemon.lxc("exec", guest.name, "--", "true", check=False, timeout=100)
    assert "the command cannot be run inside the container" in refused.stderr
    before = log.read_text().count("made")
    (folder / "second").unlink()
    until(lambda: log.read_text().count("made") > before, seconds=60)
    guest.run("killall", "-9", "sh")


def test_a_killed_worker_is_replaced(guest: Guest) -> None:
    """A call without one fails, and does not hang; the monitor connects again for the next."""
    make = 'print(json.dumps(mknod(b"/tmp/%s", 0o20666, 1, 3)))'
    assert guest.python(make % "before-kill") == 0
    kill_workers(guest)
    assert guest.python(make % "after-kill") == 0


def workers(guest: Guest) -> list[int]:
    """Return the pids of the processes at the other end of the monitor's connection."""
    sockets = subprocess.run(["ss", "-xpnH"], capture_output=True, text=True, check=True).stdout.splitlines()
    folder = str(guest.daemon.dir)
    served = [line for line in sockets if folder in line and "seccomp.socket" in line]
    found = re.findall(r"pid=(\d+)", "\n".join(served))
    assert found
    return [*map(int, found)]


def kill_workers(guest: Guest) -> None:
    for pid in workers(guest):
        fd = os.pidfd_open(pid)
        signal.pidfd_send_signal(fd, signal.SIGKILL)
        select.select([fd], [], [])
        os.close(fd)


def test_keys_are_refused_with_a_raw_policy(shared_daemon: Daemon, busybox: str) -> None:
    done = shared_daemon.lxc(
        "init", busybox, "c9", "-c", f"{PREFIX}mknod=true", "-c", "raw.seccomp=2", check=False
    )
    assert "'raw.seccomp' replaces the policy and excludes 'security.syscalls.intercept.mknod'" in done.stderr

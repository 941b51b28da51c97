"""What stands in the way of saving a container: seen in /proc, with the process and what to do."""

from __future__ import annotations

import contextlib
import fcntl
import json
import mmap
import os
import socket
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.cgroup_host import Host, with_v2
from utsuwa.core import protobuf
from utsuwa.host.checkpoint import diagnosis, interfaces, mount_images, obstacles, route_images, sockets
from utsuwa.host.checkpoint.image_format import with_messages
from utsuwa.host.checkpoint.obstacles import Obstacle
from utsuwa.instances.running_state import preflight

ROOT = "1 0 0:48 / / rw - overlay utsuwa rw\n2 1 0:50 / /run rw - tmpfs none rw\n"
SERVICE = "/u/lxc.payload.c/system.slice/web.service"


@pytest.fixture
def host(tmp_path: Path) -> Host:
    """A container with init (7), a service (8), a process of a session (9) and a session of exec (10)."""
    host = with_v2(tmp_path)
    host.write("cg", "u/lxc.payload.c", {"cgroup.procs": "7\n9\n10\n"})
    host.write("cg", SERVICE.strip("/"), {"cgroup.procs": "8\n"})
    add(host, 7, 1, "systemd", "/u/lxc.payload.c/init.scope")
    add(host, 8, 7, "nginx", SERVICE)
    add(host, 9, 7, "sh", "/u/lxc.payload.c")
    add(host, 10, 1, "bash", "/u/lxc.payload.c")
    return host


def add(host: Host, pid: int, parent: int, name: str, cgroup: str) -> None:
    folder = host.proc / str(pid)
    for place in ("ns", "fd", "fdinfo", "net"):
        (folder / place).mkdir(parents=True, exist_ok=True)
    inner = pid - 6
    status = f"Name:\t{name}\nState:\tS (sleeping)\nPPid:\t{parent}\nTracerPid:\t0\nNSpid:\t{pid}\t{inner}\n"
    (folder / "status").write_text(status)
    (folder / "cgroup").write_text(f"0::{cgroup}\n")
    (folder / "mountinfo").write_text(ROOT)
    (folder / "maps").write_text("00400000-00401000 r-xp 00000000 00:30 1 /bin/x\n")
    (folder / "net/netlink").write_text(
        "sk Eth Pid Groups Rmem Wmem Dump Locks Drops Inode\nx 0 1 0 0 0 0 2 0 5\n"
    )
    for namespace in ("mnt", "uts", "ipc", "pid", "user", "cgroup", "time", "net"):
        (folder / "ns" / namespace).symlink_to(f"{namespace}:[1]")


def open_file(host: Host, pid: int, link: str, info: str = "pos: 0\nmnt_id:\t1\n", number: int = 3) -> None:
    (host.proc / str(pid) / "fd" / str(number)).symlink_to(link)
    (host.proc / str(pid) / "fdinfo" / str(number)).write_text(info)


def move_to(host: Host, pid: int, namespace: str) -> None:
    link = host.proc / str(pid) / "ns" / namespace
    link.unlink()
    link.symlink_to(f"{namespace}:[2]")


def found(host: Host, *, prepared: bool = False) -> list[Obstacle]:
    return obstacles.find(7, prepared=prepared, disks=frozenset({"/mnt/disk"}), proc=host.proc)


def test_a_container_that_can_be_saved(host: Host) -> None:
    """With files, nodes, pipes and sockets, a network namespace inside, and disks of the host."""
    for number, link in enumerate(
        ("/dev/null", "/dev/pts/0", "/run/x", "socket:[5]", "anon_inode:[eventfd]")
    ):
        open_file(host, 8, link, number=number)
    open_file(host, 8, "anon_inode:inotify", "inotify wd:1 ino:2 fhandle-bytes:c\n", number=9)
    move_to(host, 8, "net")
    move_to(host, 10, "mnt")  # a session of exec is not saved
    info = ROOT + "3 1 8:1 / /mnt/disk rw - fuse.s3 x rw\n4 1 0:9 / /proc/uptime rw - fuse.lxcfs lxcfs rw\n"
    info += "5 1 0:7 / /sys/fs/fuse/connections rw - fusectl fusectl rw\n"
    (host.proc / "7/mountinfo").write_text(info)
    assert found(host) == []


def test_namespaces_of_services_have_a_remedy(host: Host) -> None:
    """It does not help once the instance is prepared, nor outside of services."""
    move_to(host, 8, "mnt")
    move_to(host, 8, "uts")
    move_to(host, 9, "user")
    service, other = found(host)
    assert service == Obstacle(
        "has namespaces of its own (mount, uts)",
        "set migration.stateful=true and restart the instance",
        2,
        "nginx",
        "web.service",
    )
    assert (other.reason, other.remedy) == ("has namespaces of its own (user)", "stop the process 3 (sh)")
    assert found(host, prepared=True)[0].remedy == "stop the unit web.service"


@pytest.mark.parametrize(
    ("link", "info", "words"),
    [
        ("anon_inode:[io_uring]", "", "io_uring"),
        ("anon_inode:bpf-map", "", "BPF"),
        ("anon_inode:[landlock-ruleset]", "", "landlock"),
        ("anon_inode:seccomp notify", "", "supervises"),
        ("/dev/fuse", "", "/dev/fuse"),
        ("/dev/kvm", "", "/dev/kvm"),
        ("/var/lib/x", "mnt_id:\t77\n", "not in the instance"),
        ("/proc/pressure/memory", "flags:\t02100002\n", "woken up without end"),
        ("/sys/fs/cgroup/a.slice/memory.pressure", "flags:\t02100001\n", "woken up without end"),
    ],
)
def test_files_that_cannot_be_saved(host: Host, link: str, info: str, words: str) -> None:
    open_file(host, 9, link, info)
    (one,) = found(host)
    assert words in one.reason
    assert (one.pid, one.process) == (3, "sh")


@pytest.mark.parametrize("locked", [True, False])
@pytest.mark.parametrize("mapped", [True, False])
def test_locks_on_mapped_files_would_be_lost(tmp_path: Path, locked: bool, mapped: bool) -> None:
    """Those of SQLite in WAL mode, here on the real /proc."""
    with (tmp_path / "db-shm").open("w+b") as file, contextlib.ExitStack() as stack:
        file.write(bytes(4096))
        file.flush()
        if locked:
            fcntl.lockf(file, fcntl.LOCK_SH, 1, 128)
        if mapped:
            stack.enter_context(mmap.mmap(file.fileno(), 4096))
        seen = obstacles.find(os.getpid(), prepared=False)
    # Databases of other tests may be open, too.
    found = [one for one in seen if f"mapped {tmp_path / 'db-shm'} and locked" in one.reason]
    assert len(found) == (locked and mapped)
    assert all("SQLite" in one.remedy for one in found)


def test_pressure_that_is_only_read(host: Host) -> None:
    open_file(host, 9, "/proc/pressure/memory", "flags:\t02100000\nmnt_id:\t1\n")
    assert found(host) == []


@pytest.mark.parametrize(
    ("link", "info"), [("anon_inode:[io_uring]", ""), ("/proc/pressure/memory", "flags:\t02100002\n")]
)
def test_what_preparation_prevents_has_a_remedy(host: Host, link: str, info: str) -> None:
    open_file(host, 8, link, info)
    assert "migration.stateful" in found(host)[0].remedy
    assert found(host, prepared=True)[0].remedy == "stop the unit web.service"


def test_what_passes_by_itself(host: Host) -> None:
    open_file(host, 8, "anon_inode:inotify", "inotify wd:1 ino:2 sdev:3 mask:4 ignored_mask:0 \n")
    (host.proc / "7/net/netlink").write_text("sk Eth Pid Groups Rmem Wmem\nx 15 1 0 768 0 0 2 0 5\n")
    assert [one.passing for one in found(host)] == [True, True]


def test_mounts_made_inside(host: Host) -> None:
    info = ROOT + "3 1 0:9 / /mnt/o rw - overlay x rw\n4 1 0:8 / /mnt/f rw - fuse.sshfs x rw\n"
    info += "6 1 0:6 / /sys/fs/bpf rw - bpf x rw\n"
    (host.proc / "7/mountinfo").write_text(info + "5 2 0:7 / /run/credentials/a.service rw - ramfs x rw\n")
    overlay, fuse, bpf, credentials = found(host)
    assert overlay.remedy == "unmount /mnt/o in the instance"
    assert "fuse.sshfs" in fuse.reason
    assert bpf.remedy == "unmount /sys/fs/bpf in the instance"
    assert "migration.stateful" in credentials.remedy


def test_traced_processes_secret_memory_and_zombies(host: Host) -> None:
    status = host.proc / "8/status"
    status.write_text(status.read_text().replace("TracerPid:\t0", "TracerPid:\t9"))
    (host.proc / "9/maps").write_text("7f00-7f01 rw-s 00000000 00:0e 1 /secretmem (deleted)\n")
    assert [one.reason for one in found(host)] == ["is being traced (strace, gdb)", "has secret memory"]
    for pid in (8, 9):
        status = host.proc / str(pid) / "status"
        status.write_text(status.read_text().replace("S (sleeping)", "Z (zombie)"))
    assert found(host) == []


def test_processes_that_end_meanwhile(host: Host) -> None:
    (host.proc / "8/mountinfo").unlink()
    (host.proc / "9/status").unlink()
    assert found(host) == []
    assert obstacles.find(99, prepared=False, proc=host.proc) == []


def test_our_own_process_has_none_of_its_own_namespaces() -> None:
    """On the real /proc, without a container: nothing is raised."""
    assert isinstance(obstacles.find(os.getpid(), prepared=False), list)


# ---- sockets


@pytest.mark.parametrize(
    ("family", "kind", "protocol"),
    [
        (socket.AF_UNIX, socket.SOCK_STREAM, "UNIX-STREAM"),
        (socket.AF_UNIX, socket.SOCK_DGRAM, "UNIX"),
        (socket.AF_INET, socket.SOCK_STREAM, "TCP"),
        (socket.AF_INET6, socket.SOCK_STREAM, "TCP"),
        (socket.AF_INET, socket.SOCK_DGRAM, "UDP"),
        (socket.AF_NETLINK, socket.SOCK_RAW, "NETLINK"),
    ],
)
def test_sockets_that_can_be_saved(family: int, kind: int, protocol: str) -> None:
    """If the kernel has the module that tells CRIU about them."""
    with socket.socket(family, kind) as opened:
        assert sockets.protocol_of(Path(f"/proc/self/fd/{opened.fileno()}")) == protocol
    assert sockets.judge(protocol, [], "stop it") is None
    missing = [sockets.judge(protocol, [module], "stop it") for module in diagnosis.MODULES]
    assert len([one for one in missing if one is not None and "the kernel's module" in one[1]]) == 1


@pytest.mark.parametrize(
    ("family", "number", "words"),
    [(socket.AF_INET, 262, ("MPTCP", "GODEBUG")), (socket.AF_VSOCK, 0, ("AF_VSOCK", "stop"))],
)
def test_sockets_that_cannot_be_saved(family: int, number: int, words: tuple[str, str]) -> None:
    try:
        opened = socket.socket(family, socket.SOCK_STREAM, number)
    except OSError:
        pytest.skip("this kernel has no such sockets")
    with opened:
        found = obstacles.find(os.getpid(), prepared=False)
    (one,) = (one for one in found if "protocol" in one.reason)
    assert words[0] in one.reason
    assert words[1] in one.remedy
    assert one.process


def test_a_socket_that_is_closed_meanwhile(tmp_path: Path) -> None:
    assert sockets.protocol_of(tmp_path / "none") == ""


def test_modules_that_the_kernel_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    """No kernel tells of sockets of AF_CAN in this way."""
    assert set(diagnosis.missing()) <= set(diagnosis.MODULES)
    assert "unix_diag" not in diagnosis.missing()
    monkeypatch.setattr(diagnosis, "MODULES", {"can_diag": struct.pack("=BB26x", socket.AF_CAN, 0)})
    assert diagnosis.missing() == ["can_diag"]


# ---- the network


def test_interfaces_that_cannot_be_saved() -> None:
    """Those of the instance are pairs, whatever the guest has added must be of a kind that CRIU knows."""
    given = [
        {"ifname": "lo", "link_type": "loopback"},
        {"ifname": "eth0", "link_type": "ether", "linkinfo": {"info_kind": "veth"}},
        {"ifname": "br0", "link_type": "ether", "linkinfo": {"info_kind": "bridge"}},
        {"ifname": "sit0", "link_type": "sit", "linkinfo": {"info_kind": "sit"}},
        {"ifname": "gre0", "link_type": "gre", "linkinfo": {"info_kind": "gre"}},
        {"ifname": "x", "link_type": "ether", "linkinfo": {"info_kind": "vxlan"}},
        {"ifname": "eth1", "link_type": "ether"},
    ]
    found = list(interfaces.judge(json.loads(json.dumps(given))))
    assert [one.reason for one in found] == [
        "the network interface x is of the type vxlan",
        "the network interface eth1 is of the host",
    ]
    assert found[0].remedy == "remove x"


def route(flags: int, more: bytes = b"") -> bytes:
    length = 28 + len(more)
    head = struct.pack("=IHHII8BI", length, 24, 2, 0, 0, 2, 24, 0, 0, 254, 3, 0, 1, flags)
    return head + more + bytes(-length % 4)


def test_routes_lose_the_marks_of_interfaces_that_are_down(tmp_path: Path) -> None:
    """And nothing else: ONLINK (4) stays."""
    magic = struct.pack("=I", 0x45311224)
    image = magic + route(0x14, b"attribute") + route(0x11) + route(0)
    (tmp_path / "route-9.img").write_bytes(image)
    (tmp_path / "rule-9.img").write_bytes(image)
    route_images.heal(tmp_path)
    healed = magic + route(0x4, b"attribute") + route(0) + route(0)
    assert (tmp_path / "route-9.img").read_bytes() == healed
    assert (tmp_path / "rule-9.img").read_bytes() == image


@given(st.binary(max_size=200))
def test_any_bytes_as_routes(image: bytes) -> None:
    healed = route_images.without_marks(image)
    assert len(healed) == len(image)
    assert route_images.without_marks(healed) == healed


def test_mounts_of_the_host_lose_the_mark_of_deleted_files(tmp_path: Path) -> None:
    """And nothing else; those of the container's own files keep it."""
    root, deleted, key = (
        protobuf.encoded(6, 2, b"/f"),
        protobuf.encoded(16, 0, 1),
        protobuf.encoded(18, 2, b"/mnt"),
    )
    given = with_messages(bytes(8), [root + deleted + key, root + deleted, root + key])
    (tmp_path / "mountpoints-9.img").write_bytes(given)
    mount_images.heal(tmp_path)
    healed = with_messages(bytes(8), [root + key, root + deleted, root + key])
    assert (tmp_path / "mountpoints-9.img").read_bytes() == healed


def test_many_obstacles_in_one_sentence() -> None:
    many = [Obstacle(f"is {n}", "stop it", n, "x", f"{n}.service" if n == 1 else "") for n in range(1, 6)]
    text = preflight.describe([*many, Obstacle("it is frozen", "resume it")])
    expected = "the process 1 (x) of 1.service is 1, the process 2 (x) is 2 and 3 more: stop it; "
    assert text == expected + "it is frozen: resume it"


def test_a_descriptor_that_was_closed_meanwhile_is_no_obstacle(tmp_path: Path) -> None:
    entry = tmp_path / "5"
    entry.symlink_to("/var/lib/x")
    assert obstacles._leads_to(entry, "/var/lib/x")
    assert not obstacles._leads_to(entry, "/var/lib/y")
    assert not obstacles._leads_to(tmp_path / "6", "/var/lib/x")

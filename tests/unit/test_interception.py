"""Interception of system calls: messages of liblxc's monitor, and what a host lacks for it."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from utsuwa.core.errors import InvalidConfig
from utsuwa.host import bpf, syscalls
from utsuwa.host.helper import kernel
from utsuwa.host.interception import caller, messages, mount_options, mounting, server, support
from utsuwa.host.system import facts
from utsuwa.security import interception

HEAD = struct.pack("=QiiHHH2xQ", 0, 10, 20, 80, 24, 64, 2)
REQUEST = struct.pack("=QIIiIQ6Q", 77, 30, 0, 259, 0xC000003E, 0, 1, 2, 3, 4, 5, 6)
MESSAGE = HEAD + REQUEST + bytes(24) + b"c1"


@pytest.fixture
def sockets() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        yield ours, theirs


def send(sock: socket.socket, data: bytes, count: int = 3) -> None:
    fds = [os.open("/dev/null", os.O_RDONLY) for _ in range(count)]
    socket.send_fds(sock, [data], fds)
    for fd in fds:
        os.close(fd)


def nulls() -> int:
    """Return how many descriptors lead to /dev/null: others may be closed by threads of other tests."""
    found = 0
    for descriptor in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found += descriptor.readlink() == Path(os.devnull)
    return found


def test_a_call_is_read_and_answered(sockets: tuple[socket.socket, socket.socket]) -> None:
    send(sockets[0], MESSAGE)
    call = messages.receive(sockets[1])
    assert call is not None
    try:
        assert (call.id, call.pid, call.number, call.init) == (77, 30, 259, 20)
        assert call.arguments == [1, 2, 3, 4, 5, 6]
        assert call.cookie == b"c1"
        assert not call.waits()  # /dev/null is no listener
        reply = call.reply(messages.failure(13))
        assert reply == HEAD + REQUEST + struct.pack("=QqiI", 77, 0, -13, 0)
        assert call.reply(messages.result(7))[-24:] == struct.pack("=QqiI", 77, 7, 0, 0)
        assert call.reply(messages.CONTINUE)[-24:] == struct.pack("=QqiI", 77, 0, 0, 1)
    finally:
        call.close()


@pytest.mark.parametrize(
    ("data", "fds"),
    [
        (MESSAGE, 2),
        (MESSAGE, 0),
        (MESSAGE[:-1], 3),
        (MESSAGE + b"x", 3),
        (HEAD, 3),
        (b"x", 3),
        (struct.pack("=QiiHHH2xQ", 0, 10, 20, 8, 24, 64, 0) + bytes(32), 3),
    ],
)
def test_other_messages_are_refused(
    sockets: tuple[socket.socket, socket.socket], data: bytes, fds: int
) -> None:
    before = nulls()
    send(sockets[0], data, fds)
    with pytest.raises((ValueError, struct.error)):
        messages.receive(sockets[1])
    assert nulls() == before


def test_the_end_of_the_monitor(sockets: tuple[socket.socket, socket.socket]) -> None:
    sockets[0].close()
    assert messages.receive(sockets[1]) is None


def test_arguments_are_signed() -> None:
    assert [caller.signed(value) for value in (5, 0xFFFFFF9C, 0xFFFFFFFFFFFFFF9C)] == [5, -100, -100]


def test_filters_that_notify_are_found() -> None:
    allow, notify = struct.pack("=HBBI", 6, 0, 0, 0x7FFF0000), struct.pack("=HBBI", 6, 0, 0, 0x7FC00000)
    load = struct.pack("=HBBI", 0x20, 0, 0, 0x7FC00000)
    assert not kernel.notifies(load + allow)
    assert kernel.notifies(load + notify + allow)


def test_filters_without_notifications_allow_these_calls() -> None:
    allow, notify = struct.pack("=HBBI", 6, 0, 0, 0x7FFF0000), struct.pack("=HBBI", 6, 0, 0, 0x7FC00001)
    load = struct.pack("=HBBI", 0x20, 1, 2, 0x7FC00000)
    assert kernel.without_notifications(load + notify + allow) == load + allow + allow


_DENIED = """
import ctypes, errno, os
from utsuwa.host import bpf
from utsuwa.host.helper import kernel
libc = ctypes.CDLL(None, use_errno=True)
def call(number):
    result = libc.syscall(ctypes.c_long(number), ctypes.c_long(-1), None, ctypes.c_long(0))
    return errno.errorcode[ctypes.get_errno()] if result < 0 else ""
numbers = {"x86_64": (321, 0x40000000 + 321)}.get(os.uname().machine, (280,))
kernel.set_no_new_privileges()
kernel.add_seccomp_filter(kernel.denying(bpf.CALLS, errno.EXDEV))
print(*{call(number) for number in numbers}, os.getppid() > 0)
"""


@pytest.mark.processes
def test_a_filter_denies_calls_of_bpf_only() -> None:
    done = subprocess.run([sys.executable, "-c", _DENIED], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["EXDEV", "True"]


@pytest.mark.parametrize(
    ("machine", "auxv", "number", "answer"),
    [
        ("riscv64", struct.pack("=4Q", 33, 1 << 31, 0, 0), 179, messages.SUCCESS),
        ("riscv64", struct.pack("=4I", 33, 1 << 31, 0, 0), 179, messages.CONTINUE),
        ("riscv64", struct.pack("=4Q", 33, 1 << 31, 0, 0), 280, messages.SUCCESS),
        ("riscv64", struct.pack("=4I", 33, 1 << 31, 0, 0), 280, messages.failure(errno.EPERM)),
        ("aarch64", struct.pack("=4Q", 33, 1 << 31, 0, 0), 280, messages.SUCCESS),
    ],
)
def test_32_bit_programs_are_known_where_the_kernel_does_not_tell(
    machine: str,
    auxv: bytes,
    number: int,
    answer: messages.Answer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On riscv64, their calls have the architecture of the others, and structures of their own."""
    for name in ("status", "uid_map", "gid_map"):
        (tmp_path / name).write_bytes(Path("/proc/self", name).read_bytes())
    (tmp_path / "auxv").write_bytes(auxv)
    architecture, _ = server.MACHINES[machine]
    handlers = {number: lambda *_: messages.SUCCESS}
    monkeypatch.setattr(server, "MACHINES", {machine: (architecture, handlers)})
    monkeypatch.setattr(os, "uname", lambda: SimpleNamespace(machine=machine))
    request = struct.pack("=QIIiIQ6Q", 77, 30, 0, number, architecture, 0, bpf.PROG_ATTACH, 0, 0, 0, 0, 0)
    fds = [os.open(tmp_path, os.O_RDONLY), *(os.open(os.devnull, os.O_RDONLY) for _ in range(2))]
    call = messages.Notification(HEAD + request + bytes(24) + b"c1", fds)
    try:
        assert server._handle(call) == answer
    finally:
        call.close()


def test_a_program_of_64_bits_is_known() -> None:
    folder = os.open("/proc/self", os.O_RDONLY)
    try:
        assert not caller.Caller(folder, -1).has_32_bits()
    finally:
        os.close(folder)


# ---- mount


@pytest.mark.parametrize(
    ("kind", "data", "found"),
    [
        ("ext4", b"", [("ro", None), ("errors", "remount-ro")]),
        ("ext4", b"acl,,commit=5", [("ro", None), ("errors", "remount-ro"), ("acl", None), ("commit", "5")]),
        ("ext2", b"errors=continue", [("ro", None), ("errors", "continue")]),
        ("btrfs", b"subvol=/a/b", [("ro", None), ("subvol", "/a/b")]),
        ("xfs", b"allocsize=64k", [("ro", None), ("allocsize", "64k")]),
        ("squashfs", b"", [("ro", None)]),
        ("ext4", b"errors=panic", None),
        ("ext4", b"errors", None),
        ("ext4", b"acl=1", None),
        ("ext4", b"commit=1\n", None),
        ("ext4", b"journal_path=/dev/sda", None),
        ("ext4", b"journal_dev=0x801", None),
        ("btrfs", b"device=/dev/sda", None),
        ("btrfs", b"subvol=", None),
        ("xfs", b"logdev=/dev/sda", None),
        ("xfs", b"rtdev=/dev/sda", None),
        ("squashfs", b"errors=panic", None),
        ("ext4", b"\xff", None),
        ("ext4", b",".join([b"acl"] * 33), None),
    ],
)
def test_options_of_file_systems(kind: str, data: bytes, found: list[tuple[str, str | None]] | None) -> None:
    assert mount_options.options(kind, syscalls.MS_RDONLY, data) == found


def test_flags_of_mounts() -> None:
    plain = mount_options.plain_flags(0xFFFFFFFF_00000000 | 0xC0ED0000 | 0x8000 | 0x200000 | 0x401)
    assert plain == 0x200401 & ~0x200000
    assert mount_options.is_new_mount(plain)
    assert not any(
        mount_options.is_new_mount(flag) for flag in (0x20, 0x40, 0x1000, 0x2000, 0x20000, 0x40000, 1 << 30)
    )
    assert mount_options.attributes(plain) == 0x15
    assert mount_options.attributes(0) == syscalls.MOUNT_ATTR_NODEV
    assert mount_options.attributes(0x1000400) == 0x14
    assert mount_options.fuse_options(0x9, b"a,,b=c") == b"ro,noexec,a,b=c"


def test_settings_of_mounts(tmp_path: Path) -> None:
    file = tmp_path / "c1"
    nothing = mounting.Settings(os.fsencode(file))
    assert not nothing.concern("ext4")
    prefix = "security.syscalls.intercept.mount."
    config = {f"{prefix}allowed": "ext4, xfs,", f"{prefix}fuse": "ntfs=ntfs-3g", f"{prefix}shift": "true"}
    interception.write_settings(file, config)
    found = mounting.Settings(os.fsencode(file))
    assert (found.allowed, found.programs, found.shift) == ({"ext4", "xfs"}, {"ntfs": "ntfs-3g"}, True)
    assert [found.concern(kind) for kind in ("ext4", "ntfs", "btrfs")] == [True, True, False]
    file.write_text('{"allowed": ["debugfs", "proc"]}')
    assert not mounting.Settings(os.fsencode(file)).allowed


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        (
            "allowed",
            "ext4,proc",
            "'proc' is not a file system that the host mounts for an instance: use btrfs,",
        ),
        ("allowed", "nfs", "'nfs' is not"),
    ],
)
def test_other_file_systems_are_refused(key: str, value: str, reason: str) -> None:
    with pytest.raises(InvalidConfig, match=reason):
        interception.check({f"security.syscalls.intercept.mount.{key}": value})


HOST = facts.HostFacts(
    kernel="Linux",
    kernel_version="6.1.0",
    architecture="x86_64",
    architectures=["x86_64"],
    kernel_features={"seccomp_listener_continue": "true"},
    lxc_version="5.0.2",
    lxc_features={"seccomp_proxy_send_notify_fd": "true"},
    os_name="Debian",
    os_version="12",
)


@pytest.mark.parametrize(
    ("host", "nested", "reason"),
    [
        (HOST, False, ""),
        (HOST, True, "in a container"),
        (replace(HOST, architecture="s390x"), False, "not implemented on s390x"),
        (replace(HOST, kernel_features={"seccomp_listener_continue": "false"}), False, "the kernel"),
        (replace(HOST, lxc_features={}), False, "liblxc"),
    ],
)
def test_what_a_host_lacks(
    monkeypatch: pytest.MonkeyPatch, host: facts.HostFacts, nested: bool, reason: str
) -> None:
    monkeypatch.setattr(facts, "host_facts", lambda: host)
    monkeypatch.setattr(support, "in_user_namespace", lambda: nested)
    found = support.obstacle.__wrapped__()
    assert reason in found if reason else found == ""

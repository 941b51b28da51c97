"""BPF file systems of instances, with which their processes get tokens."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from tests.support.daemon import Daemon
from utsuwa.instances.confinement import bpf_tokens

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(
        tuple(map(int, platform.release().split(".")[:2])) < bpf_tokens.FIRST,
        reason="this kernel has no BPF tokens",
    ),
]
# Enters a container as its root, and asks for a token; prints the result, or the number of the error.
ASK = """
import ctypes, os, struct, sys

libc = ctypes.CDLL(None, use_errno=True)
init, path = os.pidfd_open(int(sys.argv[1])), sys.argv[2]
assert libc.setns(init, 0x10000000 | 0x00020000) == 0, ctypes.get_errno()
os.setresgid(0, 0, 0)
os.setresuid(0, 0, 0)
attr = ctypes.create_string_buffer(struct.pack("II", 0, os.open(path, os.O_DIRECTORY)), 8)
number = {"x86_64": 321, "aarch64": 280}[os.uname().machine]
token = libc.syscall(number, 36, attr, 8)
print("a token" if token >= 0 else ctypes.get_errno())
"""
DELEGATE = ("cmds", "maps", "progs", "attachs")


def ask(daemon: Daemon, name: str, path: str) -> str:
    pid = daemon.get(f"/1.0/instances/{name}/state")["pid"]
    done = subprocess.run(
        [sys.executable, "-c", ASK, str(pid), path], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def mounts_of(daemon: Daemon, name: str) -> list[list[str]]:
    lines = daemon.lxc("exec", name, "--", "cat", "/proc/mounts").stdout.splitlines()
    return [line.split() for line in lines if line.split()[2] == "bpf"]


def test_processes_get_tokens_for_what_is_delegated(shared_daemon: Daemon, busybox: str) -> None:
    keys = [f"security.bpffs.delegate_{name}=any" for name in DELEGATE]
    given = [argument for key in [*keys, "security.bpffs.path=/run/bpf"] for argument in ("-c", key)]
    shared_daemon.lxc("launch", busybox, "c1", *given)
    (mount,) = mounts_of(shared_daemon, "c1")
    assert mount[1] == "/run/bpf"
    assert {f"delegate_{name}=any" for name in DELEGATE} <= set(mount[3].split(","))
    assert ask(shared_daemon, "c1", "/run/bpf") == "a token"
    shared_daemon.lxc("restart", "-f", "c1")
    assert ask(shared_daemon, "c1", "/run/bpf") == "a token"


def test_names_are_delegated_alone(shared_daemon: Daemon, busybox: str) -> None:
    names = "security.bpffs.delegate_cmds=prog_load,map_create"
    shared_daemon.lxc("launch", busybox, "c1", "-c", names, "-c", "security.bpffs.path=/run/bpf")
    (mount,) = mounts_of(shared_daemon, "c1")
    assert [option for option in mount[3].split(",") if "delegate" in option] == [
        "delegate_cmds=map_create:prog_load"
    ]


def test_nothing_is_mounted_without_the_keys(shared_daemon: Daemon, busybox: str) -> None:
    shared_daemon.lxc("launch", busybox, "c1", "-c", "security.bpffs.path=/run/bpf")
    assert mounts_of(shared_daemon, "c1") == []


def test_a_name_that_the_kernel_does_not_know_fails_the_start(shared_daemon: Daemon, busybox: str) -> None:
    """Nothing is done before that is known: a running instance goes on."""
    shared_daemon.lxc("launch", busybox, "c1")
    shared_daemon.lxc("config", "set", "c1", "security.bpffs.delegate_progs=no_such_type")
    failed = shared_daemon.lxc("restart", "c1", check=False)
    assert failed.returncode == 1
    assert "has a name that this kernel does not know" in failed.stderr
    assert shared_daemon.get("/1.0/instances/c1")["status"] == "Running"
    shared_daemon.lxc("stop", "-f", "c1")
    assert "does not know" in shared_daemon.lxc("start", "c1", check=False).stderr
    shared_daemon.lxc("config", "unset", "c1", "security.bpffs.delegate_progs")
    shared_daemon.lxc("start", "c1")


def test_a_path_where_nothing_can_be_mounted_fails_the_start(shared_daemon: Daemon, busybox: str) -> None:
    keys = ["-c", "security.bpffs.delegate_cmds=any", "-c", "security.bpffs.path=/proc/none"]
    shared_daemon.lxc("init", busybox, "c1", *keys)
    failed = shared_daemon.lxc("start", "c1", check=False)
    assert "set security.bpffs.path to a directory" in failed.stderr
    assert shared_daemon.get("/1.0/instances/c1")["status"] == "Stopped"


@pytest.mark.parametrize(
    ("key", "reason"),
    [
        ("security.bpffs.delegate_cmds=prog load", "must be 'any', or names or numbers"),
        ("security.bpffs.delegate_cmds=any,size=1", "must be 'any', or names or numbers"),
        (f"security.bpffs.delegate_cmds={'a:' * 127}aa", "255 characters at most"),
        ("security.bpffs.path=run", "absolute"),
    ],
)
def test_refused_values(shared_daemon: Daemon, busybox: str, key: str, reason: str) -> None:
    failed = shared_daemon.lxc("init", busybox, "c1", "-c", key, check=False)
    assert failed.returncode == 1
    assert reason in failed.stderr


def test_privileged_instances_have_none(shared_daemon: Daemon, busybox: str) -> None:
    keys = ["-c", "security.bpffs.delegate_cmds=any", "-c", "security.privileged=true"]
    failed = shared_daemon.lxc("init", busybox, "c1", *keys, check=False)
    assert "is for unprivileged instances only" in failed.stderr

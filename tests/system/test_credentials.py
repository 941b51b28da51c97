"""Credentials for systemd in instances: `systemd.credential.*`."""

from __future__ import annotations

import base64

import pytest

from tests.support.client import utsuwa_client
from tests.support.daemon import Daemon
from tests.support.systemd import system_state

pytestmark = pytest.mark.root

FOLDER = "/dev/.lxc/credentials"
BYTES = bytes(range(256))


def inside(daemon: Daemon, *argv: str, **flags: str) -> str:
    options = [f"--{name}={value}" for name, value in flags.items()]
    return daemon.lxc("exec", "c1", *options, "--", *argv, check=False).stdout


@pytest.mark.parametrize("privileged", ["false", "true"])
def test_init_finds_them_and_only_root_reads_them(
    shared_daemon: Daemon, busybox: str, privileged: str
) -> None:
    d = shared_daemon
    d.lxc(
        "launch", busybox, "c1", "-c", f"security.privileged={privileged}",
        "-c", "systemd.credential.one=first\nsecond",
        "-c", f"systemd.credential-binary.two={base64.b64encode(BYTES).decode()}",
    )  # fmt: skip
    assert f"CREDENTIALS_DIRECTORY={FOLDER}" in inside(d, "cat", "/proc/1/environ").split("\0")
    assert inside(d, "cat", f"{FOLDER}/one") == "first\nsecond"
    assert base64.b64decode(inside(d, "base64", f"{FOLDER}/two")) == BYTES
    assert inside(d, "stat", "-c", "%a %u %g", f"{FOLDER}/one") == "400 0 0\n"
    assert inside(d, "cat", f"{FOLDER}/one", user="1000") == ""
    inside(d, "sh", "-c", f"echo x >{FOLDER}/one; chmod 644 {FOLDER}/one; rm -f {FOLDER}/one")
    assert inside(d, "cat", f"{FOLDER}/one") == "first\nsecond"
    assert inside(d, "stat", "-c", "%a", f"{FOLDER}/one") == "400\n"
    d.lxc("config", "set", "c1", "systemd.credential.one", "third")
    d.lxc("config", "unset", "c1", "systemd.credential-binary.two")
    d.lxc("restart", "--force", "c1")
    assert inside(d, "ls", FOLDER) == "one\n"
    assert inside(d, "cat", f"{FOLDER}/one") == "third"
    d.lxc("config", "unset", "c1", "systemd.credential.one")
    d.lxc("restart", "--force", "c1")
    assert inside(d, "ls", FOLDER) == ""
    assert "CREDENTIALS_DIRECTORY" not in inside(d, "cat", "/proc/1/environ")


def test_invalid_ones_change_nothing(shared_daemon: Daemon, busybox: str) -> None:
    d = shared_daemon
    d.lxc("init", busybox, "c1", "-c", "systemd.credential.one=1")
    before = d.get("/1.0/instances/c1")
    for key, value, reason in (
        (
            "systemd.credential-binary.one",
            "MQ==",
            "excludes 'systemd.credential-binary.one': set one of them",
        ),
        ("systemd.credential-binary.two", "?", "must be in base64"),
        ("systemd.credential.two", "x" * 2**20, "systemd accepts at most 1048576"),
        ("systemd.credential..", "x", "Unknown configuration key"),
    ):
        reply = d.api("PATCH", "/1.0/instances/c1", {"config": {key: value}})
        assert (reply.status, reason in reply.error) == (400, True), reply.error
    many = {f"systemd.credential.c{n}": "1" for n in range(1000)}
    reply = d.api("PATCH", "/1.0/instances/c1", {"config": many})
    assert (reply.status, "at most 1000 credentials, not 1001" in reply.error) == (400, True), reply.error
    ended = utsuwa_client(d, "config", "set", "c1", "systemd.credential-binary.one=MQ==", check=False)
    assert ended.returncode == 1
    assert d.get("/1.0/instances/c1") == before


@pytest.mark.debian
def test_systemd_passes_them_on_to_services(shared_daemon: Daemon, debian: str) -> None:
    d = shared_daemon
    d.lxc("launch", debian, "c1", "-c", "systemd.credential.token=of a service")
    assert system_state(d, "c1") == "running"
    assert inside(d, "systemd-creds", "--system", "cat", "token") == "of a service"
    told = inside(
        d, "systemd-run", "--quiet", "--pipe", "--wait", "-p", "LoadCredential=token",
        "sh", "-c", "cat $CREDENTIALS_DIRECTORY/token",
    )  # fmt: skip
    assert told == "of a service"

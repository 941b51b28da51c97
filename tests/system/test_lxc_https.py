"""HTTPS and the trust store of a real daemon: Debian's `lxc` as a remote client, and raw TLS."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import socket
import stat
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from tests.support import tls
from tests.support.daemon import Daemon
from tests.support.tls import Identity, TestAuthority, make_identity

pytestmark = pytest.mark.root

PASSWORD = "open-sesame"


@pytest.fixture(scope="module")
def address(module_daemon: Daemon) -> str:
    """Where the module's daemon serves HTTPS."""
    chosen = tls.free_address()
    module_daemon.lxc("config", "set", "core.https_address", chosen)
    return chosen


@pytest.fixture
def remote(module_daemon: Daemon, address: str) -> Iterator[Daemon]:
    """The module's daemon with a trust password; every certificate is gone after the test."""
    module_daemon.lxc("config", "set", "core.trust_password", PASSWORD)
    yield module_daemon
    module_daemon.lxc("config", "unset", "core.trust_password")
    module_daemon.lxc("remote", "remove", "far", check=False)
    for url in module_daemon.get("/1.0/certificates"):
        module_daemon.do("DELETE", url)


def add_remote(daemon: Daemon, address: str) -> None:
    daemon.lxc("remote", "add", "far", f"https://{address}", "--accept-certificate", "--password", PASSWORD)


def test_a_remote_by_password(remote: Daemon, address: str) -> None:
    add_remote(remote, address)
    (trusted,) = remote.get("/1.0/certificates?recursion=1")
    assert trusted["type"] == "client"
    assert remote.lxc("list", "far:", "--format", "json").stdout.strip() == "[]"
    server = json.loads(remote.lxc("query", "far:/1.0").stdout)
    assert server["auth"] == "trusted"
    assert server["environment"]["addresses"] == [address]
    assert server["config"]["core.trust_password"] is True
    pinned = (remote.conf / "servercerts" / "far.crt").read_text()
    assert pinned == server["environment"]["certificate"] == (remote.dir / "server.crt").read_text()
    log = remote.log.read_text()
    assert PASSWORD not in log
    (line,) = [line for line in log.splitlines() if "logger=audit method=POST url=/1.0/certificates " in line]
    assert "status=201 address=127.0.0.1:" in line
    assert f"fingerprint={trusted['fingerprint']}" in line


def test_wrong_password_is_reported(remote: Daemon, address: str) -> None:
    ended = remote.lxc(
        "remote",
        "add",
        "far",
        f"https://{address}",
        "--accept-certificate",
        "--password",
        "wrong",
        check=False,
    )
    assert ended.returncode != 0
    assert "not authorized" in ended.stderr
    assert remote.get("/1.0/certificates") == []


def test_an_instance_through_the_remote(remote: Daemon, address: str, busybox: str) -> None:
    add_remote(remote, address)
    remote.lxc("launch", f"far:{busybox}", "far:c1")
    try:
        hello = remote.lxc("exec", "far:c1", "--", "cat", input="through TLS and back")
        assert hello.stdout == "through TLS and back"
        assert remote.lxc("list", "far:", "-c", "n", "--format", "csv").stdout == "c1\n"
    finally:
        remote.lxc("delete", "--force", "far:c1")


def test_the_trust_list_with_the_client(remote: Daemon, tmp_path: Path) -> None:
    alice = make_identity(tmp_path, "alice")
    remote.lxc("config", "trust", "add", str(alice.certificate_file), "--name", "laptop")
    again = remote.lxc("config", "trust", "add", str(alice.certificate_file), check=False)
    assert again.returncode != 0
    assert "already in trust store" in again.stderr
    (listed,) = json.loads(remote.lxc("config", "trust", "list", "--format", "json").stdout)
    assert (listed["name"], listed["fingerprint"]) == ("laptop", alice.fingerprint)
    assert "laptop" in remote.lxc("config", "trust", "list").stdout
    shown = remote.lxc("config", "trust", "show", alice.fingerprint[:12]).stdout
    assert "name: laptop" in shown
    changed = shown.replace("name: laptop", "name: desk")
    remote.lxc("config", "trust", "edit", alice.fingerprint, input=changed)
    assert "name: desk" in remote.lxc("config", "trust", "show", alice.fingerprint).stdout
    remote.lxc("config", "trust", "remove", alice.fingerprint[:12])
    assert remote.get("/1.0/certificates") == []
    gone = remote.lxc("config", "trust", "remove", alice.fingerprint, check=False)
    assert "Certificate not found" in gone.stderr


def test_a_remote_by_token(remote: Daemon, address: str) -> None:
    """The token of `lxc config trust add` is enough for `lxc remote add`, once."""
    added = remote.lxc("config", "trust", "add", "--name", "laptop").stdout
    token = added.splitlines()[-1]
    (listed,) = json.loads(remote.lxc("config", "trust", "list-tokens", "--format", "json").stdout)
    assert (listed["ClientName"], listed["Token"]) == ("laptop", token)
    remote.lxc("remote", "add", "far", token)
    (trusted,) = remote.get("/1.0/certificates?recursion=1")
    assert (trusted["name"], trusted["restricted"]) == ("laptop", False)
    assert (remote.conf / "servercerts" / "far.crt").read_text() == (remote.dir / "server.crt").read_text()
    assert remote.lxc("list", "far:", "--format", "json").stdout.strip() == "[]"
    assert json.loads(remote.lxc("config", "trust", "list-tokens", "--format", "json").stdout) == []
    remote.lxc("remote", "remove", "far")
    remote.do("DELETE", f"/1.0/certificates/{trusted['fingerprint']}")
    again = remote.lxc("remote", "add", "far", token, check=False)
    assert "The token is not valid" in again.stderr
    assert remote.get("/1.0/certificates") == []
    assert json.loads(base64.b64decode(token))["secret"] not in remote.log.read_text()


def test_a_revoked_token(remote: Daemon) -> None:
    token = remote.lxc("config", "trust", "add", "--name", "laptop").stdout.splitlines()[-1]
    remote.lxc("config", "trust", "revoke-token", "laptop")
    assert json.loads(remote.lxc("config", "trust", "list-tokens", "--format", "json").stdout) == []
    ended = remote.lxc("remote", "add", "far", token, check=False)
    assert "The token is not valid" in ended.stderr
    remote.lxc("config", "trust", "add", "--name", "kept")
    remote.restart()
    assert json.loads(remote.lxc("config", "trust", "list-tokens", "--format", "json").stdout) == []


# ---- what strangers see


@pytest.fixture(scope="module")
def strangers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Identity | None]:
    folder = tmp_path_factory.mktemp("identities")
    return {
        "nobody": None,
        "unknown": make_identity(folder, "unknown"),
        "expired": make_identity(folder, "old", starts=timedelta(-9), ends=timedelta(-8)),
        "early": make_identity(folder, "early", starts=timedelta(8), ends=timedelta(9)),
        "of an authority": TestAuthority().issue(folder, "issued"),
    }


@pytest.mark.parametrize("who", ["nobody", "unknown", "expired", "early", "of an authority"])
def test_strangers(remote: Daemon, address: str, strangers: dict[str, Identity | None], who: str) -> None:
    identity = strangers[who]
    assert tls.request(address, "GET", "/", identity=identity).metadata == ["/1.0"]
    server = tls.request(address, "GET", "/1.0", identity=identity).metadata
    assert server["auth"] == "untrusted"
    assert not {"config", "environment"} & server.keys()
    assert tls.request(address, "GET", "/1.0/images", identity=identity).metadata == []
    for path in (
        "/1.0/instances",
        "/1.0/certificates",
        "/1.0/events",
        "/1.0/operations",
        "/1.0/profiles",
        "/1.0/projects",
        "/1.0/storage-pools",
        "/1.0/networks",
        "/1.0/resources",
        "/1.0/instances/x/logs",
        "/internal/gc",
    ):
        reply = tls.request(address, "GET", path, identity=identity)
        assert (reply.status, reply.error) == (403, "not authorized"), path
    reply = tls.request(address, "PUT", "/1.0", {"config": {}}, identity=identity)
    assert reply.status == 403
    assert remote.get("/1.0")["config"]["core.https_address"] == address


def test_who_looks_like_a_trusted_client_is_a_stranger(remote: Daemon, address: str, tmp_path: Path) -> None:
    """With the same subject, and one that a trusted certificate has signed; trust is in the key alone."""
    authority = TestAuthority("alice")
    trusted = authority.issue(tmp_path, "alice")
    for certificate in (trusted.pem, authority.pem.decode()):
        body = {"type": "client", "name": "alice", "certificate": certificate}
        remote.do("POST", "/1.0/certificates", body)
    assert tls.request(address, "GET", "/1.0/instances", identity=trusted).status == 200
    for lookalike in (make_identity(tmp_path, "alice"), authority.issue(tmp_path, "alice")):
        assert lookalike.certificate.subject == trusted.certificate.subject
        reply = tls.request(address, "GET", "/1.0/instances", identity=lookalike)
        assert (reply.status, reply.error) == (403, "not authorized")


def test_the_internal_api_is_for_the_socket(remote: Daemon, address: str, tmp_path: Path) -> None:
    alice = make_identity(tmp_path, "alice")
    remote.lxc("config", "trust", "add", str(alice.certificate_file))
    assert tls.request(address, "GET", "/1.0/instances", identity=alice).status == 200
    assert tls.request(address, "GET", "/internal/gc", identity=alice).status == 403


def test_a_thousand_guesses_hold_up_nobody_else(remote: Daemon, address: str, tmp_path: Path) -> None:
    alice, bob = (make_identity(tmp_path, name) for name in ("alice", "bob"))
    body = {"type": "client", "password": "guess"}
    with contextlib.closing(tls.HttpsClient(address, alice, source="127.0.0.9", timeout=60)) as client:
        replies = [client.request("POST", "/1.0/certificates", body) for _ in range(1000)]
        assert {reply.status for reply in replies} == {403}
        assert [reply.error for reply in replies[:5]] == ["not authorized"] * 5
        assert "Too many wrong passwords" in replies[-1].error
        refused = client.request("POST", "/1.0/certificates", body | {"password": PASSWORD})
        assert "Too many wrong passwords" in refused.error
    assert remote.get("/1.0/certificates") == []
    right = body | {"password": PASSWORD}
    assert tls.request(address, "POST", "/1.0/certificates", right, identity=bob).status == 201
    assert tls.request(address, "GET", "/1.0/instances", identity=bob).status == 200


# ---- the address


def test_bad_addresses_change_nothing(remote: Daemon, address: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = f"127.0.0.1:{other.getsockname()[1]}"
        for bad, reason in (
            (taken, "Address already in use"),
            ("192.0.2.1:8443", "Cannot assign requested address"),
            ("no-such-host.invalid:1", "Cannot resolve"),
            ("127.0.0.1:99999", "must be an address and port"),
        ):
            config = {"core.https_address": bad, "user.other": "1"}
            reply = remote.api("PATCH", "/1.0", {"config": config})
            assert reply.status == 400, bad
            assert reason in reply.error
    assert "user.other" not in remote.get("/1.0")["config"]
    assert tls.request(address, "GET", "/1.0").status == 200


def test_the_address_moves_through_the_connection_that_it_ends(
    remote: Daemon, address: str, tmp_path: Path
) -> None:
    alice = make_identity(tmp_path, "alice")
    remote.lxc("config", "trust", "add", str(alice.certificate_file))
    elsewhere = tls.free_address()
    change = {"config": {"core.https_address": elsewhere}}
    assert tls.request(address, "PATCH", "/1.0", change, identity=alice).status == 200
    with pytest.raises(ConnectionRefusedError):
        tls.request(address, "GET", "/1.0")
    back = {"config": {"core.https_address": address}}
    assert tls.request(elsewhere, "PATCH", "/1.0", back, identity=alice).status == 200
    assert tls.request(address, "GET", "/1.0").status == 200


def test_a_running_exec_survives_the_move(remote: Daemon, address: str, busybox: str) -> None:
    add_remote(remote, address)
    remote.lxc("launch", busybox, "c1")

    async def body() -> None:
        client = await asyncio.create_subprocess_exec(
            "lxc",
            "exec",
            "far:c1",
            "--",
            "cat",
            env=remote.lxc_environment(),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        assert client.stdin is not None
        assert client.stdout is not None
        client.stdin.write(b"before\n")
        assert await client.stdout.readline() == b"before\n"
        await asyncio.to_thread(remote.lxc, "config", "set", "core.https_address", tls.free_address())
        client.stdin.write(b"after\n")
        assert await client.stdout.readline() == b"after\n"
        await asyncio.to_thread(remote.lxc, "config", "set", "core.https_address", address)
        client.stdin.close()
        await client.wait()

    try:
        asyncio.run(body())
    finally:
        remote.lxc("delete", "--force", "c1")


def test_a_restart_keeps_trust_and_key_and_does_not_need_the_address(daemon: Daemon, tmp_path: Path) -> None:
    alice = make_identity(tmp_path, "alice")
    address = tls.free_address()
    daemon.lxc("config", "set", "core.https_address", address)
    daemon.lxc("config", "trust", "add", str(alice.certificate_file))
    key = daemon.dir / "server.key"
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    before = key.read_bytes()
    daemon.restart()
    assert key.read_bytes() == before
    assert tls.request(address, "GET", "/1.0", identity=alice).metadata["auth"] == "trusted"
    daemon.stop()
    host, _, port = address.rpartition(":")
    with socket.create_server((host, int(port))):
        daemon.start()
        assert daemon.get("/1.0")["config"]["core.https_address"] == address

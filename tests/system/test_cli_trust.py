"""`utsuwa config trust` and `utsuwa remote add`: how clients come to trust a server, and it them."""

from __future__ import annotations

import base64
import json
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509

from tests.support import tls
from tests.support.client import utsuwa_client
from tests.support.daemon import Daemon
from tests.support.tls import TestAuthority, free_address, make_identity

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def address(module_daemon: Daemon) -> str:
    chosen = free_address()
    module_daemon.do("PATCH", "/1.0", {"config": {"core.https_address": chosen}})
    return chosen


@pytest.fixture
def server(module_daemon: Daemon, address: str) -> Iterator[Daemon]:
    yield module_daemon
    for url in module_daemon.get("/1.0/certificates"):
        module_daemon.do("DELETE", url)
    for url in module_daemon.get("/1.0/operations").get("running", []):
        module_daemon.do("DELETE", url)


@pytest.fixture
def far(tmp_path: Path) -> dict[str, str]:
    """The environment of a client on another machine."""
    return {"UTSUWA_CONF": str(tmp_path / "client")}


def issue(server: Daemon, *more: str, name: str = "laptop") -> str:
    said = utsuwa_client(server, "config", "trust", "add", "--name", name, *more).stdout
    first, token = said.splitlines()
    assert first == f"Client {name} certificate add token:"
    return token


def readdressed(token: str, *addresses: str) -> str:
    content = json.loads(base64.b64decode(token))
    return base64.b64encode(json.dumps({**content, "addresses": addresses}).encode()).decode()


def test_a_client_by_token(server: Daemon, address: str, far: dict[str, str]) -> None:
    token = issue(server)
    listed = json.loads(utsuwa_client(server, "config", "trust", "list-tokens", "-f", "json").stdout)
    assert listed == [{"ClientName": "laptop", "Token": token, "ExpiresAt": ""}]
    assert server.lxc("config", "trust", "list-tokens", "-f", "csv").stdout == f"laptop,{token},\n"
    said = utsuwa_client(server, "remote", "add", "far", token, env=far).stdout
    assert "Client certificate now trusted by server: far\n" in said
    assert "fingerprint" not in said
    assert utsuwa_client(server, "list", "far:", "-f", "json", env=far).stdout == "[]\n"
    assert utsuwa_client(server, "remote", "get-url", "far", env=far).stdout == f"https://{address}\n"
    again = utsuwa_client(server, "remote", "add", "again", token, env=far)
    assert "now trusted" not in again.stdout


def test_an_unusable_token_leaves_nothing(server: Daemon, address: str, far: dict[str, str]) -> None:
    token = issue(server)
    utsuwa_client(server, "config", "trust", "revoke-token", "laptop")
    missing = utsuwa_client(server, "config", "trust", "revoke-token", "laptop", check=False)
    assert "No certificate add token for laptop" in missing.stderr
    for arguments, reason in (
        ((token,), "Give the remote a name"),
        (("far", token), "The token is not valid: it has been used"),
        (("far", readdressed(token, free_address())), "can be reached"),
        (("far", address, "--token", token[:-4]), "pass all of it"),
    ):
        ended = utsuwa_client(server, "remote", "add", *arguments, env=far, input=b"\n", check=False)
        assert ended.returncode == 1
        assert reason in ended.stderr, arguments
        assert "far" not in utsuwa_client(server, "remote", "list", "-f", "csv", env=far).stdout
        assert not (Path(far["UTSUWA_CONF"]) / "servercerts" / "far.crt").exists()


def test_a_token_at_another_address(server: Daemon, address: str, far: dict[str, str]) -> None:
    token = readdressed(issue(server), free_address())
    utsuwa_client(server, "remote", "add", "far", token, env=far, input=address.encode() + b"\n")
    utsuwa_client(server, "list", "far:", env=far)
    server.do("DELETE", server.get("/1.0/certificates")[0])
    utsuwa_client(server, "remote", "add", "nat", address, "--token", issue(server), env=far)
    utsuwa_client(server, "list", "nat:", env=far)


def test_a_token_is_not_sent_to_another_server(
    server: Daemon, address: str, far: dict[str, str], tmp_path: Path
) -> None:
    """Whoever answers at one of the token's addresses must not get the secret."""
    impostor = make_identity(tmp_path, "impostor")
    other = free_address()
    host, _, port = other.rpartition(":")
    files = ("-cert", str(impostor.certificate_file), "-key", str(impostor.key_file))
    argv = ["openssl", "s_server", "-accept", f"{host}:{port}", *files, "-quiet", "-www"]
    fake = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    try:
        wait_for(other)
        token = issue(server)
        named = utsuwa_client(server, "remote", "add", "far", other, "--token", token, env=far, check=False)
        assert "is not the server that has issued the token" in named.stderr
        found = utsuwa_client(server, "remote", "add", "far", readdressed(token, other, address), env=far)
        assert "its certificate differs" in found.stderr
    finally:
        fake.kill()
        fake.wait(10)
    assert utsuwa_client(server, "remote", "get-url", "far", env=far).stdout == f"https://{address}\n"


def wait_for(address: str) -> None:
    host, _, port = address.rpartition(":")
    deadline = time.monotonic() + 30
    while True:
        try:
            socket.create_connection((host, int(port))).close()
        except ConnectionRefusedError:
            assert time.monotonic() < deadline, "openssl does not listen"
            time.sleep(0.02)
        else:
            return


def test_a_restricted_client_works_in_its_project(server: Daemon, far: dict[str, str]) -> None:
    for name in ("web", "mail"):
        server.do("POST", "/1.0/projects", {"name": name})
    token = issue(server, "--restricted", "--projects", "web")
    utsuwa_client(server, "remote", "add", "far", token, env=far)
    listed = json.loads(utsuwa_client(server, "remote", "list", "-f", "json", env=far).stdout)
    assert listed["far"]["Project"] == "web"
    assert utsuwa_client(server, "list", "far:", "-f", "json", env=far).stdout == "[]\n"
    server.do("PATCH", server.get("/1.0/certificates")[0], {"projects": ["web", "mail"]})
    asked = utsuwa_client(server, "remote", "add", "two", listed["far"]["Addr"], env=far, input=b"y\nmail\n")
    assert "Available projects:\n - mail\n - web\n" in asked.stdout
    listed = json.loads(utsuwa_client(server, "remote", "list", "-f", "json", env=far).stdout)
    assert listed["two"]["Project"] == "mail"
    hidden = utsuwa_client(server, "config", "trust", "list-tokens", "far:", env=far, check=False)
    assert "not authorized" in hidden.stderr
    for name in ("web", "mail"):
        server.do("DELETE", f"/1.0/projects/{name}")


def test_certificates_by_file_and_edits(server: Daemon, far: dict[str, str], tmp_path: Path) -> None:
    pem = utsuwa_client(server, "remote", "get-client-certificate", env=far).stdout
    assert pem == (Path(far["UTSUWA_CONF"]) / "client.crt").read_text()
    (tmp_path / "ann.crt").write_text(pem)
    utsuwa_client(server, "config", "trust", "add", str(tmp_path / "ann.crt"), "--type", "metrics")
    (found,) = server.get("/1.0/certificates?recursion=1")
    assert (found["name"], found["type"]) == ("ann.crt", "metrics")
    fingerprint = found["fingerprint"][:12]
    text = utsuwa_client(server, "config", "trust", "show", fingerprint).stdout
    changed = text.replace("name: ann.crt", "name: ann").replace("type: metrics", "type: client")
    utsuwa_client(server, "config", "trust", "edit", fingerprint, input=changed.encode())
    (found,) = server.get("/1.0/certificates?recursion=1")
    assert (found["name"], found["type"]) == ("ann", "client")
    for arguments, reason in (
        (("--type", "server"), "Unknown certificate type 'server'"),
        (("--type", "metrics"), "cannot be added by a token"),
        ((), "Give the client a name"),
    ):
        ended = utsuwa_client(server, "config", "trust", "add", *arguments, input=b"\n", check=False)
        assert reason in ended.stderr
    by_name = utsuwa_client(server, "config", "trust", "add", input=b"desk\n")
    assert "Client desk certificate add token:" in by_name.stdout
    utsuwa_client(server, "config", "trust", "remove", fingerprint)


def test_a_bearer_token_stands_for_the_certificate(server: Daemon, address: str, far: dict[str, str]) -> None:
    utsuwa_client(server, "remote", "add", "far", issue(server), env=far)
    token = utsuwa_client(server, "remote", "get-client-token", "10m", env=far).stdout.strip()
    bearer = {"Authorization": f"Bearer {token}"}
    assert tls.request(address, "GET", "/1.0", headers=bearer).metadata["auth"] == "trusted"
    assert tls.request(address, "GET", "/1.0/instances", headers=bearer).status == 200
    wrong = {"Authorization": f"Bearer {token[:-8]}AAAAAAAA"}
    refused = tls.request(address, "GET", "/1.0/instances", headers=wrong)
    assert (refused.status, refused.error) == (403, "not authorized")
    assert token not in server.log.read_text()
    server.do("DELETE", server.get("/1.0/certificates")[0])
    assert tls.request(address, "GET", "/1.0/instances", headers=bearer).status == 403


def test_a_server_of_the_clients_authority_needs_no_confirmation(
    daemon: Daemon, far: dict[str, str], tmp_path: Path
) -> None:
    authority = TestAuthority()
    names = x509.SubjectAlternativeName([x509.DNSName("localhost")])
    pair = authority.issue(tmp_path, "localhost", (names, False))
    (daemon.dir / "server.crt").write_bytes(pair.certificate_file.read_bytes())
    (daemon.dir / "server.key").write_bytes(pair.key_file.read_bytes())
    port = free_address().rpartition(":")[2]
    daemon.do(
        "PATCH", "/1.0", {"config": {"core.https_address": f"localhost:{port}", "core.trust_password": "x"}}
    )
    daemon.restart()
    conf = Path(far["UTSUWA_CONF"])
    conf.mkdir()
    (conf / "client.ca").write_bytes(authority.pem)
    add = ("remote", "add", "far", f"localhost:{port}", "--password", "x")
    utsuwa_client(daemon, *add, env=far)
    assert not (conf / "servercerts").exists()
    assert utsuwa_client(daemon, "list", "far:", "-f", "json", env=far).stdout == "[]\n"
    (conf / "client.ca").write_bytes(TestAuthority().pem)
    refused = utsuwa_client(daemon, "list", "far:", env=far, check=False)
    assert "is not trusted" in refused.stderr
    (conf / "client.ca").write_text("rubbish")
    unusable = utsuwa_client(daemon, "list", "far:", env=far, check=False)
    assert "put in a certificate in PEM" in unusable.stderr

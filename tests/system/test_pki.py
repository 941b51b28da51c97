"""PKI mode of a real daemon: its clients' certificates come from an authority, and can be revoked by it."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from tests.support import tls
from tests.support.daemon import Daemon
from tests.support.tls import Identity, TestAuthority, make_identity

pytestmark = pytest.mark.root

FOR_CLIENTS = (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), False)
DAY = timedelta(days=1)
PASSWORD = "open-sesame"
WITH_PASSWORD = {"type": "client", "password": PASSWORD}


@dataclass
class Site:
    """A daemon in PKI mode, with a trust password."""

    daemon: Daemon
    authority: TestAuthority
    address: str
    folder: Path
    former: Identity
    """Trusted before the authority was put in."""

    def ask(self, identity: Identity) -> int:
        return tls.request(self.address, "GET", "/1.0/projects", identity=identity).status

    def join(self, identity: Identity) -> int:
        url = "/1.0/certificates"
        return tls.request(self.address, "POST", url, WITH_PASSWORD, identity=identity).status

    def issue(self, name: str) -> Identity:
        return self.authority.issue(self.folder, name, FOR_CLIENTS)

    def set(self, key: str, value: str) -> None:
        self.daemon.do("PATCH", "/1.0", {"config": {key: value}})


@pytest.fixture(scope="module")
def site(module_daemon: Daemon, tmp_path_factory: pytest.TempPathFactory) -> Site:
    daemon, folder = module_daemon, tmp_path_factory.mktemp("pki")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    authority = TestAuthority()
    site = Site(daemon, authority, address, folder, make_identity(folder, "former"))
    site.set("core.https_address", address)
    site.set("core.trust_password", PASSWORD)
    daemon.do("POST", "/1.0/certificates", {"type": "client", "certificate": site.former.pem})
    assert site.ask(site.former) == 200
    (daemon.dir / "server.ca").write_bytes(authority.pem)
    daemon.restart()
    return site


def until(condition: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.05)


def test_clients_of_an_authority(site: Site) -> None:
    alice, foreign = site.issue("alice"), make_identity(site.folder, "foreign")
    assert (site.ask(alice), site.ask(site.former)) == (403, 403)
    assert (site.join(foreign), site.join(alice)) == (400, 201)
    assert site.ask(alice) == 200
    added = site.daemon.api("POST", "/1.0/certificates", {"type": "client", "certificate": foreign.pem})
    assert (added.status, "of the authority in server.ca" in added.error) == (400, True)
    bob = site.issue("bob")
    assert site.ask(bob) == 403
    site.set("core.trust_ca_certificates", "true")
    assert site.ask(bob) == 200
    assert (site.ask(foreign), site.ask(site.former)) == (403, 403)
    assert site.ask(site.authority.issue(site.folder, "old", starts=-2 * DAY, ends=-DAY)) == 403
    site.authority.revoke(alice)
    (site.daemon.dir / "ca.crl").write_bytes(site.authority.revocations())
    until(lambda: site.ask(alice) == 403)
    assert site.ask(bob) == 200
    assert site.join(alice) == 400


def test_an_unusable_list_stops_the_start(site: Site) -> None:
    daemon, crl = site.daemon, site.daemon.dir / "ca.crl"
    daemon.stop()
    crl.write_bytes(TestAuthority().revocations())
    daemon.start(wait=False)
    assert daemon.process is not None
    assert daemon.process.wait(30) != 0
    daemon.process = None
    assert "it is not signed by the authority; put in a list of the authority" in daemon.log.read_text()
    crl.unlink()
    daemon.start()

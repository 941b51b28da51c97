"""What the listener offers to a scanner: each version, cipher suite and curve is tried on its own."""

from __future__ import annotations

import ssl
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from OpenSSL import SSL

from tests.support.tls import client_context, make_identity
from utsuwa.security.tls import ServerContext

OLD = (ssl.TLSVersion.SSLv3, ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1)
SUITES = ("AES128-GCM-SHA256", "AES256-GCM-SHA384", "CHACHA20-POLY1305")
TLS13 = ("TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256")
WEAK_CURVES = ("secp224r1", "secp256k1", "brainpoolP256r1", "sect283k1")


@pytest.fixture(scope="module", params=["ECDSA", "RSA"])
def offer(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, ServerContext]:
    """The kind of the server's key, and its context."""
    key = rsa.generate_private_key(65537, 2048) if request.param == "RSA" else None
    identity = make_identity(tmp_path_factory.mktemp("offer"), "server", key=key)
    return request.param, ServerContext(identity.certificate_file, identity.key_file)


@contextmanager
def old_versions() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        yield


def only(version: ssl.TLSVersion, ciphers: str = "ALL:@SECLEVEL=0") -> ssl.SSLContext:
    context = client_context()
    with old_versions():
        context.minimum_version = context.maximum_version = version
    context.set_ciphers(ciphers)
    return context


def agreed(server: ServerContext, client: ssl.SSLContext) -> tuple[str, str] | None:
    """Return the version and suite of a connection; None if there is none."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    theirs = client.wrap_bio(to_client, to_server)
    ours = server.wrap_bio(to_server, to_client, server_side=True)
    for _ in range(4):
        for side in (theirs, ours):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
            except ssl.SSLError:
                return None
    cipher = ours.cipher()
    assert cipher is not None
    return cipher[1], cipher[0]


def test_only_new_versions(offer: tuple[str, ServerContext]) -> None:
    _, server = offer
    assert [version for version in OLD if agreed(server, only(version))] == []
    for version, name in ((ssl.TLSVersion.TLSv1_2, "TLSv1.2"), (ssl.TLSVersion.TLSv1_3, "TLSv1.3")):
        found = agreed(server, only(version))
        assert found is not None
        assert found[0] == name
    newest = agreed(server, client_context())
    assert newest is not None
    assert newest[0] == "TLSv1.3"


def test_of_all_suites_only_those_with_forward_secrecy_and_authenticated_encryption(
    offer: tuple[str, ServerContext],
) -> None:
    kind, server = offer
    known = client_context()
    known.set_ciphers("ALL:COMPLEMENTOFALL:@SECLEVEL=0")
    names = [cipher["name"] for cipher in known.get_ciphers() if not cipher["name"].startswith("TLS_")]
    assert len(names) > 50
    tried = {name: agreed(server, only(ssl.TLSVersion.TLSv1_2, f"{name}:@SECLEVEL=0")) for name in names}
    assert {name for name, found in tried.items() if found} == {f"ECDHE-{kind}-{suite}" for suite in SUITES}
    newest = agreed(server, only(ssl.TLSVersion.TLSv1_3))
    assert newest is not None
    assert newest[1] in TLS13


def test_no_weak_curves(offer: tuple[str, ServerContext]) -> None:
    _, server = offer
    for curve in WEAK_CURVES:
        context = only(ssl.TLSVersion.TLSv1_2)
        try:
            context.set_ecdh_curve(curve)
        except ValueError:  # this OpenSSL does not know it
            continue
        assert agreed(server, context) is None, curve
    strong = only(ssl.TLSVersion.TLSv1_2)
    strong.set_ecdh_curve("prime256v1")
    assert agreed(server, strong) is not None


class OldClient:
    """A client of TLS 1.2, which can ask for another handshake."""

    def __init__(self, server: ServerContext) -> None:
        context = SSL.Context(SSL.TLS_CLIENT_METHOD)
        context.set_max_proto_version(SSL.TLS1_2_VERSION)
        self.connection = SSL.Connection(context, None)
        self.connection.set_connect_state()
        self._to_server, self._to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.ours = server.wrap_bio(self._to_server, self._to_client, server_side=True)

    def shake_hands(self) -> None:
        """Exchange what there is. Raises an error of either side."""
        for _ in range(4):
            with suppress(SSL.WantReadError):
                self.connection.do_handshake()
            with suppress(SSL.WantReadError):
                self._to_server.write(self.connection.bio_read(65536))
            with suppress(ssl.SSLWantReadError):
                self.ours.read(1)
            if self._to_client.pending:
                self.connection.bio_write(self._to_client.read())


def test_no_renegotiation_and_no_compression(offer: tuple[str, ServerContext]) -> None:
    _, server = offer
    client = OldClient(server)
    client.shake_hands()
    assert client.ours.cipher() is not None
    assert client.ours.compression() is None
    assert client.connection.renegotiate()
    with pytest.raises((SSL.Error, ssl.SSLError), match="renegotiation"):
        client.shake_hands()

"""TLS clients for tests: certificates of any validity, and a small HTTPS request."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

from tests.support.api import Reply

PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey


@dataclass(frozen=True)
class Identity:
    """A certificate and its key, in files."""

    certificate: x509.Certificate
    certificate_file: Path
    key_file: Path

    @property
    def fingerprint(self) -> str:
        return self.certificate.fingerprint(hashes.SHA256()).hex()

    @property
    def pem(self) -> str:
        return self.certificate.public_bytes(serialization.Encoding.PEM).decode()

    @property
    def der(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.DER)


def make_identity(
    folder: Path,
    name: str = "client",
    *,
    starts: timedelta = timedelta(-1),
    ends: timedelta = timedelta(1),
    key: PrivateKey | None = None,
) -> Identity:
    """Create one with the common name `name`, if not empty, valid from now + `starts` to now + `ends`."""
    key = key or ec.generate_private_key(ec.SECP256R1())
    subject = _subject(name)
    certificate = _builder(subject, subject, key, starts, ends).sign(key, hashes.SHA256())
    return _written(folder, certificate, key)


class TestAuthority:
    """A certificate authority, which may be written to `server.ca`."""

    __test__ = False

    def __init__(self, name: str = "authority", *, ends: timedelta = timedelta(1)) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        subject = _subject(name)
        builder = _builder(subject, subject, self.key, timedelta(-2), ends)
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        self.certificate = builder.sign(self.key, hashes.SHA256())
        self._revoked: list[x509.Certificate] = []

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    def issue(
        self,
        folder: Path,
        name: str,
        *extensions: tuple[x509.ExtensionType, bool],
        starts: timedelta = timedelta(-1),
        ends: timedelta = timedelta(1),
    ) -> Identity:
        """Issue a certificate with these extensions, each with whether it is critical."""
        key = ec.generate_private_key(ec.SECP256R1())
        builder = _builder(_subject(name), self.certificate.subject, key, starts, ends)
        for value, critical in extensions:
            builder = builder.add_extension(value, critical=critical)
        return _written(folder, builder.sign(self.key, hashes.SHA256()), key)

    def revoke(self, identity: Identity) -> None:
        self._revoked.append(identity.certificate)

    def revocations(self, encoding: serialization.Encoding = serialization.Encoding.PEM) -> bytes:
        """Return the list of revoked certificates."""
        now = datetime.now(UTC)
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self.certificate.subject)
            .last_update(now - timedelta(2))
            .next_update(now + timedelta(1))
        )
        for certificate in self._revoked:
            builder = builder.add_revoked_certificate(
                x509.RevokedCertificateBuilder()
                .serial_number(certificate.serial_number)
                .revocation_date(now)
                .build()
            )
        return builder.sign(self.key, hashes.SHA256()).public_bytes(encoding)


def _subject(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)] if name else [])


def _builder(
    subject: x509.Name, issuer: x509.Name, key: PrivateKey, starts: timedelta, ends: timedelta
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + starts)
        .not_valid_after(now + ends)
    )


def _written(folder: Path, certificate: x509.Certificate, key: PrivateKey) -> Identity:
    stem = certificate.fingerprint(hashes.SHA256()).hex()[:16]
    identity = Identity(certificate, folder / f"{stem}.crt", folder / f"{stem}.key")
    identity.certificate_file.write_text(identity.pem)
    identity.key_file.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return identity


def free_address() -> str:
    """Return an address of the loopback interface whose port nothing uses at the moment."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return f"127.0.0.1:{probe.getsockname()[1]}"


def client_context(identity: Identity | None = None) -> ssl.SSLContext:
    """Return a context that accepts any server, with `identity` as the client certificate if given."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if identity is not None:
        context.load_cert_chain(identity.certificate_file, identity.key_file)
    return context


def connect(
    address: str, context: ssl.SSLContext, *, timeout: float = 20, session: ssl.SSLSession | None = None
) -> ssl.SSLSocket:
    """A TLS connection to `host:port`; blocking."""
    host, _, port = address.rpartition(":")
    plain = socket.create_connection((host.strip("[]"), int(port)), timeout=timeout)
    try:
        return context.wrap_socket(plain, session=session)
    except BaseException:
        plain.close()
        raise


class HttpsClient:
    """HTTPS requests on one connection, which is opened again where the server has closed it; blocking."""

    def __init__(
        self, address: str, identity: Identity | None = None, *, source: str = "", timeout: float = 20
    ) -> None:
        """Send from the address `source`."""
        context = client_context(identity)
        self._connection = http.client.HTTPSConnection(
            address, timeout=timeout, context=context, source_address=(source, 0)
        )

    def request(
        self, method: str, url: str, body: object = None, headers: Mapping[str, str] | None = None
    ) -> Reply:
        payload = body if body is None or isinstance(body, bytes) else json.dumps(body)
        self._connection.request(method, url, payload, dict(headers or {}))
        answer = self._connection.getresponse()
        content = answer.read()
        names = {name.lower(): value for name, value in answer.getheaders()}
        return Reply(answer.status, names, content)

    def close(self) -> None:
        self._connection.close()


def request(
    address: str,
    method: str,
    url: str,
    body: object = None,
    *,
    identity: Identity | None = None,
    headers: Mapping[str, str] | None = None,
    source: str = "",
    timeout: float = 20,
) -> Reply:
    """Send an HTTPS request on a new connection, from the address `source`; blocking."""
    with contextlib.closing(HttpsClient(address, identity, source=source, timeout=timeout)) as client:
        return client.request(method, url, body, headers)

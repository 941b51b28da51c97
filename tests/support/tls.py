"""TLS clients for tests: certificates of any validity, and a small HTTPS request."""

from __future__ import annotations

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
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.support.api import Reply


@dataclass(frozen=True)
class Identity:
    """A self-signed certificate and its key, in files."""

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
    folder: Path, name: str = "client", *, starts: timedelta = timedelta(-1), ends: timedelta = timedelta(1)
) -> Identity:
    """One with the common name `name` (none where it is empty), valid from now + `starts` to now + `ends`."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)] if name else [])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + starts)
        .not_valid_after(now + ends)
        .sign(key, hashes.SHA256())
    )
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


def client_context(identity: Identity | None = None) -> ssl.SSLContext:
    """A client that takes any server, and shows `identity` where it is given."""
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
    """One HTTPS request on a connection of its own, from the address `source`; blocking."""
    connection = http.client.HTTPSConnection(
        address, timeout=timeout, context=client_context(identity), source_address=(source, 0)
    )
    payload = None if body is None else json.dumps(body)
    try:
        connection.request(method, url, payload, dict(headers or {}))
        answer = connection.getresponse()
        content = answer.read()
        names = {name.lower(): value for name, value in answer.getheaders()}
        return Reply(answer.status, names, content)
    finally:
        connection.close()

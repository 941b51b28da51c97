"""The server's own key and certificate: made once, kept in `server.key` and `server.crt`."""

from __future__ import annotations

import ipaddress
import os
import socket
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from utsuwa.core import clock
from utsuwa.core.errors import HostError
from utsuwa.core.paths import StatePaths

LIFETIME = timedelta(days=3650)
_MAX_COMMON_NAME = 64  # bytes


@dataclass(frozen=True)
class ServerCertificate:
    """What clients pin: the files, the certificate as PEM and its sha256 in hexadecimal."""

    certificate_file: Path
    key_file: Path
    pem: str
    fingerprint: str


def ensure_key_pair(paths: StatePaths) -> ServerCertificate:
    """The key pair of the state folder, made now where there is none; blocking.

    Raises HostError where the certificate has lost its key, or either cannot be read.
    """
    try:
        if not paths.server_cert.exists():
            _create(paths)
        elif not paths.server_key.exists():
            raise HostError(
                f"{paths.server_key} is missing: restore it, or remove {paths.server_cert} "
                "for a new pair, which clients will have to accept anew"
            )
        return _load(paths)
    except OSError as error:
        raise HostError(f"Cannot read or write the server's key pair: {error}") from error


def _load(paths: StatePaths) -> ServerCertificate:
    pem = paths.server_cert.read_text()
    try:
        certificate = x509.load_pem_x509_certificate(pem.encode())
        key = serialization.load_pem_private_key(paths.server_key.read_bytes(), password=None)
    except (ValueError, TypeError) as error:
        raise HostError(
            f"{paths.server_cert} or {paths.server_key} cannot be read: {error}; "
            "restore them, or remove both for a new pair"
        ) from error
    if key.public_key() != certificate.public_key():
        raise HostError(f"{paths.server_key} is not the key of {paths.server_cert}: restore the right pair")
    return ServerCertificate(
        certificate_file=paths.server_cert,
        key_file=paths.server_key,
        pem=pem,
        fingerprint=certificate.fingerprint(hashes.SHA256()).hex(),
    )


def _create(paths: StatePaths) -> None:
    """Key first: one without certificate is what a kill in between leaves, and is made anew."""
    key = ec.generate_private_key(ec.SECP384R1())
    certificate = _self_signed(key, socket.gethostname())
    key_pem = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.TraditionalOpenSSL,
        serialization.NoEncryption(),
    )
    _write(paths.server_key, key_pem, 0o600)
    _write(paths.server_cert, certificate.public_bytes(serialization.Encoding.PEM), 0o644)


def _self_signed(key: ec.EllipticCurvePrivateKey, hostname: str) -> x509.Certificate:
    name = x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Utsuwa"),
            x509.NameAttribute(NameOID.COMMON_NAME, _shortened(f"root@{hostname}")),
        ]
    )
    now = clock.now()
    public = key.public_key()
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now)
        .not_valid_after(now + LIFETIME)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_signing_only(), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName(_alternative_names(hostname)), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(public), critical=False)
        .sign(key, hashes.SHA384())
    )


def _shortened(name: str) -> str:
    """As much of it as X.509 lets stand there."""
    return name.encode()[:_MAX_COMMON_NAME].decode(errors="ignore")


def _signing_only() -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=False,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )


def _alternative_names(hostname: str) -> list[x509.GeneralName]:
    hosts = dict.fromkeys(name for name in (hostname, "localhost") if name and name.isascii())
    return [
        *(x509.DNSName(host) for host in hosts),
        x509.IPAddress(ipaddress.IPv4Address("127.0.0.1")),
        x509.IPAddress(ipaddress.IPv6Address("::1")),
    ]


def _write(path: Path, data: bytes, mode: int) -> None:
    """A whole file or none, with its final mode from the first byte on."""
    new = path.with_name(f".{path.name}.new")
    new.unlink(missing_ok=True)
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, mode)
    with os.fdopen(descriptor, "wb") as file:
        os.fchmod(file.fileno(), mode)
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)

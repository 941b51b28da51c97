"""The client's certificate and key for remote servers, created on first use."""

from __future__ import annotations

import getpass
import os
import socket
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from utsuwa.client.remotes import ClientConfig

_LIFETIME = timedelta(days=3650)


def ensure(config: ClientConfig) -> bool:
    """Create `client.crt` and `client.key` if they are missing; return whether they were created."""
    paths = (config.client_certificate, config.client_key)
    if all(os.path.exists(path) for path in paths):
        return False
    certificate, key = _generate(f"{getpass.getuser()}@{socket.gethostname()}")
    config.write("client.key", key)
    config.write("client.crt", certificate)
    return True


def _generate(name: str) -> tuple[str, str]:
    """Return a self-signed client certificate and its key, as PEM."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    # With P-384, OpenSSL takes ten times longer to sign each handshake, and servers to verify it.
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Utsuwa"),
            x509.NameAttribute(NameOID.COMMON_NAME, name[:64]),
        ]
    )
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=5))
        .not_valid_after(now + _LIFETIME)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return certificate.public_bytes(pem).decode(), private.decode()

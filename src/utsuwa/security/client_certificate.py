"""X.509 certificates of clients: parsing, and what is required of one before it is trusted."""

from __future__ import annotations

import hashlib
from base64 import b64decode
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from utsuwa.core import clock
from utsuwa.core.errors import InvalidRequest

if TYPE_CHECKING:
    # Loaded with the first certificate: a daemon that is only used locally does not need it.
    from cryptography import x509

MAX_CERTIFICATE = 64 * 1024
"""Maximum length of a certificate in a request, in characters."""
MIN_RSA_BITS = 2048


@dataclass(frozen=True)
class ClientCertificate:
    """A parsed certificate."""

    fingerprint: str
    """The SHA-256 of its DER encoding in hexadecimal."""
    der: bytes
    pem: str
    common_name: str
    valid_from: datetime
    valid_until: datetime
    rsa_bits: int | None
    """The length of its key, if that is an RSA key."""

    def valid_at(self, moment: datetime) -> bool:
        return self.valid_from <= moment <= self.valid_until


def parse_certificate(text: str) -> ClientCertificate:
    """Parse a certificate as sent by clients: base64 of DER, or PEM. Raises InvalidRequest."""
    from cryptography import x509

    if len(text) > MAX_CERTIFICATE:
        raise InvalidRequest(f"Invalid certificate: longer than {MAX_CERTIFICATE // 1024} KiB")
    try:
        if text.lstrip().startswith("-----BEGIN"):
            return _described(x509.load_pem_x509_certificate(text.encode()))
        return parse_der(b64decode("".join(text.split()), validate=True))
    except ValueError as error:
        raise InvalidRequest(f"Invalid certificate: neither base64 of DER nor PEM ({error})") from error


def parse_der(der: bytes) -> ClientCertificate:
    """Parse an X.509 certificate. Raises InvalidRequest."""
    from cryptography import x509

    try:
        return _described(x509.load_der_x509_certificate(der))
    except ValueError as error:
        raise InvalidRequest(f"Invalid certificate material: {error}") from error


def _described(certificate: x509.Certificate) -> ClientCertificate:
    from cryptography.hazmat.primitives.serialization import Encoding

    der = certificate.public_bytes(Encoding.DER)
    return ClientCertificate(
        fingerprint=hashlib.sha256(der).hexdigest(),
        der=der,
        pem=certificate.public_bytes(Encoding.PEM).decode(),
        common_name=_common_name(certificate),
        valid_from=certificate.not_valid_before_utc,
        valid_until=certificate.not_valid_after_utc,
        rsa_bits=_rsa_bits(certificate),
    )


def _common_name(certificate: x509.Certificate) -> str:
    """Return the common name; empty if it is missing or not printable."""
    from cryptography.x509.oid import NameOID

    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    value = names[0].value if names else ""
    return value if isinstance(value, str) else ""


def _rsa_bits(certificate: x509.Certificate) -> int | None:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric import rsa

    try:
        key = certificate.public_key()
    except (UnsupportedAlgorithm, ValueError) as error:
        raise InvalidRequest(f"Invalid certificate: its key cannot be used ({error})") from error
    return key.key_size if isinstance(key, rsa.RSAPublicKey) else None


def check_usable(certificate: ClientCertificate) -> None:
    """Raise InvalidRequest for a certificate that must not be trusted from now on."""
    now = clock.now()
    if now < certificate.valid_from:
        raise InvalidRequest(
            f"The certificate is not valid before {clock.to_wire(certificate.valid_from)}: "
            "check the client's clock"
        )
    if now > certificate.valid_until:
        raise InvalidRequest(f"The certificate expired on {clock.to_wire(certificate.valid_until)}")
    if certificate.rsa_bits is not None and certificate.rsa_bits < MIN_RSA_BITS:
        raise InvalidRequest(
            f"The certificate's RSA key has {certificate.rsa_bits} bits: use {MIN_RSA_BITS} or more"
        )

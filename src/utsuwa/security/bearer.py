"""Bearer tokens: JSON Web Tokens that clients sign with the key of their certificate, as in Incus.

The subject is the fingerprint of the certificate. Whoever has the token is granted what the certificate
grants, until the token expires.
"""

from __future__ import annotations

import re
from base64 import urlsafe_b64decode
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import msgspec

from utsuwa.wire.codec import InvalidBody, decode, decode_object

_CURVES = {"ES256": "secp256r1", "ES384": "secp384r1", "ES512": "secp521r1"}
_RSA = frozenset(("RS256", "RS384", "RS512"))
_ALGORITHMS = _RSA | _CURVES.keys()
_BASE64URL = re.compile(r"[A-Za-z0-9_-]+\Z")


class _Claims(msgspec.Struct, kw_only=True):
    sub: str
    nbf: int | float
    exp: int | float
    iss: str = ""


@dataclass(frozen=True)
class Bearer:
    """A token whose signature has not been verified yet."""

    algorithm: str
    claims: _Claims
    signed: bytes
    signature: bytes

    @property
    def fingerprint(self) -> str:
        """Of the certificate that it claims to be signed by."""
        return self.claims.sub

    def valid_at(self, moment: datetime) -> bool:
        return self.claims.nbf <= moment.timestamp() < self.claims.exp

    def signed_by(self, der: bytes) -> bool:
        """Return whether the key of this certificate has signed it."""
        from cryptography import x509
        from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm

        try:
            _verify(x509.load_der_x509_certificate(der).public_key(), self)
        except (InvalidSignature, UnsupportedAlgorithm, ValueError):
            return False
        return True


def parse(header: str) -> Bearer | None:
    """Parse the header `Authorization`; None if it is not such a token."""
    scheme, _, text = header.partition(" ")
    parts = text.split(".")
    if scheme.lower() != "bearer" or len(parts) != 3 or not text.isascii():
        return None
    try:
        head: dict[str, Any] = decode_object(_decoded(parts[0]))
        claims = decode(_decoded(parts[1]), _Claims)
        signature = _decoded(parts[2])
    except (ValueError, InvalidBody):
        return None
    algorithm = str(head.get("alg"))
    # Tokens of identity providers have an issuer; nothing of what `crit` may list is understood here.
    if algorithm not in _ALGORITHMS or "crit" in head or claims.iss:
        return None
    return Bearer(algorithm, claims, f"{parts[0]}.{parts[1]}".encode(), signature)


def _decoded(part: str) -> bytes:
    """Decode base64url without padding. Raises ValueError."""
    if not _BASE64URL.match(part):
        raise ValueError("not base64url")
    return urlsafe_b64decode(part + "=" * (-len(part) % 4))


def _verify(key: object, token: Bearer) -> None:
    """Verify with the algorithm that fits the key. Raises InvalidSignature, ValueError."""
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
    from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

    digests = {"256": hashes.SHA256(), "384": hashes.SHA384(), "512": hashes.SHA512()}
    digest = digests[token.algorithm[-3:]]
    match key:
        case rsa.RSAPublicKey() if token.algorithm in _RSA:
            key.verify(token.signature, token.signed, padding.PKCS1v15(), digest)
        case ec.EllipticCurvePublicKey() if key.curve.name == _CURVES.get(token.algorithm):
            half = (key.key_size + 7) // 8
            if len(token.signature) != 2 * half:
                raise ValueError("the signature has another length")
            numbers = (int.from_bytes(part) for part in (token.signature[:half], token.signature[half:]))
            key.verify(encode_dss_signature(*numbers), token.signed, ec.ECDSA(digest))
        case _:
            raise ValueError("the algorithm is not that of the key")

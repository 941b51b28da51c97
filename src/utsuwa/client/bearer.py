"""Tokens signed with this client's key, with which others can act as this client for a while."""

from __future__ import annotations

import base64
import json
import re
import time
from typing import TYPE_CHECKING

from utsuwa.core.errors import InvalidRequest

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes

    from utsuwa.client.remotes import ClientConfig

_SKEW = 60
"""Seconds by which a server's clock may be behind."""
_DURATION = re.compile(r"(?:([0-9]{1,6})h)?(?:([0-9]{1,6})m)?(?:([0-9]{1,8})s)?\Z")


def parse_duration(text: str) -> int:
    """Return the seconds of a duration such as `1h30m`. Raises InvalidRequest."""
    found = _DURATION.match(text)
    hours, minutes, seconds = (int(part or 0) for part in found.groups()) if found else (0, 0, 0)
    total = hours * 3600 + minutes * 60 + seconds
    if not total:
        raise InvalidRequest(f"Invalid duration {text!r}: use hours, minutes and seconds, such as 1h30m")
    return total


def sign(config: ClientConfig, seconds: int) -> str:
    """Return a JSON Web Token that is valid for `seconds`. Raises InvalidRequest if the key is unsuitable."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization

    with open(config.client_certificate, "rb") as file:
        certificate = x509.load_pem_x509_certificate(file.read())
    with open(config.client_key, "rb") as file:
        key = serialization.load_pem_private_key(file.read(), None)
    now = int(time.time())
    claims = {
        "sub": certificate.fingerprint(hashes.SHA256()).hex(),
        "exp": now + seconds,
        "nbf": now - _SKEW,
        "iat": now,
    }
    return _signed(key, claims)


def _signed(key: PrivateKeyTypes, claims: dict[str, object]) -> str:
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
    from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

    hash_of = {"secp256r1": hashes.SHA256(), "secp384r1": hashes.SHA384(), "secp521r1": hashes.SHA512()}
    if isinstance(key, rsa.RSAPrivateKey):
        signed = _encoded({"alg": "RS256", "typ": "JWT"}) + b"." + _encoded(claims)
        signature = key.sign(signed, padding.PKCS1v15(), hashes.SHA256())
    elif isinstance(key, ec.EllipticCurvePrivateKey) and key.curve.name in hash_of:
        digest = hash_of[key.curve.name]
        signed = _encoded({"alg": f"ES{digest.digest_size * 8}", "typ": "JWT"}) + b"." + _encoded(claims)
        size = (key.key_size + 7) // 8
        r, s = decode_dss_signature(key.sign(signed, ec.ECDSA(digest)))
        signature = r.to_bytes(size) + s.to_bytes(size)
    else:
        curves = "P-256, P-384 or P-521"
        raise InvalidRequest(f"client.key is neither an RSA key nor one on {curves}: replace the pair")
    return (signed + b"." + _base64url(signature)).decode()


def _encoded(value: object) -> bytes:
    return _base64url(json.dumps(value, separators=(",", ":")).encode())


def _base64url(data: bytes) -> bytes:
    return base64.urlsafe_b64encode(data).rstrip(b"=")

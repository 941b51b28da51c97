"""Records of `/1.0/certificates`, the trust store."""

from __future__ import annotations

from base64 import b64decode

import msgspec
from msgspec import UNSET, UnsetType

from utsuwa.wire.codec import InvalidBody, decode

MAX_TOKEN = 16 * 1024
"""Maximum length of a token in characters; it contains all addresses of the server."""


class Certificate(msgspec.Struct, kw_only=True):
    """One trusted certificate; `certificate` is PEM."""

    name: str
    type: str
    restricted: bool
    projects: list[str]
    certificate: str
    fingerprint: str


class CertificatesPost(msgspec.Struct, kw_only=True):
    """Adds a certificate; without `certificate`, that of the connection.

    Clients of LXD send a token as `password`, those of Incus as `trust_token`.
    """

    name: str = ""
    type: str = ""
    certificate: str = ""
    restricted: bool = False
    projects: list[str] = msgspec.field(default_factory=list)
    password: str = ""
    trust_token: str = ""
    token: bool = False

    @property
    def secret(self) -> str:
        """The trust password or a token."""
        return self.password or self.trust_token

    def __repr__(self) -> str:
        """Omit the password: records end up in logs and tracebacks."""
        return f"CertificatesPost(name={self.name!r}, type={self.type!r})"


class CertificatePut(msgspec.Struct, kw_only=True):
    """Replaces a certificate's editable part; an empty `certificate` keeps the current one."""

    name: str = ""
    type: str = ""
    restricted: bool = False
    projects: list[str] = msgspec.field(default_factory=list)
    certificate: str = ""


class CertificatePatch(msgspec.Struct, kw_only=True):
    """Changes a part of it; absent fields keep their values."""

    name: str | UnsetType = UNSET
    type: str | UnsetType = UNSET
    restricted: bool | UnsetType = UNSET
    projects: list[str] | UnsetType = UNSET
    certificate: str | UnsetType = UNSET


class CertificateAddToken(msgspec.Struct, kw_only=True):
    """The content of a token, which is base64 of this record as JSON."""

    fingerprint: str
    addresses: list[str]
    secret: str
    client_name: str = ""

    def __repr__(self) -> str:
        return f"CertificateAddToken(client_name={self.client_name!r})"


def parse_token(text: str) -> CertificateAddToken | None:
    """Decode a token; None if the text is not one, so it is a password."""
    if not text.isascii() or len(text) > MAX_TOKEN:
        return None
    try:
        token = decode(b64decode("".join(text.split()), validate=True), CertificateAddToken)
    except (ValueError, InvalidBody):
        return None
    return token if token.secret and token.fingerprint and token.addresses else None

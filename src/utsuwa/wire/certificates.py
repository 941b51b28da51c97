"""Records of `/1.0/certificates`, the trust store."""

from __future__ import annotations

import msgspec
from msgspec import UNSET, UnsetType


class Certificate(msgspec.Struct, kw_only=True):
    """One trusted certificate; `certificate` is PEM."""

    name: str
    type: str
    restricted: bool
    projects: list[str]
    certificate: str
    fingerprint: str


class CertificatesPost(msgspec.Struct, kw_only=True):
    """Adds a certificate; without `certificate`, that of the connection."""

    name: str = ""
    type: str = ""
    certificate: str = ""
    restricted: bool = False
    projects: list[str] = msgspec.field(default_factory=list)
    password: str = ""
    token: bool = False

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

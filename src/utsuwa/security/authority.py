"""PKI mode: the certificate authority that issues the clients' certificates, and its revocation list.

It is in force if the state directory contains `server.ca`, as in LXD: then only certificates that this
authority has issued are accepted, even if others are in the trust store. `ca.crl`, next to it, lists the
revoked ones.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Self

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.x509.oid import ExtendedKeyUsageOID, ExtensionOID

from utsuwa.core import clock
from utsuwa.core.errors import HostError
from utsuwa.core.paths import StatePaths

log = logging.getLogger(__name__)

_CACHED = 1024
_PEM_CRL = b"-----BEGIN X509 CRL-----"
_END_OF_CRL = b"-----END X509 CRL-----"
_CLIENT_USAGES = frozenset((ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE))
_UNDERSTOOD = frozenset(
    (ExtensionOID.BASIC_CONSTRAINTS, ExtensionOID.KEY_USAGE, ExtensionOID.EXTENDED_KEY_USAGE)
)
"""Extensions that are checked here; others may only be present if they are not critical."""

_Version = tuple[int, int, int]
"""The inode, size and time of change of a file."""


@dataclass(frozen=True)
class _Issued:
    """A client's certificate that one of the authorities has signed."""

    issuer: int
    """The number of the authority in `server.ca`."""
    serial: int
    valid_from: datetime
    valid_until: datetime


class Authority:
    """The authorities in `server.ca` (usually one), and the certificates that they have revoked."""

    def __init__(
        self,
        certificates: Sequence[x509.Certificate],
        revocations: Path,
        now: Callable[[], datetime] = clock.now,
    ) -> None:
        self.certificates = tuple(certificates)
        self._revocations = revocations
        self._now = now
        self._revoked: frozenset[tuple[int, int]] = frozenset()
        self._version: _Version | None = None
        self._find = lru_cache(_CACHED)(self._verified)

    @classmethod
    def load(cls, paths: StatePaths) -> Self | None:
        """Read the files of the state directory; None without `server.ca`. Blocking.

        Raises HostError: a daemon with an unreadable list of revocations must not start without it.
        """
        try:
            text = paths.server_ca.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise HostError(f"Cannot read {paths.server_ca}: {error}") from error
        try:
            found = x509.load_pem_x509_certificates(text)
        except ValueError as error:
            raise HostError(f"{paths.server_ca} does not contain a certificate in PEM: {error}") from error
        for certificate in found:
            if not _may_issue(certificate):
                name = certificate.subject.rfc4514_string()
                raise HostError(
                    f"{paths.server_ca} contains {name!r}, which is not a certificate authority: "
                    "remove it from the file"
                )
        authority = cls(found, paths.ca_crl)
        authority._reload()
        return authority

    def accepts(self, der: bytes) -> bool:
        """Return whether this is a valid client certificate of the authority that is not revoked."""
        issued = self._find(der) if der else None
        if issued is None or (issued.issuer, issued.serial) in self._revoked:
            return False
        issuer = self.certificates[issued.issuer]
        now = self._now()
        return (
            issued.valid_from <= now <= issued.valid_until
            and issuer.not_valid_before_utc <= now <= issuer.not_valid_after_utc
        )

    async def follow(self) -> None:
        """Apply a changed list of revocations; if it is missing or invalid, keep the last one."""
        if self._version != _version(self._revocations):
            try:
                await asyncio.to_thread(self._reload)
            except HostError as error:
                log.error("%s; the last valid list stays in force", error)

    def _reload(self) -> None:
        """Read `ca.crl`; blocking. Raises HostError, also if the file is gone, once for each change."""
        before, self._version = self._version, _version(self._revocations)
        if self._version is None:
            if before is not None:
                raise HostError(f"{self._revocations} is missing: restore it, or restart the daemon")
            return
        try:
            data = self._revocations.read_bytes()
            self._revoked = frozenset(self._revocations_in(data))
        except (OSError, ValueError, UnsupportedAlgorithm) as error:
            raise HostError(
                f"Cannot use {self._revocations}: {error}; put in a list of the authority in server.ca"
            ) from error
        log.info("read the revoked certificates", extra={"count": len(self._revoked)})

    def _revocations_in(self, data: bytes) -> Iterator[tuple[int, int]]:
        """Return issuers and serial numbers in a file; PEM may contain several lists. Raises ValueError."""
        lists = 0
        for found in _lists(data):
            lists += 1
            issuer = self._issuer_of(found)
            if found.next_update_utc is not None and found.next_update_utc < self._now():
                due = clock.to_wire(found.next_update_utc)
                log.warning("%s should have been updated by %s", self._revocations, due)
            for revoked in found:
                yield issuer, revoked.serial_number
        if not lists:
            raise ValueError("it contains no list of revoked certificates")

    def _issuer_of(self, found: x509.CertificateRevocationList) -> int:
        for number, certificate in enumerate(self.certificates):
            key = certificate.public_key()
            if found.issuer == certificate.subject and found.is_signature_valid(key):  # type: ignore[arg-type]
                return number
        raise ValueError("it is not signed by the authority")

    def _verified(self, der: bytes) -> _Issued | None:
        """Verify a certificate, except for what changes with time."""
        try:
            certificate = x509.load_der_x509_certificate(der)
            if not _is_for_clients(certificate):
                return None
            for number, issuer in enumerate(self.certificates):
                if _signed_by(certificate, issuer):
                    return _Issued(
                        number,
                        certificate.serial_number,
                        certificate.not_valid_before_utc,
                        certificate.not_valid_after_utc,
                    )
        except (ValueError, UnsupportedAlgorithm, x509.DuplicateExtension) as error:
            log.debug("a client's certificate cannot be verified: %s", error)
        return None


def _signed_by(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _is_for_clients(certificate: x509.Certificate) -> bool:
    """Return whether a certificate identifies a client: not a server's, nor another authority."""
    if isinstance(certificate.signature_hash_algorithm, hashes.MD5 | hashes.SHA1):
        return False
    for extension in certificate.extensions:
        match extension.value:
            case x509.BasicConstraints(ca=True):
                return False
            case x509.ExtendedKeyUsage() as usages if _CLIENT_USAGES.isdisjoint(usages):
                return False
        if extension.critical and extension.oid not in _UNDERSTOOD:
            return False
    return True


def _may_issue(certificate: x509.Certificate) -> bool:
    values = [extension.value for extension in certificate.extensions]
    usages = [value.key_cert_sign for value in values if isinstance(value, x509.KeyUsage)]
    return any(isinstance(value, x509.BasicConstraints) and value.ca for value in values) and all(usages)


def _lists(data: bytes) -> Iterator[x509.CertificateRevocationList]:
    if _PEM_CRL not in data:
        yield x509.load_der_x509_crl(data)
        return
    for part in data.split(_END_OF_CRL)[:-1]:
        yield x509.load_pem_x509_crl(part[part.index(_PEM_CRL) :] + _END_OF_CRL + b"\n")


def _version(path: Path) -> _Version | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns

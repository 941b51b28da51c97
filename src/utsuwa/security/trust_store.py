"""The trusted certificates in memory, by which the caller of each HTTPS request is identified."""

from __future__ import annotations

import logging
from asyncio import BaseTransport
from collections.abc import Callable, Iterable
from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING, Any

from utsuwa.core import clock
from utsuwa.core.errors import InvalidRequest
from utsuwa.db.certificates import CertificateRow
from utsuwa.security import bearer
from utsuwa.security.authorization import Caller, tls_caller
from utsuwa.security.client_certificate import ClientCertificate, parse_certificate
from utsuwa.security.peer import peer_of
from utsuwa.security.trusted_proxies import TrustedProxies

if TYPE_CHECKING:
    from utsuwa.security.authority import Authority

log = logging.getLogger(__name__)

CLIENT = "client"
METRICS = "metrics"


class TrustStore:
    """The trusted certificates in memory, checked on every request.

    Removing a certificate, or its expiry, therefore takes effect at once on open connections, and on other
    members as soon as they have reloaded.
    """

    def __init__(self, now: Callable[[], datetime] = clock.now) -> None:
        self._now = now
        self._trusted: dict[str, tuple[CertificateRow, ClientCertificate]] = {}
        self._authority: Authority | None = None
        self._trusts_issued: Callable[[], bool] = lambda: False
        self.proxies = TrustedProxies()

    def require_issued_by(self, authority: Authority, trusts_issued: Callable[[], bool]) -> None:
        """Accept certificates of the authority only (PKI mode).

        `trusts_issued` tells whether those that are not in the store are trusted as well.
        """
        self._authority = authority
        self._trusts_issued = trusts_issued

    def issued(self, certificate: ClientCertificate) -> bool:
        """Return whether the authority, if there is one, accepts a certificate."""
        return self._authority is None or self._authority.accepts(certificate.der)

    def load(self, stored: Iterable[CertificateRow]) -> None:
        """Trust exactly these; an invalid row is logged and skipped."""
        trusted = {}
        for row in stored:
            known = self._trusted.get(row.fingerprint)
            if known is not None and known[0] == row:
                trusted[row.fingerprint] = known
                continue
            try:
                certificate = parse_certificate(row.certificate)
            except InvalidRequest as error:
                log.warning("stored certificate %s is not trusted: %s", row.fingerprint[:12], error)
                continue
            if certificate.fingerprint == row.fingerprint:
                trusted[row.fingerprint] = (row, certificate)
            else:
                log.warning("stored certificate %s does not match its fingerprint", row.fingerprint[:12])
        self._trusted = trusted

    def caller(self, transport: BaseTransport) -> Caller:
        """Return the current caller of an HTTPS connection."""
        peer = peer_of(transport)
        address = format_address(self.proxies.peername(transport))
        if peer is None:
            return self.identify("", address)
        return self.identify(peer.fingerprint, address, peer.certificate)

    def bearer(self, header: str, address: str) -> Caller:
        """Return the caller with this `Authorization` header, who has presented no trusted certificate."""
        token = bearer.parse(header)
        _, certificate = self._trusted.get(token.fingerprint, (None, None)) if token else (None, None)
        if token is None or certificate is None or not token.valid_at(self._now()):
            return tls_caller(fingerprint="", address=address, trusted=False)
        if not token.signed_by(certificate.der):
            return tls_caller(fingerprint="", address=address, trusted=False)
        return self.identify(certificate.fingerprint, address, certificate.der)

    def identify(self, fingerprint: str, address: str, der: bytes = b"") -> Caller:
        """Return the caller that has proven possession of the certificate's private key."""
        stranger = tls_caller(fingerprint=fingerprint, address=address, trusted=False)
        if self._authority is not None and not self._authority.accepts(der):
            return stranger
        row, certificate = self._trusted.get(fingerprint, (None, None))
        if row is None or certificate is None:
            if self._authority is None or not self._trusts_issued():
                return stranger
            return tls_caller(fingerprint=fingerprint, address=address, trusted=True)
        if not certificate.valid_at(self._now()):
            return stranger
        projects = frozenset(row.projects) if row.restricted else None
        if row.type == METRICS:
            return replace(stranger, metrics=True, projects=projects, label=row.name)
        # Those of cluster members grant nothing here.
        trusted = row.type == CLIENT
        found = tls_caller(fingerprint=fingerprint, address=address, trusted=trusted, projects=projects)
        return replace(found, label=row.name)


def format_address(peername: Any) -> str:
    """Return `host:port`, with brackets around IPv6; empty if the connection is already closed."""
    if not isinstance(peername, tuple) or len(peername) < 2:
        return ""
    host, port = peername[0], peername[1]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def host_of(address: str) -> str:
    """Return the host of a result of `format_address`."""
    host, _, _ = address.rpartition(":")
    return host.strip("[]")

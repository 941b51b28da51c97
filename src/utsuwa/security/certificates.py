"""Client certificates: the trust store that is checked on every request, and the manager that changes it."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from asyncio import BaseTransport
from base64 import b64decode
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any, Protocol

from utsuwa.core import clock
from utsuwa.core.errors import (
    Forbidden,
    InvalidName,
    InvalidRequest,
    NotFound,
    NotSupportedYet,
    Unavailable,
)
from utsuwa.core.scope import EVERYTHING, Scope
from utsuwa.core.tasks import finish
from utsuwa.core.urls import object_url
from utsuwa.db import certificates as rows
from utsuwa.db.certificates import CertificateRow
from utsuwa.db.database import Database
from utsuwa.db.transaction import Transaction
from utsuwa.security.authorization import NOT_AUTHORIZED, Caller, tls_caller
from utsuwa.security.passwords import GuessLimiter, verify_password
from utsuwa.security.peer import peer_of
from utsuwa.security.server_config import TRUST_PASSWORD, ServerConfig
from utsuwa.wire.certificates import CertificatePut
from utsuwa.wire.edits import Change, IfMatch, edited

if TYPE_CHECKING:
    # Loaded with the first certificate: a daemon that is only used locally does not need it.
    from cryptography import x509

log = logging.getLogger(__name__)

CLIENT = "client"
_TYPES = (CLIENT, "server", "metrics")
MAX_CERTIFICATE = 64 * 1024
"""Maximum length of a certificate in a request, in characters."""
MAX_NAME = 255
_CHECKS_AT_ONCE = 2
_CHECKS_WAITING = 32


class LifecycleEvents(Protocol):
    """The part of the event hub that this module uses."""

    def publish_lifecycle(self, action: str, source: str, project: str = "", context: Any = None) -> None: ...


@dataclass(frozen=True)
class ClientCertificate:
    """A parsed certificate."""

    fingerprint: str
    """The SHA-256 of its DER encoding in hexadecimal."""
    pem: str
    common_name: str
    valid_from: datetime
    valid_until: datetime

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

    return ClientCertificate(
        fingerprint=hashlib.sha256(certificate.public_bytes(Encoding.DER)).hexdigest(),
        pem=certificate.public_bytes(Encoding.PEM).decode(),
        common_name=_common_name(certificate),
        valid_from=certificate.not_valid_before_utc,
        valid_until=certificate.not_valid_after_utc,
    )


def _common_name(certificate: x509.Certificate) -> str:
    """Return the common name; empty if it is missing or not printable."""
    from cryptography.x509.oid import NameOID

    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    value = names[0].value if names else ""
    return value if isinstance(value, str) else ""


class TrustStore:
    """The trusted certificates in memory, checked on every request.

    Removing a certificate, or its expiry, therefore takes effect at once on open connections, and on other
    members as soon as they have reloaded.
    """

    def __init__(self, now: Callable[[], datetime] = clock.now) -> None:
        self._now = now
        self._trusted: dict[str, tuple[CertificateRow, ClientCertificate]] = {}

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
        address = format_address(transport.get_extra_info("peername"))
        return self.identify(peer.fingerprint if peer is not None else "", address)

    def identify(self, fingerprint: str, address: str) -> Caller:
        """Return the caller that has proven possession of the certificate's private key."""
        row, certificate = self._trusted.get(fingerprint, (None, None))
        if row is None or certificate is None:
            return tls_caller(fingerprint=fingerprint, address=address, trusted=False)
        # Only client certificates grant access: other types are for metrics and cluster members.
        trusted = row.type == CLIENT and certificate.valid_at(self._now())
        projects = frozenset(row.projects) if row.restricted else None
        return tls_caller(fingerprint=fingerprint, address=address, trusted=trusted, projects=projects)


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


class CertificateManager:
    """The certificates of one daemon; call `load()` first."""

    def __init__(self, database: Database, events: LifecycleEvents, config: ServerConfig) -> None:
        self.store = TrustStore()
        self._database = database
        self._events = events
        self._config = config
        self._lock = asyncio.Lock()
        self._guesses = GuessLimiter()
        self._checks = asyncio.Semaphore(_CHECKS_AT_ONCE)
        self._waiting = 0

    async def load(self) -> None:
        self.store.load(await self._database.read("certificates", rows.get_all))

    async def follow_others(self) -> None:
        """Reload, to trust the clients that other members have added."""
        async with self._lock:
            await self.load()

    async def list(self, scope: Scope) -> list[CertificateRow]:
        found = await self._database.read("certificates", rows.get_all)
        return [row for row in found if scope.certificate in (None, row.fingerprint)]

    async def get(self, scope: Scope, prefix: str) -> CertificateRow:
        """Return a certificate by fingerprint or prefix. Raises NotFound, or InvalidRequest if ambiguous."""
        return await self._database.read("certificate", _named, scope, prefix)

    async def check_password(self, password: str, address: str) -> None:
        """Raise Forbidden unless `password` is the trust password, or after too many attempts."""
        stored = self._config.value(TRUST_PASSWORD)
        host = host_of(address)
        if not stored or not password:
            raise Forbidden(NOT_AUTHORIZED)
        self._guesses.begin(host)
        if not await self._password_fits(password, stored):
            log.warning("wrong trust password", extra={"address": address})
            raise Forbidden(NOT_AUTHORIZED)
        self._guesses.succeeded(host)

    async def _password_fits(self, password: str, stored: str) -> bool:
        """Check in a thread, two at a time, as each check needs memory and CPU time."""
        if self._waiting >= _CHECKS_WAITING:
            raise Unavailable("Too many passwords are being checked, try again in a moment")
        self._waiting += 1
        try:
            async with self._checks:
                return await asyncio.to_thread(verify_password, password, stored)
        finally:
            self._waiting -= 1

    async def add(
        self,
        certificate: ClientCertificate,
        name: str,
        *,
        restricted: bool = False,
        projects: Sequence[str] = (),
    ) -> CertificateRow:
        """Trust a client's certificate; a restricted one in these projects alone.

        Raises AlreadyExists, NotFound (project), InvalidRequest where it has expired.
        """
        check_name(name)
        if certificate.valid_until < clock.now():
            raise InvalidRequest(f"The certificate expired on {clock.to_wire(certificate.valid_until)}")
        row = CertificateRow(
            id=0,
            fingerprint=certificate.fingerprint,
            type=CLIENT,
            name=name,
            certificate=certificate.pem,
            restricted=restricted,
            projects=list(projects),
        )

        def insert(tx: Transaction) -> CertificateRow:
            rows.insert(tx, row)
            return row

        return await finish(self._change("created", insert))

    async def edit(
        self, scope: Scope, prefix: str, change: Change[CertificatePut], if_match: IfMatch
    ) -> None:
        """Change the name or the restriction, or replace the certificate.

        A restricted caller may replace its own certificate only. Raises NotFound, PreconditionFailed,
        InvalidRequest, Forbidden.
        """

        def update(tx: Transaction) -> CertificateRow:
            old = _named(tx, scope, prefix)
            new = _with(old, edited(editable(old), change, if_match))
            if scope.restricted:
                _refuse_more_than_rotation(old, new)
            if old.fingerprint == new.fingerprint:
                rows.update(tx, new)
            else:
                rows.delete(tx, old.id)
                rows.insert(tx, new)
            return new

        await finish(self._change("updated", update))

    async def delete(self, prefix: str) -> None:
        """Remove a certificate. Raises as `get` does."""

        def delete(tx: Transaction) -> CertificateRow:
            row = _named(tx, EVERYTHING, prefix)
            rows.delete(tx, row.id)
            return row

        await finish(self._change("deleted", delete))

    async def _change(self, action: str, change: Callable[[Transaction], CertificateRow]) -> CertificateRow:
        """Change the rows, and reload the trust store from them."""
        async with self._lock:
            row = await self._database.write(f"certificate is {action}", change)
            await self.load()
        self._events.publish_lifecycle(f"certificate-{action}", certificate_url(row), "default")
        return row


def certificate_url(row: CertificateRow) -> str:
    return object_url("certificates", row.fingerprint)


def editable(row: CertificateRow) -> CertificatePut:
    return CertificatePut(
        name=row.name,
        type=row.type,
        restricted=row.restricted,
        projects=row.projects,
        certificate=row.certificate,
    )


def _named(tx: Transaction, scope: Scope, prefix: str) -> CertificateRow:
    if scope.certificate is not None:
        if not prefix or not scope.certificate.startswith(prefix.lower()):
            raise NotFound("Certificate not found")
        prefix = scope.certificate
    try:
        return rows.get(tx, prefix.lower())
    except InvalidName as error:
        raise NotFound("Certificate not found") from error


def _with(row: CertificateRow, wanted: CertificatePut) -> CertificateRow:
    if wanted.type != row.type:
        raise Forbidden("The certificate type cannot be changed")
    check_type(wanted.type)
    check_name(wanted.name)
    certificate = parse_certificate(wanted.certificate or row.certificate)
    return replace(
        row,
        name=wanted.name,
        restricted=wanted.restricted,
        projects=list(wanted.projects),
        fingerprint=certificate.fingerprint,
        certificate=certificate.pem,
    )


def _refuse_more_than_rotation(old: CertificateRow, new: CertificateRow) -> None:
    rotated = replace(old, fingerprint=new.fingerprint, certificate=new.certificate)
    if rotated != new:
        raise Forbidden("Only the certificate itself can be changed")


def check_type(kind: str) -> None:
    """Raises InvalidRequest, NotSupportedYet."""
    if kind not in _TYPES:
        raise InvalidRequest(f"Invalid certificate type {kind[:40]!r}: use {CLIENT!r}")
    if kind != CLIENT:
        raise NotSupportedYet(f"Certificates of type {kind!r} are not supported in this version")


def check_name(name: str) -> None:
    """Raise InvalidRequest if a name is too long or has control characters."""
    if len(name) > MAX_NAME:
        raise InvalidRequest(f"The certificate's name is longer than {MAX_NAME} characters")
    if not name.isprintable():
        raise InvalidRequest("The certificate's name has control characters")


def default_name(certificate: ClientCertificate, address: str) -> str:
    """Return the name for a certificate sent without one: its common name, or the client's address."""
    own = certificate.common_name[:MAX_NAME]
    if own and own.isprintable():
        return own
    return host_of(address) or certificate.fingerprint[:12]

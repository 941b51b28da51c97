"""The manager of the trust store: certificates of clients, and those for metrics."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Protocol

from utsuwa.core.errors import Forbidden, InvalidName, InvalidRequest, NotFound, NotSupportedYet
from utsuwa.core.scope import EVERYTHING, Scope
from utsuwa.core.tasks import finish
from utsuwa.core.urls import object_url
from utsuwa.db import certificates as rows
from utsuwa.db.certificates import CertificateRow
from utsuwa.db.database import Database
from utsuwa.db.transaction import Transaction
from utsuwa.security.client_certificate import ClientCertificate, check_usable, parse_certificate
from utsuwa.security.trust_store import CLIENT, METRICS, TrustStore, host_of
from utsuwa.wire.certificates import CertificatePut
from utsuwa.wire.edits import Change, IfMatch, edited

_SERVER = "server"
MAX_NAME = 255


class LifecycleEvents(Protocol):
    """The part of the event hub that this module uses."""

    def publish_lifecycle(self, action: str, source: str, project: str = "", context: Any = None) -> None: ...


class CertificateManager:
    """The certificates of one daemon; call `load()` first."""

    def __init__(self, database: Database, events: LifecycleEvents) -> None:
        self.store = TrustStore()
        self._database = database
        self._events = events
        self._lock = asyncio.Lock()

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

    async def check_projects(self, projects: Sequence[str]) -> None:
        """Raise NotFound unless all these projects exist."""
        await self._database.read("projects of a certificate", rows.check_projects, projects)

    async def add(
        self,
        certificate: ClientCertificate,
        name: str,
        *,
        type: str = CLIENT,
        restricted: bool = False,
        projects: Sequence[str] = (),
    ) -> CertificateRow:
        """Trust a client's certificate; a restricted one in these projects alone.

        Raises AlreadyExists, NotFound (project), InvalidRequest, NotSupportedYet.
        """
        check_type(type)
        check_name(name)
        self._check_usable(certificate)
        row = CertificateRow(
            id=0,
            fingerprint=certificate.fingerprint,
            type=type,
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
        """Change the name, the type or the restriction, or replace the certificate.

        A restricted caller may replace its own certificate only. Raises NotFound, PreconditionFailed,
        InvalidRequest, Forbidden.
        """

        def update(tx: Transaction) -> CertificateRow:
            old = _named(tx, scope, prefix)
            new = self._with(old, edited(editable(old), change, if_match))
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
        # In no project, so that callers who are restricted to some do not learn of other clients.
        self._events.publish_lifecycle(f"certificate-{action}", certificate_url(row))
        return row

    def _with(self, row: CertificateRow, wanted: CertificatePut) -> CertificateRow:
        check_type(wanted.type)
        check_name(wanted.name)
        certificate = parse_certificate(wanted.certificate or row.certificate)
        if certificate.fingerprint != row.fingerprint:
            self._check_usable(certificate)
        return replace(
            row,
            name=wanted.name,
            type=wanted.type,
            restricted=wanted.restricted,
            projects=list(wanted.projects),
            fingerprint=certificate.fingerprint,
            certificate=certificate.pem,
        )

    def _check_usable(self, certificate: ClientCertificate) -> None:
        """Raise InvalidRequest for a certificate with which nobody could identify."""
        check_usable(certificate)
        if not self.store.issued(certificate):
            raise InvalidRequest(
                "The certificate is not a valid client certificate of the authority in server.ca, or it was "
                "revoked: use one that this authority has issued"
            )


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


def _refuse_more_than_rotation(old: CertificateRow, new: CertificateRow) -> None:
    rotated = replace(old, fingerprint=new.fingerprint, certificate=new.certificate)
    if rotated != new:
        raise Forbidden("Only the certificate itself can be changed")


def check_type(kind: str) -> None:
    """Raises InvalidRequest, NotSupportedYet."""
    if kind == _SERVER:
        raise NotSupportedYet(
            "Certificates of type 'server' identify members of a cluster, which this version cannot form: "
            f"use {CLIENT!r}"
        )
    if kind not in (CLIENT, METRICS):
        raise InvalidRequest(f"Invalid certificate type {kind[:40]!r}: use {CLIENT!r} or {METRICS!r}")


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

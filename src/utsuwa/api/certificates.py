"""`/1.0/certificates`: trusted client certificates."""

from __future__ import annotations

from typing import Any

from utsuwa.api.http import Created, Empty, Handler, Request, Result, Route, Sync, about
from utsuwa.core.entitlements import Entitlement, Entity
from utsuwa.core.errors import Forbidden, InvalidRequest, NotSupportedYet
from utsuwa.db.certificates import CertificateRow
from utsuwa.security.authorization import NOT_AUTHORIZED, Access, require
from utsuwa.security.certificates import (
    ClientCertificate,
    certificate_url,
    check_type,
    default_name,
    editable,
    parse_certificate,
    parse_der,
)
from utsuwa.security.peer import peer_of
from utsuwa.wire.certificates import Certificate, CertificatePatch, CertificatePut, CertificatesPost
from utsuwa.wire.edits import merge, replace


async def list_certificates(request: Request) -> Result:
    rows = await request.services.certificates.list(request.scope)
    if request.recursion:
        return Sync([_record(row) for row in rows])
    return Sync([certificate_url(row) for row in rows])


async def add_certificate(request: Request) -> Result:
    """Untrusted callers need the trust password, which is checked before anything is revealed."""
    body = await request.body(CertificatesPost)
    manager = request.services.certificates
    if request.caller.trusted:
        require(request.scope, Entity.CERTIFICATE, Entitlement.CAN_CREATE, None)
    else:
        if not body.password:
            raise Forbidden(NOT_AUTHORIZED)
        await manager.check_password(body.password, request.caller.address)
    check_type(body.type)
    if body.token:
        raise NotSupportedYet(
            "Certificate tokens are not supported in this version: "
            "add the client's certificate file, or set core.trust_password"
        )
    certificate = parse_certificate(body.certificate) if body.certificate else _own(request)
    name = body.name or default_name(certificate, request.caller.address)
    row = await manager.add(certificate, name, restricted=body.restricted, projects=body.projects)
    return Created(certificate_url(row))


async def show_certificate(request: Request) -> Result:
    row = await request.services.certificates.get(request.scope, request.params["fingerprint"])
    return Sync(_record(row), etag=editable(row))


async def replace_certificate(request: Request) -> Result:
    body = await request.body(CertificatePut)
    await request.services.certificates.edit(
        request.scope, request.params["fingerprint"], replace(body), request.if_match
    )
    return Empty()


async def patch_certificate(request: Request) -> Result:
    body = await request.body(CertificatePatch)
    await request.services.certificates.edit(
        request.scope, request.params["fingerprint"], merge(body), request.if_match
    )
    return Empty()


async def delete_certificate(request: Request) -> Result:
    await request.services.certificates.delete(request.params["fingerprint"])
    return Empty()


def _own(request: Request) -> ClientCertificate:
    """Return the certificate of an untrusted caller's connection."""
    if request.caller.trusted:
        raise InvalidRequest("Client is already trusted")
    transport = request.raw.transport
    peer = peer_of(transport) if transport is not None else None
    if peer is None or not peer.certificate:
        raise InvalidRequest("No client certificate provided")
    return parse_der(peer.certificate)


def _record(row: CertificateRow) -> Certificate:
    return Certificate(
        name=row.name,
        type=row.type,
        restricted=row.restricted,
        projects=row.projects,
        certificate=row.certificate,
        fingerprint=row.fingerprint,
    )


def _route(method: str, path: str, handler: Handler, summary: str, **more: Any) -> Route:
    return Route(method, f"/1.0/certificates{path}", handler, summary, **more)


ROUTES: tuple[Route, ...] = about(
    Entity.CERTIFICATE,
    _route("GET", "", list_certificates, "List trusted certificates", reply=list[str] | list[Certificate]),
    _route(
        "POST",
        "",
        add_certificate,
        "Trust a certificate",
        reply=Created,
        body=CertificatesPost,
        access=Access.PUBLIC,
        description="Callers who are not trusted add their own with the trust password.",
    ),
    _route("GET", "/{fingerprint}", show_certificate, "Show a trusted certificate", reply=Certificate),
    _route("PUT", "/{fingerprint}", replace_certificate, "Replace what can be edited", body=CertificatePut),
    _route("PATCH", "/{fingerprint}", patch_certificate, "Change what can be edited", body=CertificatePatch),
    _route("DELETE", "/{fingerprint}", delete_certificate, "Stop trusting a certificate"),
)

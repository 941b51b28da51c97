"""`/1.0/certificates`: trusted certificates of clients, and tokens for new clients."""

from __future__ import annotations

from typing import Any

from utsuwa.api.http import Background, Created, Empty, Handler, Request, Result, Route, Sync, about
from utsuwa.core import clock
from utsuwa.core.entitlements import Entitlement, Entity
from utsuwa.core.errors import Forbidden, InvalidRequest
from utsuwa.core.schedules import add_span
from utsuwa.db.certificates import CertificateRow
from utsuwa.security.authorization import NOT_AUTHORIZED, Access, require
from utsuwa.security.certificates import (
    certificate_url,
    check_name,
    check_type,
    default_name,
    editable,
)
from utsuwa.security.client_certificate import ClientCertificate, parse_certificate, parse_der
from utsuwa.security.peer import peer_of
from utsuwa.security.server_config import TOKEN_EXPIRY
from utsuwa.security.trust_store import CLIENT
from utsuwa.wire.certificates import (
    Certificate,
    CertificatePatch,
    CertificatePut,
    CertificatesPost,
    parse_token,
)
from utsuwa.wire.edits import merge, replace


async def list_certificates(request: Request) -> Result:
    rows = await request.services.certificates.list(request.scope)
    if request.recursion:
        return Sync([_record(row) for row in rows])
    return Sync([certificate_url(row) for row in rows])


async def add_certificate(request: Request) -> Result:
    """Untrusted callers need the trust password or a token, checked before anything is revealed."""
    body = await request.body(CertificatesPost)
    if request.caller.trusted:
        require(request.scope, Entity.CERTIFICATE, Entitlement.CAN_CREATE, None)
        return await (_issue_token(request, body) if body.token else _add(request, body))
    if body.token:
        raise Forbidden(NOT_AUTHORIZED)
    services = request.services
    token = parse_token(body.secret)
    if token is None:
        await services.trust_password.check(body.secret, request.caller.address)
        return await _add(request, body)
    if not services.join_tokens.knows(token.secret):
        services.trust_password.count_guess(request.caller.address)
    with services.join_tokens.redeem(token.secret) as grant:
        return await _add(request, grant)


async def _add(request: Request, wanted: CertificatesPost) -> Result:
    check_type(wanted.type)
    certificate = parse_certificate(wanted.certificate) if wanted.certificate else _own(request)
    name = wanted.name or default_name(certificate, request.caller.address)
    row = await request.services.certificates.add(
        certificate, name, type=wanted.type, restricted=wanted.restricted, projects=wanted.projects
    )
    return Created(certificate_url(row))


async def _issue_token(request: Request, wanted: CertificatesPost) -> Result:
    if wanted.certificate:
        raise InvalidRequest("A token is for a client with an unknown certificate: omit the certificate")
    if wanted.type != CLIENT:
        raise InvalidRequest(f"Tokens can only be issued for certificates of the type {CLIENT!r}")
    check_name(wanted.name)
    services = request.services
    await services.certificates.check_projects(wanted.projects)
    server = await services.daemon.environment()
    if not server.addresses:
        raise InvalidRequest(
            "Tokens cannot be issued while the server is not on the network: set core.https_address first"
        )
    operation = services.join_tokens.issue(
        wanted,
        fingerprint=server.certificate_fingerprint,
        addresses=server.addresses,
        expires_at=add_span(services.server.value(TOKEN_EXPIRY), clock.now()),
    )
    services.events.publish_lifecycle("certificate-token-created", operation.url)
    return Background(operation)


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
        "Trust a certificate, or issue a token",
        reply=Created,
        body=CertificatesPost,
        access=Access.PUBLIC,
        may_continue=True,
        description="Callers who are not trusted add their own with the trust password or a token. With"
        " token, one is issued: an operation of the class token, whose metadata contains it.",
    ),
    _route("GET", "/{fingerprint}", show_certificate, "Show a trusted certificate", reply=Certificate),
    _route(
        "PUT",
        "/{fingerprint}",
        replace_certificate,
        "Replace a certificate's editable part",
        body=CertificatePut,
    ),
    _route("PATCH", "/{fingerprint}", patch_certificate, "Change a certificate", body=CertificatePatch),
    _route("DELETE", "/{fingerprint}", delete_certificate, "Remove a certificate from the trust store"),
)

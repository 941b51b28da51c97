"""`/ui/`, the web page, and `/1.0/web`, its sessions."""

from __future__ import annotations

from http import HTTPStatus

from aiohttp import web

from utsuwa.api.cross_site import is_secure
from utsuwa.api.http import Raw, Request, Result, Route, Sync
from utsuwa.api.web_login import cookie_of, forget_cookie, set_cookie
from utsuwa.core import clock
from utsuwa.core.entitlements import Entitlement
from utsuwa.core.errors import NotFound
from utsuwa.core.threads import in_thread
from utsuwa.httpd.page_files import find_view
from utsuwa.httpd.page_replies import page_response
from utsuwa.security.authorization import Access
from utsuwa.security.peer import peer_of
from utsuwa.wire.envelope import sync_reply
from utsuwa.wire.web import WebSession, WebSessionPost, WebToken, WebTokensPost, WebTokenState


async def show_page(request: Request) -> Result:
    """Return a file of the page; every other path is one of its views, so the page itself."""
    found = await in_thread(find_view, request.params.get("path", ""))
    if found is None:
        raise NotFound("The page has no such file")
    return Raw(page_response(request.raw, found))


async def redirect_to_page(request: Request) -> Result:
    return Raw(web.Response(status=HTTPStatus.PERMANENT_REDIRECT, headers={"Location": "/ui/"}))


async def issue_token(request: Request) -> Result:
    body = await request.body(WebTokensPost)
    services = request.services
    caller = request.caller
    peer = peer_of(request.raw.transport) if request.raw.transport is not None else None
    certificate = peer.certificate if peer is not None and peer.fingerprint == caller.fingerprint else b""
    token = services.web_sessions.issue(caller, certificate, local=body.local)
    origin = await services.loopback.open() if body.local else ""
    return Sync(
        WebToken(
            id=token.id,
            secret=token.secret,
            url=f"{origin}/ui/#token={token.secret}" if origin else "",
            expires_at=clock.to_wire(token.expires_at),
        )
    )


async def show_token(request: Request) -> Result:
    token = request.params["id"]
    if not request.services.web_sessions.is_waiting(token):
        raise NotFound("The token has been used, has expired, or does not exist")
    return Sync(WebTokenState(id=token))


async def sign_in(request: Request) -> Result:
    body = await request.body(WebSessionPost)
    raw = request.raw
    opened = await request.services.web_sessions.begin(body.token, local=not is_secure(raw))
    reply = WebSession(key=opened.key, expires_at=clock.to_wire(opened.expires_at))
    response = web.Response(body=sync_reply(reply), content_type="application/json")
    response.headers["Cache-Control"] = "no-store"
    set_cookie(raw, response, opened.cookie)
    return Raw(response)


async def sign_out(request: Request) -> Result:
    """End the session of the cookie; without one there is nothing to end."""
    if cookie := cookie_of(request.raw):
        await request.services.web_sessions.end(cookie)
    response = web.Response(body=sync_reply({}), content_type="application/json")
    forget_cookie(request.raw, response)
    return Raw(response)


ROUTES: tuple[Route, ...] = (
    Route("GET", "/ui", redirect_to_page, "Redirect to the web page", Raw, access=Access.PUBLIC),
    Route("GET", "/ui/", show_page, "Show the web page", Raw, access=Access.PUBLIC),
    Route("GET", "/ui/{path:path}", show_page, "Return a file of the web page", Raw, access=Access.PUBLIC),
    Route(
        "POST",
        "/1.0/web/tokens",
        issue_token,
        "Issue a token for the web page",
        WebToken,
        body=WebTokensPost,
        entitlement=Entitlement.CAN_VIEW,
        description="It begins one session with the rights of the caller, within five minutes. With local,"
        " which is for callers on the unix socket, the session is on the daemon's loopback address.",
    ),
    Route(
        "GET",
        "/1.0/web/tokens/{id}",
        show_token,
        "Show whether a token has not been used yet",
        WebTokenState,
        entitlement=Entitlement.CAN_VIEW,
    ),
    Route(
        "POST",
        "/1.0/web/session",
        sign_in,
        "Begin a session of the web page",
        Raw,
        body=WebSessionPost,
        access=Access.PUBLIC,
        entitlement=Entitlement.CAN_VIEW,
        description="Sets the cookie, and returns the key that the page sends with it.",
    ),
    Route(
        "DELETE",
        "/1.0/web/session",
        sign_out,
        "End the session of the web page",
        Raw,
        access=Access.PUBLIC,
        entitlement=Entitlement.CAN_VIEW,
    ),
)

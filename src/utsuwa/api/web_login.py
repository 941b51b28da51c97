"""Callers in a session of the web page: the cookie, the page's key, and where they may come from."""

from __future__ import annotations

from aiohttp import web

from utsuwa.api.cross_site import from_own_page, is_secure
from utsuwa.api.services import Services
from utsuwa.core.origins import parse_host
from utsuwa.security.authorization import Caller
from utsuwa.security.web_sessions import SESSION_TIME

KEY_HEADER = "X-Utsuwa-Key"
KEY_PROTOCOL = "utsuwa.key."
"""How the websocket subprotocol begins that carries the key, as a page cannot set headers of websockets."""
_SECURE_NAME = "__Host-utsuwa"
"""Browsers accept such a cookie only from HTTPS, for this host alone and all of its paths."""
_LOCAL_NAME = "utsuwa"


def signed_in(raw: web.BaseRequest, services: Services, stranger: Caller) -> Caller:
    """Return the caller of a request's session, or `stranger` if there is none.

    The cookie counts only in requests that the browser says are from a page of this very origin.
    """
    cookie = cookie_of(raw)
    if not cookie or not from_own_page(raw):
        return stranger
    local = not is_secure(raw)
    return services.web_sessions.caller(cookie, _key_of(raw), stranger.address, local=local) or stranger


def cookie_of(raw: web.BaseRequest) -> str:
    """Return the value of the session's cookie; empty if there is none."""
    return raw.cookies.get(_name(raw), "") if "Cookie" in raw.headers else ""


def set_cookie(raw: web.BaseRequest, response: web.StreamResponse, value: str) -> None:
    """Have the browser keep the session, at most for its time."""
    seconds = int(SESSION_TIME.total_seconds())
    response.set_cookie(
        _name(raw),
        value,
        path="/",
        max_age=seconds,
        secure=is_secure(raw),
        httponly=True,
        samesite="Strict",
    )


def forget_cookie(raw: web.BaseRequest, response: web.StreamResponse) -> None:
    response.del_cookie(_name(raw), path="/", secure=is_secure(raw), httponly=True, samesite="Strict")


def _name(raw: web.BaseRequest) -> str:
    """Return the cookie's name. Several daemons on one host share its cookies, so the port is in the name."""
    if not is_secure(raw):
        return _LOCAL_NAME
    _, port = parse_host(raw.headers.get("Host", ""), "https") or ("", 0)
    return f"{_SECURE_NAME}-{port}"


def _key_of(raw: web.BaseRequest) -> str:
    if key := raw.headers.get(KEY_HEADER):
        return key
    for offered in raw.headers.get("Sec-WebSocket-Protocol", "").split(","):
        if offered.strip().startswith(KEY_PROTOCOL):
            return offered.strip().removeprefix(KEY_PROTOCOL)
    return ""

"""Protection against cross-site requests of browsers.

A browser adds its user's client certificate to requests of any page, so the certificate alone does not prove
that its owner intended the request. The browser's headers `Origin` and `Sec-Fetch-Site` do, which pages can
neither set nor omit. Other programs send neither.

`Host` is not checked against a list: DNS rebinding fails because the server's certificate does not match the
page's name, and only local programs can reach the unix socket.
"""

from __future__ import annotations

from collections.abc import Mapping

from aiohttp import web

from utsuwa.api.services import Services
from utsuwa.core.errors import Forbidden
from utsuwa.core.origins import ANY, Origin, parse_host, parse_origin
from utsuwa.security.authorization import Caller
from utsuwa.security.server_config import ServerConfig

_OWN_PAGES = frozenset(("same-origin", "none"))
"""The values of `Sec-Fetch-Site` for this server's own pages, and for what the user typed."""
_TLS_SCHEMES = frozenset(("https", "wss"))
_SCHEMES = _TLS_SCHEMES | {"http", "ws"}
_LOCAL_SCHEME = "ws+unix"
"""The origin that ws4py, used by pylxd, sends on the unix socket; no page has such an origin."""
_NO_HEADERS: Mapping[str, str] = {}
_REPLY_HEADERS = web.RequestKey("cross-site reply headers", dict[str, str])


def from_browser(raw: web.BaseRequest) -> bool:
    """Return whether the request has headers that only browsers send."""
    return any(name == "origin" or name.startswith("sec-fetch-") for name in map(str.lower, raw.headers))


def from_own_page(raw: web.BaseRequest) -> bool:
    """Return whether the browser says that a page of this server's very origin has sent the request."""
    origins, sites = raw.headers.getall("Origin", ()), raw.headers.getall("Sec-Fetch-Site", ())
    if not origins and not sites:
        return False
    return all(_is_own(raw, origin) for origin in origins) and all(site == "same-origin" for site in sites)


def is_secure(raw: web.BaseRequest) -> bool:
    """Return whether the connection is HTTPS."""
    return raw.transport is not None and raw.transport.get_extra_info("sslcontext") is not None


def reply_headers(raw: web.BaseRequest) -> Mapping[str, str]:
    """Return the CORS headers for a page that `admit` has allowed; none for all others."""
    headers: Mapping[str, str] = raw.get(_REPLY_HEADERS, _NO_HEADERS)
    return headers


def admit(raw: web.BaseRequest, caller: Caller, services: Services) -> None:
    """Raise Forbidden for pages of another site, unless it is in `core.https_allowed_origin`."""
    headers = raw.headers
    if "Origin" not in headers and "Sec-Fetch-Site" not in headers:
        return
    origins = headers.getall("Origin", ())
    own = all(_is_own(raw, origin) for origin in origins)
    if _opens_page(raw):
        return
    if own and _OWN_PAGES.issuperset(headers.getall("Sec-Fetch-Site", ())):
        return
    config = services.server
    if len(origins) != 1 or not _allowed(origins[0], config):
        raise Forbidden(
            "Requests from web pages of other sites are rejected: if you trust the site, add it to"
            " core.https_allowed_origin"
        )
    if raw.method != "OPTIONS" and caller.trusted and not _may_act_as_caller(config):
        raise Forbidden(
            "Web pages of any site may not act for a trusted client: use the site's origin instead of * in"
            " core.https_allowed_origin, or set core.https_allowed_credentials"
        )
    raw[_REPLY_HEADERS] = _sharing_headers(origins[0], config)


def _is_own(raw: web.BaseRequest, text: str) -> bool:
    """Return whether an origin is this server, under the host name used by the browser."""
    origin = parse_origin(text)
    if origin is None:
        return False
    secure = is_secure(raw)
    if origin.scheme == _LOCAL_SCHEME:
        return not secure
    # The unix socket may be behind a proxy that terminates TLS, so both schemes are possible.
    if origin.scheme not in (_TLS_SCHEMES if secure else _SCHEMES):
        return False
    return (origin.host, origin.port) == parse_host(raw.headers.get("Host", ""), origin.scheme)


def _opens_page(raw: web.BaseRequest) -> bool:
    """Return whether a link of any site has led the user to the web page.

    Its files are the same for everyone, and as a whole page no other one can frame it, or read it.
    """
    path = raw.rel_url.raw_path
    return (
        raw.method == "GET"
        and (path == "/ui" or path.startswith("/ui/"))
        and raw.headers.get("Sec-Fetch-Mode") == "navigate"
        and raw.headers.get("Sec-Fetch-Dest") == "document"
    )


def _allowed(text: str, config: ServerConfig) -> bool:
    wanted = config.value("core.https_allowed_origin")
    if wanted == ANY:
        return True
    origin: Origin | None = parse_origin(text)
    return origin is not None and origin == parse_origin(wanted)


def _may_act_as_caller(config: ServerConfig) -> bool:
    """As in browsers, `*` does not include requests with credentials, unless they are enabled separately."""
    return config.value("core.https_allowed_origin") != ANY or config.flag("core.https_allowed_credentials")


def _sharing_headers(origin: str, config: ServerConfig) -> dict[str, str]:
    any_site = config.value("core.https_allowed_origin") == ANY
    headers = {"Access-Control-Allow-Origin": ANY if any_site else origin, "Vary": "Origin"}
    if methods := config.value("core.https_allowed_methods"):
        headers["Access-Control-Allow-Methods"] = methods
    if names := config.value("core.https_allowed_headers"):
        headers["Access-Control-Allow-Headers"] = names
    if config.flag("core.https_allowed_credentials"):
        headers["Access-Control-Allow-Credentials"] = "true"
    return headers

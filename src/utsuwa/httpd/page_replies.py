"""The responses that carry the page's files, with the headers that protect it."""

from __future__ import annotations

from http import HTTPStatus

from aiohttp import web

from utsuwa.httpd.page_files import PageFile

_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "font-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
HEADERS = {
    "Content-Security-Policy": _POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
_FOREVER = "public, max-age=31536000, immutable"
"""For files whose names contain a digest of their content."""


def page_response(raw: web.BaseRequest, file: PageFile) -> web.Response:
    headers = {
        **HEADERS,
        "Cache-Control": _FOREVER if file.lasting else "no-cache",
        "Vary": "Accept-Encoding",
    }
    headers["ETag"] = file.etag
    if file.etag in raw.headers.get("If-None-Match", ""):
        return web.Response(status=HTTPStatus.NOT_MODIFIED, headers=headers)
    body = file.packed
    if "gzip" in raw.headers.get("Accept-Encoding", ""):
        headers["Content-Encoding"] = "gzip"
    else:
        body = file.unpacked()
    return web.Response(
        body=body, status=file.status, headers=headers, content_type=file.type, charset="utf-8"
    )

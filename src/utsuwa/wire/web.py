"""Records of `/1.0/web`: sessions of the web page."""

from __future__ import annotations

import msgspec


class WebTokensPost(msgspec.Struct, kw_only=True):
    """`local` asks for a session on the daemon's loopback address, which it opens if need be."""

    local: bool = False


class WebToken(msgspec.Struct, kw_only=True):
    """`url` is empty unless the token is local; `expires_at` is RFC 3339."""

    id: str
    secret: str
    url: str
    expires_at: str


class WebTokenState(msgspec.Struct, kw_only=True):
    """A token that has not been used yet."""

    id: str


class WebSessionPost(msgspec.Struct, kw_only=True):
    """The secret of a token."""

    token: str = ""


class WebSession(msgspec.Struct, kw_only=True):
    """`key` is to be sent with each request, beside the cookie; `expires_at` is RFC 3339."""

    key: str
    expires_at: str

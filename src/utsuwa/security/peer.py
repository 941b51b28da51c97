"""What the other end of a TLS connection has shown; light, unlike `tls`, which only HTTPS loads."""

from __future__ import annotations

from asyncio import BaseTransport


class Peer:
    """The other end of a connection, as its handshake proved it."""

    certificate: bytes
    """As DER; empty where it showed none. Known after the handshake."""
    fingerprint: str
    """The sha256 of the certificate in hexadecimal; empty where there is none."""


def peer_of(transport: BaseTransport) -> Peer | None:
    """The TLS side of a connection that came in through a `tls.ServerContext`; None for any other."""
    found = transport.get_extra_info("ssl_object")
    return found if isinstance(found, Peer) else None

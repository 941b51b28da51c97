"""The peer of a TLS connection; a small module, unlike `tls`, which is only loaded for HTTPS."""

from __future__ import annotations

from asyncio import BaseTransport


class Peer:
    """The peer of a connection, as authenticated by the handshake."""

    certificate: bytes
    """In DER; empty if the peer presented none. Set after the handshake."""
    fingerprint: str
    """The SHA-256 of the certificate in hexadecimal; empty if there is none."""


def peer_of(transport: BaseTransport) -> Peer | None:
    """Return the peer of a connection accepted by a `tls.ServerContext`; None for any other."""
    found = transport.get_extra_info("ssl_object")
    return found if isinstance(found, Peer) else None

"""HTTPS to remote servers, with this client's certificate and the pinned certificate of the server.

A server whose certificate was accepted is identified by that certificate only; any other must present one
that the system trusts for its host name. Image servers are never shown this client's certificate.

`https_proxy` and `no_proxy` of the environment are followed.
"""

from __future__ import annotations

import hashlib
import os
import socket
import ssl
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from utsuwa.client import proxies
from utsuwa.client.errors import Unreachable
from utsuwa.core.errors import InvalidRequest

if TYPE_CHECKING:
    from utsuwa.client.http import Opener
    from utsuwa.client.remotes import ClientConfig, Remote

DEFAULT_PORT = 8443
_WEB_PORT = 443
_CONNECT_SECONDS = 30


def opener(config: ClientConfig, name: str, remote: Remote) -> Opener:
    """Return a function that opens connections to a remote."""

    def open_remote() -> socket.socket:
        pinned = _read_pinned(config.server_certificate(name))
        return _connect(config, remote.addr, pinned)

    return open_remote


def public_opener(url: str) -> Opener:
    """Return a function that opens connections to a public web server."""

    def open_public() -> socket.socket:
        return _handshake(_context(), url, default_port=_WEB_PORT)

    return open_public


def normal_address(text: str) -> str:
    """Normalize a server address given by the user to `https://host:port`. Raises InvalidRequest."""
    if text.startswith("unix:"):
        return text
    url = text if "://" in text else f"https://{text}"
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port or DEFAULT_PORT
    except ValueError as error:
        raise InvalidRequest(f"{text!r} is not a server address: {error}") from error
    if parts.scheme != "https" or not host:
        raise InvalidRequest(f"{text!r} is not a server address: write https://HOST:PORT or unix:///PATH")
    shown = f"[{host}]" if ":" in host else host
    return f"https://{shown}:{port}"


def server_certificate(address: str, seconds: float = _CONNECT_SECONDS) -> bytes:
    """Return a server's certificate (DER) without verifying it. Raises Unreachable."""
    context = _context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with _handshake(context, address, seconds) as sock:
        found = sock.getpeercert(binary_form=True)
    assert found is not None, "a TLS server without a certificate"
    return found


def is_trusted(config: ClientConfig, address: str) -> bool:
    """Return whether the system, or the authority in `client.ca`, trusts the server. Raises Unreachable."""
    try:
        _handshake(_verifying(config), address).close()
    except Unreachable as error:
        if isinstance(error.__cause__, ssl.SSLCertVerificationError):
            return False
        raise
    return True


def fingerprint(certificate: bytes) -> str:
    """Return the SHA-256 fingerprint of a certificate (DER) in hexadecimal."""
    return hashlib.sha256(certificate).hexdigest()


def to_pem(certificate: bytes) -> str:
    return ssl.DER_cert_to_PEM_cert(certificate)


def _read_pinned(path: str) -> bytes | None:
    try:
        with open(path, encoding="ascii") as file:
            return ssl.PEM_cert_to_DER_cert(file.read().strip())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise InvalidRequest(f"Cannot use the accepted certificate {path}: {error}") from error


def _connect(config: ClientConfig, address: str, pinned: bytes | None) -> socket.socket:
    context = _verifying(config)
    if pinned is not None:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if os.path.exists(config.client_certificate):
        try:
            context.load_cert_chain(config.client_certificate, config.client_key)
        except (OSError, ssl.SSLError) as error:
            raise InvalidRequest(
                f"Cannot use {config.client_certificate} with {config.client_key}: {error}"
            ) from error
    sock = _handshake(context, address)
    if pinned is not None and sock.getpeercert(binary_form=True) != pinned:
        sock.close()
        raise Unreachable(
            f"{address} presents another certificate than the accepted one: if its owner changed it, "
            "remove the remote and add it again"
        )
    return sock


def _verifying(config: ClientConfig) -> ssl.SSLContext:
    """Return a context that verifies the server. Raises InvalidRequest if `client.ca` cannot be used."""
    context = _context()
    if os.path.exists(config.client_authority):
        try:
            context.load_verify_locations(config.client_authority)
        except (OSError, ssl.SSLError) as error:
            raise InvalidRequest(
                f"Cannot use {config.client_authority}: {error}; put in a certificate in PEM"
            ) from error
    return context


def _context() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def _handshake(
    context: ssl.SSLContext,
    address: str,
    seconds: float = _CONNECT_SECONDS,
    *,
    default_port: int = DEFAULT_PORT,
) -> ssl.SSLSocket:
    parts = urlsplit(address)
    host, port = parts.hostname or "", parts.port or default_port
    try:
        plain = proxies.connect(host, port, seconds)
    except OSError as error:
        raise Unreachable(f"Cannot connect to {address}: {error.strerror or error}") from error
    try:
        sock = context.wrap_socket(plain, server_hostname=host)
    except ssl.SSLCertVerificationError as error:
        plain.close()
        remedy = "accept it by adding the remote again"
        if default_port == _WEB_PORT:
            remedy = "install the certificate of its authority on this system"
        raise Unreachable(
            f"The certificate of {address} is not trusted ({error.verify_message}): {remedy}"
        ) from error
    except OSError as error:
        plain.close()
        raise Unreachable(f"Cannot connect to {address}: {error}") from error
    sock.settimeout(None)
    return sock

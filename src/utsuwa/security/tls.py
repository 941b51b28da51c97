"""TLS that accepts any client certificate, which the trust store checks afterwards.

LXD's clients present self-signed certificates. CPython's `ssl` module cannot request a certificate without
verifying it, so connections use pyOpenSSL behind the interface of `ssl.SSLObject`, which is transparent to
asyncio, uvloop and aiohttp. The handshake only proves that the peer has the private key of its certificate.
"""

from __future__ import annotations

import hashlib
import ssl
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Self, TypeVar, cast

from cryptography import x509
from OpenSSL import SSL, crypto

from utsuwa.security.peer import Peer

_Result = TypeVar("_Result")

TLS12_CIPHERS = b"ECDHE+AESGCM:ECDHE+CHACHA20"
"""Only suites with forward secrecy and authenticated encryption, as all of TLS 1.3 are."""

_RECORD = 16 * 1024
"""Maximum payload of a TLS record, and of one read."""
_CHUNK = 256 * 1024
"""Number of bytes to move between the buffers at a time."""
_PLAIN = 128 * 1024
"""Number of bytes to encrypt at a time, which then are still in the processor's cache."""
_PARTIAL_WRITE = 1
"""OpenSSL's `SSL_MODE_ENABLE_PARTIAL_WRITE`, which pyOpenSSL sets, but does not name."""


class ServerContext(ssl.SSLContext):
    """A server context for asyncio whose connections are `PeerConnection`s."""

    _openssl: SSL.Context

    def __new__(cls, certificate: Path, key: Path, issuers: Sequence[x509.Certificate] = ()) -> Self:
        del certificate, key, issuers
        return super().__new__(cls, ssl.PROTOCOL_TLS_SERVER)

    def __init__(self, certificate: Path, key: Path, issuers: Sequence[x509.Certificate] = ()) -> None:
        """Read the PEM files. Raises OSError, or `OpenSSL.SSL.Error` if they are not a key pair.

        `issuers` tell clients with several certificates which one to present; it is not verified here.
        """
        self._openssl = _openssl_context(certificate, key)
        for issuer in issuers:
            self._openssl.add_client_ca(issuer)

    def wrap_bio(
        self,
        incoming: ssl.MemoryBIO,
        outgoing: ssl.MemoryBIO,
        server_side: bool = False,
        server_hostname: str | bytes | None = None,
        session: ssl.SSLSession | None = None,
    ) -> ssl.SSLObject:
        if not server_side or session is not None:
            raise ValueError("this context is for servers without session resumption")
        del server_hostname
        return cast(ssl.SSLObject, PeerConnection(self._openssl, incoming, outgoing))


def _openssl_context(certificate: Path, key: Path) -> SSL.Context:
    context = SSL.Context(SSL.TLS_SERVER_METHOD)
    context.set_min_proto_version(SSL.TLS1_2_VERSION)
    context.set_cipher_list(TLS12_CIPHERS)
    context.set_options(SSL.OP_NO_COMPRESSION | SSL.OP_NO_RENEGOTIATION | SSL.OP_NO_TICKET)
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    context.clear_mode(_PARTIAL_WRITE)  # or each record would be a call, and a pass through the buffers
    context.use_certificate_chain_file(str(certificate))
    context.use_privatekey_file(str(key))
    context.check_privatekey()
    context.set_verify(SSL.VERIFY_PEER, _accept_any)
    context.set_alpn_select_callback(_choose_protocol)
    return context


def _accept_any(
    connection: SSL.Connection, certificate: crypto.X509, error: int, depth: int, ok: int
) -> bool:
    """Accept any certificate, which is safe because it grants nothing unless it is in the trust store."""
    del connection, certificate, error, depth, ok
    return True


def _choose_protocol(connection: SSL.Connection, offered: list[bytes]) -> Any:
    del connection
    return b"http/1.1" if b"http/1.1" in offered else SSL.NO_OVERLAPPING_PROTOCOLS


class PeerConnection(Peer):
    """A connection: the part of `ssl.SSLObject` that event loops use, and the peer's certificate.

    Encrypted bytes are read from `incoming` and written to `outgoing`, as event loops expect. Raises
    `ssl.SSLWantReadError` if more input is needed, other `ssl.SSLError`s for protocol errors.
    """

    server_side = True
    server_hostname = None

    def __init__(self, context: SSL.Context, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO) -> None:
        self._incoming = incoming
        self._outgoing = outgoing
        self._connection = SSL.Connection(context, None)
        self._connection.set_accept_state()
        self._dry = True
        """Whether all input has been decrypted."""
        self.certificate = b""
        self.fingerprint = ""
        self._refused: ssl.SSLError | None = None

    def do_handshake(self) -> None:
        """On failure, request more input first, and raise the error on the next call.

        Event loops discard pending output when a handshake fails, but send it before waiting for input: so
        the peer receives the alert (`protocol version`). The loop's timeout ends connections that stay open.
        """
        if self._refused is not None:
            raise self._refused
        try:
            self._run(self._connection.do_handshake)
        except ssl.SSLWantReadError:
            raise
        except ssl.SSLError as error:
            if not self._outgoing.pending:
                raise
            self._refused = error
            raise ssl.SSLWantReadError("the alert must be sent before the handshake fails") from error
        self._flush()
        shown = self._connection.get_peer_certificate()
        if shown is not None:
            self.certificate = crypto.dump_certificate(crypto.FILETYPE_ASN1, shown)
            self.fingerprint = hashlib.sha256(self.certificate).hexdigest()

    def read(self, length: int = _RECORD, buffer: memoryview | None = None) -> bytes | int:
        """Return decrypted bytes, or their number if `buffer` is given; empty (0) at the end."""
        wanted = min(length, _RECORD)
        try:
            if buffer is None:
                return self._run(partial(self._connection.recv, wanted))
            return self._run(partial(self._connection.recv_into, buffer, wanted))
        except SSL.ZeroReturnError:
            return 0 if buffer is not None else b""

    def write(self, data: bytes | bytearray | memoryview) -> int:
        """Encrypt all of `data`: event loops would copy the remainder each time."""
        rest = memoryview(data).cast("B")
        while rest:
            sent = self._run(partial(self._connection.send, rest[:_PLAIN]))
            self._flush()
            rest = rest[sent:]
        return len(data)

    def unwrap(self) -> None:
        """Send close_notify; raises SSLWantReadError until the peer has sent it too."""
        try:
            if self._run(self._connection.shutdown):
                return
        except SSL.ZeroReturnError:
            return
        finally:
            self._flush()
        if self._incoming.pending:
            self._discard_rest()
        raise ssl.SSLWantReadError("the peer has not closed yet")

    def _discard_rest(self) -> None:
        """Discard what the peer sent before it received our close_notify, up to its own."""
        while self.read():
            pass

    def pending(self) -> int:
        """Number of bytes that can be read without more input; 1 if only trying can tell."""
        return self._connection.pending() or (0 if self._dry else 1)

    def getpeercert(self, binary_form: bool = False) -> dict[str, Any] | bytes | None:
        """Return the DER form only: the other form requires a verified certificate."""
        if binary_form:
            return self.certificate or None
        return {}

    def cipher(self) -> tuple[str, str, int] | None:
        name = self._connection.get_cipher_name()
        if name is None:
            return None
        return name, self.version(), self._connection.get_cipher_bits() or 0

    def version(self) -> str:
        """The protocol version, such as `TLSv1.3`."""
        return self._connection.get_protocol_version_name()

    def compression(self) -> None:
        return None

    def selected_alpn_protocol(self) -> str | None:
        return self._connection.get_alpn_proto_negotiated().decode() or None

    def _run(self, step: Callable[[], _Result]) -> _Result:
        """Run an OpenSSL function, feeding it the available input; ZeroReturnError is left to the caller."""
        if self._dry:
            self._feed()
        try:
            while True:
                try:
                    return step()
                except SSL.WantReadError:
                    self._flush()
                    if not self._feed():
                        self._dry = True
                        raise ssl.SSLWantReadError("more input is needed") from None
        except SSL.ZeroReturnError:
            raise
        except SSL.SysCallError as error:
            raise ssl.SSLEOFError(
                ssl.SSL_ERROR_EOF, "the peer closed the connection without close_notify"
            ) from error
        except SSL.Error as error:
            self._flush()  # the alert for the peer
            raise ssl.SSLError(ssl.SSL_ERROR_SSL, _reason(error)) from error

    def _feed(self) -> bool:
        data = self._incoming.read(_CHUNK)
        if not data:
            return False
        self._connection.bio_write(data)
        self._dry = False
        return True

    def _flush(self) -> None:
        while True:
            try:
                data = self._connection.bio_read(_CHUNK)
            except SSL.WantReadError:
                return
            self._outgoing.write(data)
            if len(data) < _CHUNK:
                return


def _reason(error: SSL.Error) -> str:
    """Return OpenSSL's message, such as `wrong version number`."""
    queue = error.args[0] if error.args else None
    if isinstance(queue, list) and queue:
        return str(queue[0][-1])
    return "TLS failed"

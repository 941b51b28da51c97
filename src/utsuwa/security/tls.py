"""TLS that takes any client certificate, so that the trust store can judge it afterwards.

LXD's clients show self-signed certificates that no authority vouches for. CPython's `ssl` module
cannot ask for a certificate without also verifying it, so connections are made by pyOpenSSL behind
the interface of `ssl.SSLObject`; asyncio, uvloop and aiohttp do not notice. What the handshake
proves is that the peer holds the private key of the certificate it showed, no more.
"""

from __future__ import annotations

import hashlib
import ssl
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Self, TypeVar, cast

from OpenSSL import SSL, crypto

from utsuwa.security.peer import Peer

_Result = TypeVar("_Result")

TLS12_CIPHERS = b"ECDHE+AESGCM:ECDHE+CHACHA20"
"""Forward secrecy and authenticated encryption only; all of TLS 1.3's suites are so already."""

_RECORD = 16 * 1024
"""The most that one TLS record carries; one read never gives more."""
_CHUNK = 256 * 1024
"""What is encrypted, or moved between the buffers, in one go."""


class ServerContext(ssl.SSLContext):
    """A server's context for asyncio; every connection of it is a `PeerConnection`."""

    _openssl: SSL.Context

    def __new__(cls, certificate: Path, key: Path) -> Self:
        del certificate, key
        return super().__new__(cls, ssl.PROTOCOL_TLS_SERVER)

    def __init__(self, certificate: Path, key: Path) -> None:
        """Read the PEM files; raises OSError or `OpenSSL.SSL.Error` where they are no key pair."""
        self._openssl = _openssl_context(certificate, key)

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
    context.use_certificate_chain_file(str(certificate))
    context.use_privatekey_file(str(key))
    context.check_privatekey()
    context.set_verify(SSL.VERIFY_PEER, _accept_any)
    context.set_alpn_select_callback(_choose_protocol)
    return context


def _accept_any(
    connection: SSL.Connection, certificate: crypto.X509, error: int, depth: int, ok: int
) -> bool:
    """Not a hole: nothing is allowed by a certificate until the trust store knows it."""
    del connection, certificate, error, depth, ok
    return True


def _choose_protocol(connection: SSL.Connection, offered: list[bytes]) -> Any:
    del connection
    return b"http/1.1" if b"http/1.1" in offered else SSL.NO_OVERLAPPING_PROTOCOLS


class PeerConnection(Peer):
    """One connection: the part of `ssl.SSLObject` that event loops use, and the peer's certificate.

    Encrypted bytes come from `incoming` and go to `outgoing`, as the event loop expects it. Raises
    `ssl.SSLWantReadError` where more must come first, other `ssl.SSLError`s where the peer is wrong.
    """

    server_side = True
    server_hostname = None

    def __init__(self, context: SSL.Context, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO) -> None:
        self._incoming = incoming
        self._outgoing = outgoing
        self._connection = SSL.Connection(context, None)
        self._connection.set_accept_state()
        self._dry = True
        """Whether all that was fed has been decrypted."""
        self.certificate = b""
        self.fingerprint = ""
        self._refused: ssl.SSLError | None = None

    def do_handshake(self) -> None:
        """A failure asks for more input first, and is raised on the next call.

        Event loops drop what is to be sent when a handshake fails, but send it before they wait: so the
        peer reads what was wrong (`protocol version`). The loop's time limit ends one that stays.
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
            raise ssl.SSLWantReadError("the peer is told why the handshake failed") from error
        self._flush()
        shown = self._connection.get_peer_certificate()
        if shown is not None:
            self.certificate = crypto.dump_certificate(crypto.FILETYPE_ASN1, shown)
            self.fingerprint = hashlib.sha256(self.certificate).hexdigest()

    def read(self, length: int = _RECORD, buffer: memoryview | None = None) -> bytes | int:
        """Decrypted bytes, or their count where `buffer` takes them; nothing (0) at the peer's end."""
        wanted = min(length, _RECORD)
        try:
            if buffer is None:
                return self._run(partial(self._connection.recv, wanted))
            return self._run(partial(self._connection.recv_into, buffer, wanted))
        except SSL.ZeroReturnError:
            return 0 if buffer is not None else b""

    def write(self, data: bytes | bytearray | memoryview) -> int:
        """Encrypt `data`, all of it: event loops copy what is left over each time."""
        rest = memoryview(data).cast("B")
        while rest:
            sent = self._run(partial(self._connection.send, rest[:_CHUNK]))
            self._flush()
            rest = rest[sent:]
        return len(data)

    def unwrap(self) -> None:
        """Say goodbye; raises SSLWantReadError until the peer has done so too."""
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
        """Read and drop what the peer sent before it learnt of our end; returns at its own."""
        while self.read():
            pass

    def pending(self) -> int:
        """How much can be read without more from the peer; 1 where only a try can tell."""
        return self._connection.pending() or (0 if self._dry else 1)

    def getpeercert(self, binary_form: bool = False) -> dict[str, Any] | bytes | None:
        """The DER form only: the other would need a certificate that has been verified."""
        if binary_form:
            return self.certificate or None
        return {}

    def cipher(self) -> tuple[str, str, int] | None:
        name = self._connection.get_cipher_name()
        if name is None:
            return None
        return name, self.version(), self._connection.get_cipher_bits() or 0

    def version(self) -> str:
        """As in `TLSv1.3`."""
        return self._connection.get_protocol_version_name()

    def compression(self) -> None:
        return None

    def selected_alpn_protocol(self) -> str | None:
        return self._connection.get_alpn_proto_negotiated().decode() or None

    def _run(self, step: Callable[[], _Result]) -> _Result:
        """One step of OpenSSL's, fed with what has come; ZeroReturnError is left to the caller."""
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
                        raise ssl.SSLWantReadError("more must come from the peer") from None
        except SSL.ZeroReturnError:
            raise
        except SSL.SysCallError as error:
            raise ssl.SSLEOFError(ssl.SSL_ERROR_EOF, "the peer cut the connection") from error
        except SSL.Error as error:
            self._flush()  # the alert that tells the peer what was wrong
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
    """OpenSSL's own words, as in `wrong version number`."""
    queue = error.args[0] if error.args else None
    if isinstance(queue, list) and queue:
        return str(queue[0][-1])
    return "TLS failed"

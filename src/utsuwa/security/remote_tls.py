"""TLS to other servers: checked by the system's authorities, or against one certificate."""

from __future__ import annotations

import re
import ssl
from typing import Self

from utsuwa.core.errors import InvalidRequest
from utsuwa.security.keypair import ServerCertificate

_CERTIFICATE = re.compile("-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", re.DOTALL)


class _PinnedConnection(ssl.SSLObject):
    def do_handshake(self) -> None:
        super().do_handshake()
        context = self.context
        assert isinstance(context, PinnedContext)
        if self.getpeercert(True) != context.der:
            raise ssl.SSLCertVerificationError(1, "the server has another certificate than the given one")


class PinnedContext(ssl.SSLContext):
    """Accepts one certificate only, whatever its names, its issuer and its dates say.

    It is compared before anything is sent.
    """

    sslobject_class = _PinnedConnection
    der: bytes

    def __new__(cls, der: bytes) -> Self:
        del der
        return super().__new__(cls, ssl.PROTOCOL_TLS_CLIENT)

    def __init__(self, der: bytes) -> None:
        self.der = der
        self.check_hostname = False
        self.verify_mode = ssl.CERT_NONE


def client_context(certificate: str, identity: ServerCertificate | None) -> ssl.SSLContext:
    """Return a context for connections to a server; blocking.

    `certificate` is the PEM of its certificate, or empty for what the system trusts. `identity` is shown to
    servers that ask for a certificate. Raises InvalidRequest.
    """
    context = PinnedContext(_der(certificate)) if certificate else ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if identity is not None:
        context.load_cert_chain(identity.certificate_file, identity.key_file)
    return context


def _der(certificate: str) -> bytes:
    found = _CERTIFICATE.search(certificate)
    try:
        return ssl.PEM_cert_to_DER_cert(found[0] if found else "")
    except ValueError:
        raise InvalidRequest("The certificate of the server is not in the format PEM") from None

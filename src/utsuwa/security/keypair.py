"""The server's key and certificate, created once and stored in `server.key` and `server.crt`."""

from __future__ import annotations

import hashlib
import os
import re
import socket
import ssl
from dataclasses import dataclass
from pathlib import Path

from utsuwa.core.errors import HostError
from utsuwa.core.paths import StatePaths

_CERTIFICATE = re.compile("-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", re.DOTALL)
"""The first one is the server's; intermediate certificates may follow."""


@dataclass(frozen=True)
class ServerCertificate:
    """The certificate that clients pin: the files, the PEM and its SHA-256 in hexadecimal."""

    certificate_file: Path
    key_file: Path
    pem: str
    fingerprint: str


def ensure_key_pair(paths: StatePaths) -> ServerCertificate:
    """Return the key pair of the state directory, creating it if there is none; blocking.

    Raises HostError if the certificate's key is missing, or either cannot be read.
    """
    try:
        if not paths.server_cert.exists():
            _create(paths)
        elif not paths.server_key.exists():
            raise HostError(
                f"{paths.server_key} is missing: restore it, or remove {paths.server_cert} "
                "for a new pair, which clients will have to accept again"
            )
        return _load(paths)
    except OSError as error:
        raise HostError(f"Cannot read or write the server's key pair: {error}") from error


def _load(paths: StatePaths) -> ServerCertificate:
    """Load with Python's `ssl`, as `cryptography` is slow to load and takes memory."""
    pem = paths.server_cert.read_text(errors="replace")
    try:
        # The key is not encrypted; if it is, an empty password makes this fail instead of prompting.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(
            paths.server_cert, paths.server_key, password=lambda: ""
        )
        found = _CERTIFICATE.search(pem)
        der = ssl.PEM_cert_to_DER_cert(found[0] if found else "")
    except (ssl.SSLError, ValueError) as error:
        if getattr(error, "reason", "") in ("KEY_VALUES_MISMATCH", "KEY_TYPE_MISMATCH"):
            raise HostError(
                f"{paths.server_key} is not the key of {paths.server_cert}: restore the right pair"
            ) from error
        raise HostError(
            f"{paths.server_cert} or {paths.server_key} cannot be read: {error}; "
            "restore them, or remove both for a new pair"
        ) from error
    return ServerCertificate(
        certificate_file=paths.server_cert,
        key_file=paths.server_key,
        pem=pem,
        fingerprint=hashlib.sha256(der).hexdigest(),
    )


def _create(paths: StatePaths) -> None:
    """Write the key first: after a kill in between, a key without certificate is overwritten."""
    from utsuwa.security.self_signed import new_pair

    key, certificate = new_pair(socket.gethostname())
    _write(paths.server_key, key, 0o600)
    _write(paths.server_cert, certificate, 0o644)


def _write(path: Path, data: bytes, mode: int) -> None:
    """Write a file atomically, with its final mode from the start."""
    new = path.with_name(f".{path.name}.new")
    new.unlink(missing_ok=True)
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, mode)
    with os.fdopen(descriptor, "wb") as file:
        os.fchmod(file.fileno(), mode)
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)

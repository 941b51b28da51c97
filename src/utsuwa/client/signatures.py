"""The signed documents of image servers, which gpgv checks."""

from __future__ import annotations

import os

from utsuwa.client.errors import BadAnswer
from utsuwa.core import signatures
from utsuwa.core.errors import HostError


def content(document: bytes, keyring: str, shown: str) -> bytes:
    """Return the signed content of a document, which messages call `shown`.

    Raises BadAnswer if a signature is missing or not accepted, HostError if gpgv is not installed.
    """
    files = [os.memfd_create(name) for name in ("document", "content", "messages")]
    try:
        with os.fdopen(os.dup(files[0]), "wb") as file:
            file.write(document)
        os.lseek(files[0], 0, os.SEEK_SET)
        streams = [(os.POSIX_SPAWN_DUP2, handle, number) for number, handle in enumerate(files)]
        command = signatures.command(os.path.abspath(keyring))
        try:
            pid = os.posix_spawnp(command[0], command, os.environ, file_actions=streams)
        except FileNotFoundError as error:
            raise HostError("Install gpgv, which checks the signatures of image servers") from error
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        found, messages = (_read(handle) for handle in files[1:])
    finally:
        for handle in files:
            os.close(handle)
    reason = signatures.judge(messages.decode(errors="replace"), code)
    if reason:
        raise BadAnswer(
            f"{shown} is not accepted: {reason}. The server's signatures are checked with {keyring}"
        )
    return found


def _read(handle: int) -> bytes:
    with os.fdopen(os.dup(handle), "rb") as file:
        file.seek(0)
        return file.read()

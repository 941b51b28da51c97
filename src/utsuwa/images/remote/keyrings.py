"""The keys of image servers that sign their documents: `keyrings/HOST.gpg` in the state directory.

Where there is one, nothing is accepted from that server's index that is not signed with one of its keys.
"""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass
from pathlib import Path

from yarl import URL

from utsuwa.core import signatures
from utsuwa.core.errors import HostError, InvalidImage
from utsuwa.host.processes.run import run

_MAX_KEYRING = 16 * 2**20
_NOBODY = "65534"
_NOT_FOUND = 127
"""The exit status for a program that is not installed."""


@dataclass(frozen=True)
class Keyring:
    """The keys of one server."""

    path: Path

    async def content(self, document: bytes, shown: str) -> bytes:
        """Return the signed content of a document, which messages call `shown`.

        Raises InvalidImage if a signature is missing or not accepted, HostError without a usable keyring.
        """
        keys = await asyncio.to_thread(self._open)
        try:
            # The document is untrusted: gpgv has no privileges that it could lose to it.
            ended = await run(
                [
                    "setpriv", "--reuid", _NOBODY, "--regid", _NOBODY, "--clear-groups", "--no-new-privs",
                    "--inh-caps=-all", "--bounding-set=-all", *signatures.command(f"/dev/fd/{keys}"),
                ],
                stdin=document,
                accept=range(256),
                pass_fds=(keys,),
            )  # fmt: skip
        finally:
            os.close(keys)
        if ended.code == _NOT_FOUND:
            raise HostError(
                f"The signatures required by {self.path} cannot be checked: install Debian's package 'gpgv'"
            )
        reason = signatures.judge(ended.stderr.decode(errors="replace"), ended.code)
        if reason:
            raise InvalidImage(
                f"{shown} is not accepted: {reason}. The server's signatures are checked with {self.path}"
            )
        return ended.stdout

    def _open(self) -> int:
        """Return the descriptor of a copy that users without privileges can read."""
        copy = os.memfd_create("keyring")
        try:
            keys = self.path.read_bytes()
            if len(keys) > _MAX_KEYRING:
                raise HostError(f"The keyring {self.path} is larger than {_MAX_KEYRING >> 20} MiB")
            with os.fdopen(os.dup(copy), "wb") as file:
                file.write(keys)
        except OSError as error:
            os.close(copy)
            raise HostError(f"The keyring {self.path} cannot be read: {error.strerror}") from error
        except BaseException:
            os.close(copy)
            raise
        return copy


class Keyrings:
    """The keyrings in a directory; blocking."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def find(self, server: str) -> Keyring | None:
        """Return the keyring of the server of a URL, also one that cannot be read; None if there is none."""
        path = self._directory / signatures.keyring_name(URL(server).host or "")
        return Keyring(path) if os.path.lexists(path) else None

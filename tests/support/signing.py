"""Throw-away keys of GnuPG."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

PAST = "--faked-system-time=20200101T000000"


class Keys:
    """A home of GnuPG with keys, which are named by addresses."""

    def __init__(self, home: Path) -> None:
        self.home = home

    @property
    def environment(self) -> dict[str, str]:
        return {"GNUPGHOME": str(self.home)}

    def add(self, name: str, *options: str, lifetime: str = "0") -> None:
        self._gpg(*options, "--passphrase=", "--quick-generate-key", name, "ed25519", "sign", lifetime)

    def sign(self, content: bytes, name: str, *options: str) -> bytes:
        """Return a clear-signed document."""
        return self._gpg(*options, "--local-user", name, "--clearsign", input=content)

    def export(self, *names: str) -> bytes:
        """Return a keyring."""
        return self._gpg("--export", *names)

    def _gpg(self, *arguments: str, input: bytes = b"") -> bytes:
        command = ["gpg", "--batch", "--quiet", *arguments]
        ended = subprocess.run(
            command, env=os.environ | self.environment, input=input, capture_output=True, timeout=60
        )
        assert ended.returncode == 0, ended.stderr.decode()
        return ended.stdout


@contextlib.contextmanager
def keys() -> Iterator[Keys]:
    """Make an empty home, whose agent ends with the block."""
    # Not below pytest's directory: the path of the agent's socket has a maximum length.
    home = Path(tempfile.mkdtemp(prefix="gnupg-"))
    made = Keys(home)
    try:
        yield made
    finally:
        subprocess.run(
            ["gpgconf", "--kill", "all"], env=os.environ | made.environment, check=True, timeout=60
        )
        shutil.rmtree(home)

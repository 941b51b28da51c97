"""The daemons of LXD and Incus, for tests that exchange something with them.

They are fetched once and not installed, unless the machine has them. Each has its own state directory, and
runs in the namespaces of the test's process.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from tests.support import incus, isolation, leaks
from tests.support.api import Endpoint
from tests.support.cache import cached

START_SECONDS = 120
STOP_SECONDS = 60
_LIBRARIES = Path("usr/lib/x86_64-linux-gnu")
_FETCH_LXD = """
set -e
mkdir packages files && cd packages
apt-get -q -q -o APT::Sandbox::User=root download lxd libdqlite0 libraft2 libuv1
for package in *.deb; do dpkg-deb -x "$package" ../files; done
"""


class Peer(Endpoint):
    """A running daemon; made by `lxd` or `incusd`."""

    def __init__(
        self, program: Path, folder_variable: str, files: Path | None, more: Mapping[str, str] | None = None
    ) -> None:
        """`files` is where the packages lie unpacked, None if they are installed; `more` environment."""
        self.home = Path(tempfile.mkdtemp(prefix="up-", dir="/var/tmp"))
        self.dir = self.home / "d"
        self.dir.mkdir(mode=0o711)
        super().__init__(self.dir / "unix.socket")
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("LXD_", "UTSUWA_", "INCUS_"))}
        env = kept | {folder_variable: str(self.dir), "HOME": str(self.home), "LANG": "C.UTF-8"}
        env |= more or {}
        if files is not None:
            env["LD_LIBRARY_PATH"] = str(files / _LIBRARIES)
            env["PATH"] = f"{env['PATH']}:{files / 'usr/bin'}"
        self.log = self.home / "log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [str(program), "--group", "root"],
                env=env,
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._wait_ready()

    def _wait_ready(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while not self._serves():
            code = self.process.poll()
            assert code is None, f"the daemon ended with {code}:\n{self.log.read_text(errors='replace')}"
            assert time.monotonic() < deadline, self.log.read_text(errors="replace")
            time.sleep(0.1)

    def _serves(self) -> bool:
        try:
            return self.api("GET", "/1.0/images", timeout=START_SECONDS).status == 200
        except OSError:
            return False

    def close(self) -> None:
        """Stop it and remove its directory, with what it has mounted there."""
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(STOP_SECONDS)
        for point in reversed(leaks.mounts_below(self.home)):
            subprocess.run(["umount", "-l", point], check=False, capture_output=True)
        shutil.rmtree(self.home)


def lxd(more: Mapping[str, str] | None = None) -> Peer:
    """Start LXD of Debian 12, with more in its environment."""
    installed = shutil.which("lxd")
    if installed:
        return Peer(Path(installed), "LXD_DIR", None, more)
    files = _fetched_lxd()
    return Peer(files / "usr/bin/lxd", "LXD_DIR", files, more)


def _fetched_lxd() -> Path:
    def fetch(folder: Path) -> None:
        command = [*isolation.host_prefix(), "sh", "-c", f"cd {folder}\n{_FETCH_LXD}"]
        ended = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)
        assert ended.returncode == 0, ended.stderr.decode(errors="replace")[-4000:]

    return cached("lxd", [_FETCH_LXD.encode()], fetch) / "files"


def incusd() -> Peer:
    """Start Incus of bookworm-backports."""
    files = incus.fetched("incus-base")
    return Peer(files / "usr/libexec/incus/incusd", "INCUS_DIR", files)

"""An SSH server in the namespaces of a daemon, for other programs; nothing of it stays."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.support.netbox import NetBox

from bench.daemons import Missing

PACKAGES = ("openssh-server", "openssh-client")
_HOST, _PORT = "127.0.0.1", 8422
_START_SECONDS = 30
# It wants a directory that packages create in /run, and a user of its own.
_START = """
set -e
mount -t tmpfs -o mode=0755 none /run && mkdir -m 0755 /run/sshd
mount --bind "$1" /etc/passwd
shift && exec "$@"
"""
_USER = "sshd:x:65533:65534::/run/sshd:/usr/sbin/nologin\n"
_SETTINGS = """\
Port {port}
ListenAddress {host}
HostKey {home}/host
AuthorizedKeysFile {home}/client.pub
PermitRootLogin prohibit-password
StrictModes no
UsePAM no
PidFile none
"""


class SecureShell:
    """A server that runs, for the user root."""

    def __init__(self, box: NetBox, home: Path) -> None:
        self._box = box
        self._home = home
        folders = [home / name for name in ("usr/sbin", "usr/bin")]
        libraries = home / "usr/lib" / f"{os.uname().machine}-linux-gnu"
        self.environment = os.environ | {
            "PATH": ":".join([*map(str, folders), "/usr/sbin", "/usr/bin", "/sbin", "/bin"]),
            "LD_LIBRARY_PATH": str(libraries),
        }
        self.client = (
            "ssh", "-F", "none", "-p", str(_PORT), "-i", str(home / "client"), "-o", "BatchMode=yes",
            "-o", "StrictHostKeyChecking=yes", "-o", f"UserKnownHostsFile={home}/known",
        )  # fmt: skip

    def prepare(self, packages: Sequence[Path]) -> list[str]:
        """Unpack the programs, and make keys and settings; return the command of the server."""
        home = self._home
        for package in packages:
            subprocess.run(["dpkg-deb", "--extract", str(package), str(home)], check=True)
        for name in ("host", "client"):
            command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(home / name)]
            subprocess.run(command, env=self.environment, stdin=subprocess.DEVNULL, check=True)
        (home / "known").write_text(f"[{_HOST}]:{_PORT} {(home / 'host.pub').read_text()}")
        (home / "settings").write_text(_SETTINGS.format(host=_HOST, port=_PORT, home=home))
        users = Path("/etc/passwd").read_text()
        (home / "passwd").write_text(users if "\nsshd:" in users else users + _USER)
        sandbox = ("unshare", "--mount", "sh", "-c", _START, "sh", str(home / "passwd"))
        return [*sandbox, str(home / "usr/sbin/sshd"), "-D", "-e", "-f", str(home / "settings")]

    def rsync(self, source: Path, target: Path) -> None:
        """Have rsync copy a file through it."""
        self._run("rsync", "--whole-file", "-e", " ".join(self.client), str(source), f"{_HOST}:{target}")

    def await_ready(self, server: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + _START_SECONDS
        while True:
            try:
                return self._run(*self.client, _HOST, "true")
            except subprocess.CalledProcessError as error:
                if server.poll() is not None or time.monotonic() > deadline:
                    raise Missing(f"sshd does not serve: {error.output.decode()[-200:]}") from error
            time.sleep(0.05)

    def _run(self, *command: str) -> None:
        subprocess.run(
            [*self._box.prefix, *command],
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            check=True,
        )


@contextmanager
def serving(box: NetBox, packages: Sequence[Path], home: Path) -> Iterator[SecureShell]:
    """Have a server for the block, with the programs of `packages`; `home` is an empty directory.

    Raises Missing if it does not start.
    """
    shell = SecureShell(box, home)
    command = [*box.prefix, *shell.prepare(packages)]
    with (home / "log").open("wb") as log:
        server = subprocess.Popen(
            command, env=shell.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
    try:
        shell.await_ready(server)
        yield shell
    finally:
        server.terminate()
        server.wait()
